//! What a machine has left at the end of a run, read through its own interfaces.
//!
//! It is only data; [`super::watch`] judges it. Reading happens in QEMU's own order after the run has ended,
//! so that it cannot disturb the run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use crate::block::{Driver, NodeId, ReqFlags};
use crate::qmp::Machine;
use crate::sim::{BitmapDump, Runs};

/// What is there at the end.
#[derive(Clone, Debug, Default)]
pub struct FinalState {
    /// Content of nodes by name; of those that could be read.
    pub content: BTreeMap<Rc<str>, Runs>,
    /// Backing nodes by node.
    pub backing: BTreeMap<Rc<str>, Rc<str>>,
    /// Named bitmaps.
    pub bitmaps: Vec<BitmapDump>,
    /// Jobs that are still listed, and their states.
    pub jobs: Vec<(Rc<str>, &'static str)>,
    /// All events of the machine's life: name and data.
    pub events: Vec<(&'static str, Rc<Value>)>,
    /// Filters that no user has added.
    pub stray_filters: Vec<Rc<str>>,
    /// Nodes with anonymous bitmaps, though no filter is left that could own them.
    pub stray_bitmaps: Vec<Rc<str>>,
    /// Nodes on which operations are still blocked.
    pub blocked: Vec<Rc<str>>,
}

/// How long a machine is left alone before it is looked at, ns of virtual time: all that can end has ended then.
pub(super) const REST: u64 = 3_600_000_000_000;

impl FinalState {
    /// Lets the machine come to an end with what it is doing.
    pub async fn rest(machine: &Machine) {
        machine.block.sim.sleep(REST).await;
    }

    /// Looks at `machine`, reading the nodes that `wanted` names.
    pub async fn look(machine: Rc<Machine>, wanted: Vec<Rc<str>>) -> FinalState {
        let block = &machine.block;
        let mut state = FinalState { bitmaps: block.dump_bitmaps(), ..FinalState::default() };
        state.jobs = machine.jobs.all().iter().map(|job| (job.id.clone(), job.status().name())).collect();
        state.events = machine.events().iter().map(|event| (event.name, event.data.clone())).collect();
        for node in block.live_nodes() {
            let name = node.name.clone();
            if let Some(below) = block.backing_chain_next(node.id) {
                state.backing.insert(name.clone(), block.node(below).name.clone());
            }
            if matches!(&*node.driver.borrow(), Driver::CopyBeforeWrite(_)) && !node.monitor_owned.get() {
                state.stray_filters.push(name.clone());
            }
            if node.bitmaps.borrow().iter().any(|(_, bitmap)| bitmap.name.is_none()) {
                state.stray_bitmaps.push(name.clone());
            }
            if !node.op_blockers.borrow().is_empty() {
                state.blocked.push(name);
            }
        }
        let nodes = block.live_nodes();
        if nodes.iter().any(|node| matches!(&*node.driver.borrow(), Driver::CopyBeforeWrite(_))) {
            state.stray_bitmaps.clear();
        }
        for name in wanted {
            if let Some(node) = block.find_node(&name)
                && block.keeps_data(node.id)
                && let Some(content) = read(&machine, node.id, node.length.get()).await
            {
                state.content.insert(name, content);
            }
        }
        state
    }
}

async fn read(machine: &Rc<Machine>, node: NodeId, length: u64) -> Option<Runs> {
    let block = machine.block.clone();
    let slot: Rc<RefCell<Option<Runs>>> = Rc::default();
    let (result, sim) = (slot.clone(), block.sim.clone());
    let me = sim.current()?;
    sim.clone().spawn("inspection", async move {
        let content = block.co_pread(node, 0, length, ReqFlags::NONE).await;
        *result.borrow_mut() = Some(content.map(|content| content.fills()).unwrap_or_default());
        sim.wake(me);
    });
    while slot.borrow().is_none() {
        machine.block.sim.park("an inspection").await;
    }
    slot.take().filter(|content| !content.is_empty())
}
