//! The `blkdebug` filter: rules that turn a driver's events into errors, and breakpoints.
//!
//! An event activates rules; the next matching I/O on the node then fails. QEMU's source:
//! `block/blkdebug.c`; rules are evaluated newest first, breakpoints before set-state before
//! inject-error rules. It never looks at what is above or below it.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{TaskId, TraceEvent};

use super::blkdebug_event::BlkdebugEvent;
use super::flags::Perm;
use super::graph::Block;

/// Kinds of I/O that a rule can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoType {
    /// `read`.
    Read,
    /// `write`.
    Write,
    /// `write-zeroes`.
    WriteZeroes,
    /// `discard`.
    Discard,
    /// `flush`.
    Flush,
    /// `block-status`; no rule fails it unless it names it.
    BlockStatus,
}

impl IoType {
    /// The kind called `name` in QAPI.
    pub fn from_name(name: &str) -> Option<IoType> {
        Some(match name {
            "read" => IoType::Read,
            "write" => IoType::Write,
            "write-zeroes" => IoType::WriteZeroes,
            "discard" => IoType::Discard,
            "flush" => IoType::Flush,
            "block-status" => IoType::BlockStatus,
            _ => return None,
        })
    }
}

/// An `inject-error` rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// What activates it.
    pub event: BlkdebugEvent,
    /// In which state; 0 for any.
    pub state: i64,
    /// Which I/O fails; none: every kind but block status.
    pub iotype: Option<IoType>,
    /// What it fails with.
    pub errno: i32,
    /// The 512-byte sector that the I/O must cover; none: any I/O.
    pub sector: Option<i64>,
    /// Whether it fails only once.
    pub once: bool,
    /// Whether it fails without a trip through the event loop.
    pub immediately: bool,
}

/// A `set-state` rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    /// What triggers it.
    pub event: BlkdebugEvent,
    /// In which state; 0 for any.
    pub state: i64,
    /// The state that follows.
    pub new_state: i64,
}

struct Rule<T> {
    id: u32,
    rule: T,
}

struct Breakpoint {
    event: BlkdebugEvent,
    tag: String,
}

struct Suspended {
    tag: String,
    task: TaskId,
}

/// State of a blkdebug node.
#[derive(Default)]
pub struct Blkdebug {
    /// `align`, bytes; 0 for none.
    pub align: u64,
    /// `max-transfer`, bytes.
    pub max_transfer: Option<u64>,
    /// `opt-write-zero`, bytes.
    pub opt_write_zero: Option<u64>,
    /// `max-write-zero`, bytes.
    pub max_write_zero: Option<u64>,
    /// `opt-discard`, bytes.
    pub opt_discard: Option<u64>,
    /// `max-discard`, bytes.
    pub max_discard: Option<u64>,
    /// `take-child-perms`: taken on the image besides what parents take.
    pub take: Perm,
    /// `unshare-child-perms`: not shared on the image whatever parents share.
    pub unshare: Perm,
    state: Cell<i64>,
    /// In the order in which they were given.
    inject: RefCell<Vec<Rule<InjectError>>>,
    set_state: Vec<SetState>,
    /// Newest first.
    breakpoints: RefCell<Vec<Breakpoint>>,
    /// Newest first.
    suspended: RefCell<Vec<Suspended>>,
    /// Ids of activated rules, the one to try first in front.
    active: RefCell<Vec<u32>>,
}

impl Blkdebug {
    /// A node with these rules, in state 1.
    pub fn new(inject: Vec<InjectError>, set_state: Vec<SetState>) -> Blkdebug {
        let rules = inject.into_iter().enumerate().map(|(id, rule)| Rule { id: id as u32, rule });
        Blkdebug { inject: RefCell::new(rules.collect()), set_state, state: Cell::new(1), ..Blkdebug::default() }
    }

    /// A driver above (or the request path on this node) has come to `event`.
    pub async fn event(&self, block: &Rc<Block>, node: &Rc<str>, event: BlkdebugEvent) {
        let (name, traced) = (event.name(), node.clone());
        block.sim.emit(|| TraceEvent::Blkdebug { node: traced, event: name });
        let state = self.state.get();
        let hits = self.take_breakpoints(event);
        // Rules see the state from before the event; of several set-state rules the first given wins.
        let next = self.set_state.iter().find(|r| r.event == event && (r.state == 0 || r.state == state));
        let matching: Vec<u32> = {
            let inject = self.inject.borrow();
            let matches =
                |r: &&Rule<InjectError>| r.rule.event == event && (r.rule.state == 0 || r.rule.state == state);
            inject.iter().filter(matches).map(|r| r.id).collect()
        };
        if !matching.is_empty() {
            *self.active.borrow_mut() = matching;
        }
        if let Some(rule) = next {
            self.state.set(rule.new_state);
        }
        for tag in hits {
            self.suspend(block, tag).await;
        }
    }

