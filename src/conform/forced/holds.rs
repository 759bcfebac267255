//! Requests held by blkdebug's breakpoints: armed, caught, let go.
//!
//! A breakpoint catches the next request that raises its event and is gone then; two on one event would both
//! catch the same request. So there is one at a time for each event of a node, set again as soon as it has
//! caught something; a request that begins in the same breath passes. `wait_break` would stop the monitor until
//! its request comes, so what QEMU prints is read instead.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Map;

use crate::scenario::backend::RunError;

use super::super::real::RealQemu;
use super::plan::Request;

/// How long a request may take to begin after what makes it begin.
const TO_BEGIN: Duration = Duration::from_millis(1000);
/// How long to look for a second request that begins in the same breath.
const IN_ONE_BREATH: Duration = Duration::from_millis(30);
/// How long what follows from a request that was let go may take, where nothing tells that it is over.
const TO_SETTLE: Duration = Duration::from_millis(20);

/// The breakpoints of one blkdebug node.
#[derive(Debug)]
struct Point {
    /// The backend by which the monitor reaches it: naming the node would wait for its requests first.
    backend: String,
    /// The tag of the breakpoint that is set for each event.
    armed: BTreeMap<&'static str, String>,
}

/// All breakpoints of a machine, and what they hold.
#[derive(Debug)]
pub struct Holds {
    real: RealQemu,
    /// By the name of the file node below.
    points: BTreeMap<String, Point>,
    /// The request that each tag holds.
    held: BTreeMap<usize, (String, String)>,
    tags: u32,
    /// All that QEMU has printed since the first breakpoint.
    printed: String,
}

/// The event that a raw node raises before such a request; none for those that raise no event of their own.
fn event(operation: &str) -> Option<&'static str> {
    match operation {
        "read" => Some("read_aio"),
        "write" => Some("write_aio"),
        _ => None,
    }
}

impl Holds {
    /// Makes the blkdebug nodes reachable and sets the first breakpoints. `points` names the blkdebug node above
    /// each file node.
    pub async fn set(real: &RealQemu, points: &BTreeMap<String, String>) -> Result<Holds, RunError> {
        let mut holds = Holds {
            real: real.clone(),
            points: BTreeMap::new(),
            held: BTreeMap::new(),
            tags: 0,
            printed: String::new(),
        };
        for (number, (file, blkdebug)) in points.iter().enumerate() {
            let backend = format!("backsim-hold-{number}");
            let below = format!("{{\"driver\":\"raw\",,\"file\":\"{blkdebug}\",,\"read-only\":true}}");
            holds.monitor(&format!("drive_add 0 if=none,id={backend},readonly=on,file=json:{below}")).await?;
            holds.points.insert(file.clone(), Point { backend, armed: BTreeMap::new() });
            holds.arm(file, "read_aio").await?;
            holds.arm(file, "write_aio").await?;
        }
        Ok(holds)
    }

    async fn monitor(&mut self, line: &str) -> Result<(), RunError> {
        let arguments = Map::from_iter([("command-line".to_owned(), line.into())]);
        self.real.execute_now("human-monitor-command", &arguments).map(|_| ())
    }

    async fn arm(&mut self, file: &str, event: &'static str) -> Result<(), RunError> {
        self.tags += 1;
        let tag = format!("backsim-{}", self.tags);
        let Some(point) = self.points.get_mut(file) else { return Ok(()) };
        point.armed.insert(event, tag.clone());
        let backend = point.backend.clone();
        self.monitor(&format!("qemu-io {backend} \"break {event} {tag}\"")).await
    }

    /// What QEMU has printed, from the `from`th byte on.
    pub fn printed(&mut self, from: usize) -> &str {
        let new = self.real.new_output();
        self.printed.push_str(&new);
        self.printed.get(from..).unwrap_or_default()
    }

    /// How much QEMU has printed.
    pub fn printed_bytes(&mut self) -> usize {
        self.printed(0).len()
    }

    fn prints(&mut self, text: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.printed(0).contains(text) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Looks for the requests that begin now, in their order; true for each that is held.
    pub async fn catch(&mut self, begins: &[(usize, &Request)]) -> Result<Vec<bool>, RunError> {
        let mut caught = Vec::new();
        let mut before: Vec<(&str, &str)> = Vec::new();
        for (number, request) in begins {
            let event = event(request.operation);
            let tag = event.and_then(|event| self.points.get(&*request.node)?.armed.get(event).cloned());
            let Some((event, tag)) = event.zip(tag) else {
                caught.push(false);
                continue;
            };
            let again = before.contains(&(&request.node, event));
            before.push((&request.node, event));
            let patience = if again { IN_ONE_BREATH } else { TO_BEGIN };
            let is_held = self.prints(&format!("blkdebug: Suspended request '{tag}'\n"), patience);
            if is_held {
                let backend = self.points[&*request.node].backend.clone();
                self.held.insert(*number, (backend, tag));
                self.arm(&request.node, event).await?;
            }
            caught.push(is_held);
        }
        Ok(caught)
    }

    /// Whether a request is held.
    pub fn holds(&self, request: usize) -> bool {
        self.held.contains_key(&request)
    }

    /// Lets a request go on.
    pub async fn let_go(&mut self, request: usize) -> Result<(), RunError> {
        let Some((backend, tag)) = self.held.remove(&request) else { return Ok(()) };
        self.monitor(&format!("qemu-io {backend} \"resume {tag}\"")).await?;
        std::thread::sleep(TO_SETTLE);
        Ok(())
    }

    /// Lets everything go and removes all breakpoints, so that the machine is its own again.
    pub async fn release(&mut self) -> Result<(), RunError> {
        let armed: Vec<(String, String)> = self
            .points
            .values()
            .flat_map(|point| point.armed.values().map(|tag| (point.backend.clone(), tag.clone())))
            .collect();
        for (backend, tag) in armed {
            self.monitor(&format!("qemu-io {backend} \"remove_break {tag}\"")).await?;
        }
        for request in self.held.keys().copied().collect::<Vec<_>>() {
            self.let_go(request).await?;
        }
        Ok(())
    }
}
