//! A run by the names of its events, as an exhaustive search has recorded them.
//! Must never replace an event that is not there by another.

use std::cell::Cell;
use std::rc::Rc;

use crate::sim::access::Accesses;
use crate::sim::{ABANDON, ChoicePoint, Strategy};

/// Takes the named events one after the other; gives up where the next one is not possible.
pub struct Script {
    names: Vec<u64>,
    at: usize,
    /// Whether the event under way may turn out to be a mere look, and whether it stands for the name before `at`.
    look: Option<bool>,
    fits: Rc<Cell<bool>>,
}

impl Script {
    /// These events, without the loop's mere looks.
    pub fn new(names: Vec<u64>) -> Script {
        Script { names, at: 0, look: None, fits: Rc::new(Cell::new(true)) }
    }

    /// Whether every event was possible in its turn.
    pub fn fits(&self) -> Rc<Cell<bool>> {
        self.fits.clone()
    }
}

impl Strategy for Script {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let next = self.names.get(self.at).copied();
        let first = &point.alternatives[0];
        if first.is_loop() && !first.footprint.writes {
            // As in the search, a look comes before anything else; whether it is an event is known after it.
            let named = next == Some(first.event);
            self.at += usize::from(named);
            self.look = Some(named);
            return 0;
        }
        self.look = None;
        self.at += 1;
        let found = point.alternatives.iter().position(|alternative| Some(alternative.event) == next);
        self.fits.set(self.fits.get() && found.is_some());
        found.unwrap_or(ABANDON)
    }

    fn has_run(&mut self, _: Accesses, changed: bool) {
        match self.look.take() {
            // A look that found nothing: the name is that of a later event.
            Some(true) if !changed => self.at -= 1,
            Some(false) if changed => self.fits.set(false),
            _ => {}
        }
    }

    fn observes(&self) -> bool {
        true
    }
}
