//! The two ways in which steps see events: the queue of `wait-event` and `run-job`, from which each event
//! is taken once, and the place of `query-events`, which takes nothing from it.

use serde_json::{Map, Value};

use crate::scenario::backend::{Backend, Event, RunError};
use crate::scenario::json::dumps;

use super::Runner;

/// How far the steps of a run have come in the list of all events since launch.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    /// All events before this one have been taken.
    first: usize,
    /// Which of the events from `first` on have been taken.
    taken: Vec<bool>,
    /// Where `query-events` goes on.
    shown: usize,
}

impl EventLog {
    fn is_taken(&self, index: usize) -> bool {
        index < self.first || self.taken.get(index - self.first).copied().unwrap_or(false)
    }

    fn take(&mut self, index: usize) {
        let place = index - self.first;
        if self.taken.len() <= place {
            self.taken.resize(place + 1, false);
        }
        self.taken[place] = true;
        let done = self.taken.iter().take_while(|taken| **taken).count();
        self.taken.drain(..done);
        self.first += done;
    }
}

/// Whether `data` contains all of `wanted`, in nested maps too.
pub(super) fn contains(data: &Value, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, wanted)| match (data.get(key), wanted) {
        (Some(inner @ Value::Object(_)), Value::Object(wanted)) => contains(inner, wanted),
        (Some(value), wanted) => value == wanted,
        (None, _) => false,
    })
}

/// An event as one line, its time stamp masked.
pub(super) fn line(event: &Event) -> String {
    let data = if event.data.is_null() { String::new() } else { format!("\"data\": {}, ", dumps(&event.data, None)) };
    let name = dumps(&Value::String(event.name.to_string()), None);
    format!("{{{data}\"event\": {name}, \"timestamp\": {{\"microseconds\": \"USECS\", \"seconds\": \"SECS\"}}}}")
}

impl<B: Backend> Runner<B> {
    /// Takes the oldest event that `wanted` accepts from the queue, or waits `timeout_ns` for it; `None` if
    /// it does not come.
    pub(super) async fn take_event(
        &self,
        timeout_ns: u64,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Option<Event>, RunError> {
        let begin = self.backend.now();
        let mut index = self.shared.events.borrow().first;
        loop {
            while let Some(event) = self.backend.event(index) {
                let mut log = self.shared.events.borrow_mut();
                if !log.is_taken(index) && wanted(&event) {
                    log.take(index);
                    return Ok(Some(event));
                }
                index += 1;
            }
            let passed = self.backend.now().saturating_sub(begin);
            let left = timeout_ns.saturating_sub(passed);
            if !self.backend.wait_event(index, left).await? {
                return Ok(None);
            }
        }
    }

    /// The events that came since the last call; none of them is shown again.
    pub(super) fn new_events(&self) -> Vec<Event> {
        let mut log = self.shared.events.borrow_mut();
        let mut events = Vec::new();
        while let Some(event) = self.backend.event(log.shown) {
            events.push(event);
            log.shown += 1;
        }
        events
    }

    /// Forgets all events, as a launch does.
    pub(super) fn forget_events(&self) {
        *self.shared.events.borrow_mut() = EventLog::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_match_is_a_subset() {
        let wanted = |value: Value| match value {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let data = json!({"id": "j", "a": {"b": 1, "c": 2}});
        assert!(contains(&data, &wanted(json!({}))));
        assert!(contains(&data, &wanted(json!({"a": {"c": 2}}))));
        assert!(!contains(&data, &wanted(json!({"a": {"c": 3}}))));
        assert!(!contains(&data, &wanted(json!({"x": null}))));
    }

    #[test]
    fn an_event_is_taken_once() {
        let mut log = EventLog::default();
        log.take(1);
        assert!(log.is_taken(1) && !log.is_taken(0) && !log.is_taken(2));
        log.take(0);
        assert_eq!((log.first, log.taken.len()), (2, 0));
    }
}
