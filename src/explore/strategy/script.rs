//! A run by the names of its events, as an exhaustive search has recorded them.
//! Must never replace an event that is not there by another.

use std::cell::Cell;
use std::rc::Rc;

use crate::sim::{ABANDON, ChoicePoint, Strategy};

/// Takes the named events one after the other; gives up where the next one is not possible.
pub struct Script {
    names: Vec<u64>,
    at: usize,
    fits: Rc<Cell<bool>>,
}

impl Script {
    /// These events, without the loop's mere looks.
    pub fn new(names: Vec<u64>) -> Script {
        Script { names, at: 0, fits: Rc::new(Cell::new(true)) }
    }

    /// Whether every event was possible in its turn.
    pub fn fits(&self) -> Rc<Cell<bool>> {
        self.fits.clone()
    }
}

impl Strategy for Script {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let next = self.names.get(self.at).copied();
        self.at += 1;
        let found = point.alternatives.iter().position(|alternative| Some(alternative.event) == next);
        self.fits.set(self.fits.get() && found.is_some());
        found.unwrap_or(ABANDON)
    }

    fn observes(&self) -> bool {
        true
    }
}
