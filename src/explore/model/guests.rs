//! Which node each guest's disk is, and what became of requests to an overlay that was being taken away.
//!
//! A guest does not know of nodes: its disk holds what it wrote, whatever the graph is changed to. Where QEMU itself gets
//! that wrong, between the two changes that take an overlay away again, that is told apart from everything else.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::ranges::Ranges;

/// See the module's text.
pub struct Guests {
    /// The node that each guest's disk is.
    disks: BTreeMap<Rc<str>, Rc<str>>,
    /// The overlay that is being taken away.
    adrift: Option<Rc<str>>,
    /// What guests have written to it since.
    lost: Ranges<bool>,
}

impl Default for Guests {
    fn default() -> Guests {
        Guests { disks: BTreeMap::new(), adrift: None, lost: Ranges::all(false) }
    }
}

impl Guests {
    /// A guest uses a disk; returns the one that it used before, if that was another one.
    pub fn uses(&mut self, guest: &Rc<str>, disk: &Rc<str>) -> Option<Rc<str>> {
        if self.disks.get(guest) == Some(disk) {
            return None;
        }
        self.disks.insert(guest.clone(), disk.clone())
    }

    /// Whether a disk is some guest's.
    pub fn has(&self, disk: &str) -> bool {
        self.disks.values().any(|used| **used == *disk)
    }

    /// The machine is gone.
    pub fn clear(&mut self) {
        *self = Guests::default();
    }

    /// An overlay is being taken away, or has been.
    pub fn take_back(&mut self, overlay: &Rc<str>, begins: bool) {
        self.adrift = begins.then(|| overlay.clone());
        self.lost = Ranges::all(false);
    }

    /// Whether some overlay is being taken away.
    pub fn is_any_adrift(&self) -> bool {
        self.adrift.is_some()
    }

    /// Whether a disk is such an overlay.
    pub fn is_adrift(&self, disk: &str) -> bool {
        self.adrift.as_deref() == Some(disk)
    }

    /// A guest's write that began on such an overlay is answered.
    pub fn wrote(&mut self, (start, end): (u64, u64)) {
        self.lost.set(start, end - start, true);
    }

    /// What was written to the overlay that is being taken away.
    pub fn lost(&self) -> &Ranges<bool> {
        &self.lost
    }
}
