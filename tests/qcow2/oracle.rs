//! Round trips with the real qemu-img; skipped, loudly, where there is none.
