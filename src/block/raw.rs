//! The `raw` driver: the node below as it is, or a window of it.
//!
//! With `offset` or `size` it shows a part of the node below, like a partition; without them it behaves like a
//! filter. QEMU's source: `block/raw-format.c`. It has no bytes of its own.

use crate::sim::shared::Cell;

use crate::errno::{Errno, Res};

/// Which part of the node below is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// `offset` as it was given, bytes.
    pub offset: Option<u64>,
    /// `size` as it was given, bytes.
    pub size: Option<u64>,
}

impl Window {
    /// Whether it can be had from a node of `real` bytes (`raw_apply_options`).
    pub fn check(&self, real: u64) -> Result<(), String> {
        let offset = self.offset.unwrap_or(0);
        if real < offset {
            return Err(format!("Offset ({offset}) cannot be greater than size of the containing file ({real})"));
        }
        let Some(size) = self.size else { return Ok(()) };
        if real - offset < size {
            return Err(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the \
                 containing file ({real})"
            ));
        }
        if !size.is_multiple_of(512) {
            return Err("Specified size is not multiple of 512".to_owned());
        }
        Ok(())
    }

    /// Bytes that it shows of a node of `real` bytes.
    pub fn length(&self, real: u64) -> u64 {
        let rest = real.saturating_sub(self.offset.unwrap_or(0));
        self.size.map_or(rest, |size| size.min(rest)).next_multiple_of(512)
    }
}

/// State of a raw node.
#[derive(Debug, Default)]
pub struct RawDriver {
    window: Cell<Window>,
}

impl RawDriver {
    /// A node that shows `window`.
    pub fn new(window: Window) -> RawDriver {
        RawDriver { window: Cell::new(window) }
    }

    /// What it shows.
    pub fn window(&self) -> Window {
        self.window.get()
    }

    /// Shows something else (`raw_reopen_commit`).
    pub fn set_window(&self, window: Window) {
        self.window.set(window);
    }

    /// Whether it shows less than everything, so that nobody else may resize the node below.
    pub fn is_window(&self) -> bool {
        let Window { offset, size } = self.window.get();
        offset.unwrap_or(0) != 0 || size.is_some()
    }

    /// Where the first byte lies in the node below.
    pub fn offset(&self) -> u64 {
        self.window.get().offset.unwrap_or(0)
    }

    /// The place of a request in the node below (`raw_adjust_offset`).
    pub fn place(&self, offset: u64, bytes: u64, is_write: bool) -> Res<u64> {
        let outside = |size: u64| offset > size || bytes > size - offset;
        if self.window.get().size.is_some_and(outside) {
            return Err(if is_write { Errno::ENOSPC } else { Errno::EINVAL });
        }
        offset.checked_add(self.offset()).ok_or(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_must_lie_within_the_node_below() {
        let refused = |offset, size| Window { offset, size }.check(1 << 20).expect_err("it does not fit");
        let offset = "Offset (2097152) cannot be greater than size of the containing file (1048576)";
        assert_eq!(refused(Some(2 << 20), None), offset);
        let sum = "The sum of offset (0) and size (2097152) has to be smaller or equal to the  actual size of the \
                   containing file (1048576)";
        assert_eq!(refused(None, Some(2 << 20)), sum);
        assert_eq!(refused(Some(512), Some(100)), "Specified size is not multiple of 512");
        assert_eq!(Window { offset: Some(512), size: Some(65536) }.check(1 << 20), Ok(()));
    }

    #[test]
    fn its_length_is_what_is_left_or_the_size() {
        assert_eq!(Window { offset: Some(100), size: None }.length(1 << 20), 1 << 20);
        assert_eq!(Window { offset: Some(512), size: None }.length(1 << 20), (1 << 20) - 512);
        assert_eq!(Window { offset: Some(512), size: Some(65536) }.length(1 << 20), 65536);
    }

    #[test]
    fn requests_behind_a_given_size_are_refused() {
        let raw = RawDriver::new(Window { offset: Some(512), size: Some(1024) });
        assert_eq!(raw.place(512, 512, true), Ok(1024));
        assert_eq!(raw.place(512, 1024, true), Err(Errno::ENOSPC));
        assert_eq!(raw.place(512, 1024, false), Err(Errno::EINVAL));
    }
}