    fn take_breakpoints(&self, event: BlkdebugEvent) -> Vec<String> {
        if self.breakpoints.borrow().is_empty() {
            return Vec::new();
        }
        let mut hits = Vec::new();
        self.breakpoints.borrow_mut().retain(|b| {
            let hit = b.event == event;
            if hit {
                hits.push(b.tag.clone());
            }
            !hit
        });
        hits
    }

    async fn suspend(&self, block: &Rc<Block>, tag: String) {
        let Some(task) = block.sim.current() else { return };
        block.print(format!("blkdebug: Suspended request '{tag}'\n"));
        self.suspended.borrow_mut().insert(0, Suspended { tag, task });
        block.sim.park("a blkdebug breakpoint to be resumed").await;
    }

    /// Looks whether an activated rule strikes this I/O (`rule_check`); `range` is in bytes. Tells whether it is to
    /// be carried out: a rule with a negative errno ends it as if it had been.
    pub async fn check(&self, block: &Block, kind: IoType, range: Option<(u64, u64)>) -> Res<bool> {
        let Some((errno, immediately)) = self.strike(kind, range) else { return Ok(true) };
        if !immediately {
            block.sim.reschedule("an injected error").await;
        }
        if errno < 0 { Ok(false) } else { Err(Errno(errno)) }
    }

    fn strike(&self, kind: IoType, range: Option<(u64, u64)>) -> Option<(i32, bool)> {
        let active = self.active.borrow().clone();
        for id in active {
            let inject = self.inject.borrow();
            let Some(Rule { rule, .. }) = inject.iter().find(|r| r.id == id) else { continue };
            let kind_matches = rule.iotype.map_or(kind != IoType::BlockStatus, |only| only == kind);
            if !kind_matches || !covers(rule.sector, range) {
                continue;
            }
            // An errno of 0 fails nothing and uses nothing up.
            if rule.errno == 0 {
                return None;
            }
            let hit = (rule.errno, rule.immediately);
            let once = rule.once;
            drop(inject);
            if once {
                self.inject.borrow_mut().retain(|r| r.id != id);
                self.active.borrow_mut().retain(|other| *other != id);
            }
            return Some(hit);
        }
        None
    }

    /// Whether no rule can strike a question for the block status.
    pub fn spares_status(&self) -> bool {
        !self.inject.borrow().iter().any(|rule| rule.rule.iotype == Some(IoType::BlockStatus))
    }

    /// Sets a breakpoint; none if there is no such event.
    pub fn set_breakpoint(&self, event: &str, tag: &str) -> Res<()> {
        let event = BlkdebugEvent::from_name(event).ok_or(Errno::ENOENT)?;
        self.breakpoints.borrow_mut().insert(0, Breakpoint { event, tag: tag.to_owned() });
        Ok(())
    }

    /// Lets the newest request suspended under `tag` go on.
    pub fn resume(&self, block: &Block, tag: &str) -> Res<()> {
        let mut suspended = self.suspended.borrow_mut();
        let index = suspended.iter().position(|s| s.tag == tag).ok_or(Errno::ENOENT)?;
        let request = suspended.remove(index);
        drop(suspended);
        block.print(format!("blkdebug: Resuming request '{tag}'\n"));
        block.sim.wake(request.task);
        Ok(())
    }

    /// Removes all breakpoints with this tag and lets all its suspended requests go on.
    pub fn remove_breakpoint(&self, block: &Block, tag: &str) -> Res<()> {
        let before = self.breakpoints.borrow().len();
        self.breakpoints.borrow_mut().retain(|b| b.tag != tag);
        let mut found = self.breakpoints.borrow().len() != before;
        while self.resume(block, tag).is_ok() {
            found = true;
        }
        if found { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// Whether a request is suspended under `tag`.
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.suspended.borrow().iter().any(|s| s.tag == tag)
    }
}

/// Whether an I/O on `range` covers the rule's sector; an I/O without a range covers only "any".
fn covers(sector: Option<i64>, range: Option<(u64, u64)>) -> bool {
    let Some(sector) = sector else { return true };
    // QEMU's product wraps around.
    let byte = sector.wrapping_mul(512) as u64;
    range.is_some_and(|(offset, bytes)| bytes > 0 && byte >= offset && byte - offset < bytes)
}
