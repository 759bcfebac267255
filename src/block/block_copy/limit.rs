//! The rate limit of background copying, in slices of virtual time.
//!
//! QEMU's source: `include/qemu/ratelimit.h`. A slice may be overdrawn; the delay then lasts as long
//! as the overdraft takes at the given speed.

use crate::sim::shared::Cell;

use crate::sim::Nanos;

const SLICE: Nanos = 100_000_000;

/// Bytes per slice, and what was dispatched in the current one.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// Bytes in a slice; 0: unlimited.
    quota: Cell<u64>,
    slice_start: Cell<Nanos>,
    slice_end: Cell<Nanos>,
    dispatched: Cell<u64>,
}

impl RateLimit {
    /// Sets the speed, bytes per second; 0 is unlimited. Slice and dispatched bytes stay.
    pub fn set_speed(&self, speed: u64) {
        self.quota.set(if speed == 0 { 0 } else { (speed / 10).max(1) });
    }

    /// Whether nobody ever has to wait.
    pub fn is_unlimited(&self) -> bool {
        self.quota.get() == 0
    }

    /// Accounts `bytes` at time `now` and tells how long to wait, ns.
    pub fn delay(&self, now: impl FnOnce() -> Nanos, bytes: u64) -> Nanos {
        let quota = self.quota.get();
        if quota == 0 {
            return 0;
        }
        let now = now();
        if self.slice_end.get() < now {
            self.slice_start.set(now);
            self.slice_end.set(now + SLICE);
            self.dispatched.set(0);
        }
        self.dispatched.set(self.dispatched.get() + bytes);
        if self.dispatched.get() < quota {
            return 0;
        }
        let slices = self.dispatched.get() as f64 / quota as f64;
        let length = (slices * SLICE as f64) as Nanos;
        self.slice_end.set(self.slice_start.get().saturating_add(length));
        self.slice_end.get().saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_task_goes_at_once_and_is_paid_for_afterwards() {
        let limit = RateLimit::default();
        limit.set_speed(65536);
        assert_eq!(limit.delay(|| 1, 0), 0);
        limit.delay(|| 1, 1 << 20);
        let seconds = limit.delay(|| 1, 0) as f64 / 1e9;
        assert!((seconds - 16.0).abs() < 0.01, "1 MiB at 64 KiB/s takes 16 s, not {seconds}");
    }
}
