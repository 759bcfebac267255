//! Sizes as qemu-io prints them: the largest unit with a value of at least 1 (`cvtstr` in `qemu-io-cmds.c`).

/// A size for people: `64 KiB`, `1.500 KiB`, `32 bytes`.
pub fn human(bytes: u64) -> String {
    const UNITS: [(u32, &str); 6] = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes >> shift >= 1 {
            let value = bytes as f64 / 2f64.powi(shift as i32);
            let text = format!("{value:.3}");
            return format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text));
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_qemu_io_prints_them() {
        assert_eq!(human(65536), "64 KiB");
        assert_eq!(human(1536), "1.500 KiB");
        assert_eq!(human(512), "512 bytes");
    }
}
