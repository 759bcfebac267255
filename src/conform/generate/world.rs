//! The world as the generator sees it while it writes: disks, bitmaps, what exists already, and the steps so far.
//!
//! All phases draw from its random numbers and write through its helpers. Must never know what a phase is about.

use std::collections::BTreeMap;

use super::model::{Bitmap, Disk};
use super::yaml::{Args, Procedure, Script, Step, Yaml, args};
use crate::sim::rng::{Rng, Stream};

/// How much happens in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// One phase.
    Easy,
    /// Two or three phases.
    Medium,
    /// Many phases, and sizes at their edges.
    Hard,
}

impl Level {
    /// What descriptions call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Easy => "easy",
            Level::Medium => "medium",
            Level::Hard => "hard",
        }
    }
}

/// A step for the end, when the machine is down.
#[derive(Clone, Debug)]
pub(super) struct Check {
    step: Step,
    /// A disk and whether what it is compared with holds all of it, as of which version.
    source: Option<(usize, Option<u64>)>,
}

impl Check {
    /// A step that does not depend on a disk.
    pub(super) fn plain(step: Step) -> Check {
        Check { step, source: None }
    }

    /// A comparison with `disk`, equal to it if that is still at `version`.
    pub(super) fn compare(step: Step, disk: usize, version: Option<u64>) -> Check {
        Check { step, source: Some((disk, version)) }
    }
}

/// The generator's world.
pub(super) struct World {
    /// Where all choices come from.
    pub(super) rng: Rng,
    /// How much happens.
    pub(super) level: Level,
    /// The disks of the machine.
    pub(super) disks: Vec<Disk>,
    /// Steps for the end, when the machine is down.
    pub(super) verification: Vec<Check>,
    steps: Vec<Step>,
    procedures: BTreeMap<&'static str, Procedure>,
    targets: u64,
    jobs: u64,
    images: u64,
}

impl World {
    /// A world in which nothing exists.
    pub(super) fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed, Stream::Generate);
        let level = match rng.below(3) {
            0 => Level::Easy,
            1 => Level::Medium,
            _ => Level::Hard,
        };
        World {
            rng,
            level,
            disks: Vec::new(),
            verification: Vec::new(),
            steps: Vec::new(),
            procedures: BTreeMap::new(),
            targets: 0,
            jobs: 0,
            images: 0,
        }
    }

    /// One of `items`, each as likely as any other.
    pub(super) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        let at = self.rng.below(items.len() as u64) as usize;
        items[at].clone()
    }

    /// One of `items` by weight.
    pub(super) fn weighted<T: Clone>(&mut self, items: &[(u64, T)]) -> T {
        let mut left = self.rng.below(items.iter().map(|(weight, _)| weight).sum());
        for (weight, item) in items {
            if left < *weight {
                return item.clone();
            }
            left -= weight;
        }
        items[items.len() - 1].1.clone()
    }

    /// `count` different ones of `items`, in random order.
    pub(super) fn some_of<T: Clone>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut rest = items.to_vec();
        let mut out = Vec::new();
        while out.len() < count && !rest.is_empty() {
            let at = self.rng.below(rest.len() as u64) as usize;
            out.push(rest.remove(at));
        }
        out
    }

    /// True once in two draws.
    pub(super) fn coin(&mut self) -> bool {
        self.rng.one_in(2)
    }

    /// True once in `n` draws.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.rng.one_in(n)
    }

    /// `value` once in `n` draws.
    pub(super) fn maybe<T>(&mut self, n: u64, value: T) -> Option<T> {
        self.one_in(n).then_some(value)
    }

    /// The steps for the end, with what comparisons will find.
    pub(super) fn checks(&mut self) -> Vec<Step> {
        let checks = std::mem::take(&mut self.verification);
        let step = |check: Check| {
            let differs = check.source.is_some_and(|(disk, version)| {
                let changes = self.disks.get(disk).map(|disk| disk.changes);
                version.is_none() || changes != version
            });
            check.step.with_if(differs, "expect", "mismatch")
        };
        checks.into_iter().map(step).collect()
    }

    /// Adds a step.
    pub(super) fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// A headline.
    pub(super) fn headline(&mut self, text: &str) {
        self.step(Step::new("log", format!("--- {text} ---")));
    }

    /// A QMP command.
    pub(super) fn execute(&mut self, command: &str, arguments: Args) {
        self.step(command_step(command, arguments));
    }

    /// A QMP command that is not written to the transcript.
    pub(super) fn execute_silently(&mut self, command: &str, arguments: Args) {
        self.step(command_step(command, arguments).with("log", "none"));
    }

    /// `vm: launch`, `shutdown` or `kill`; nothing that was in the machine is left.
    pub(super) fn vm(&mut self, action: &str) {
        self.step(Step::new("vm", action));
        if action != "launch" {
            self.disks.clear();
        }
    }

    /// `query-bitmaps`.
    pub(super) fn query_bitmaps(&mut self) {
        self.step(Step::new("query-bitmaps", args()));
    }

    /// `query-events` of all events.
    pub(super) fn query_events(&mut self) {
        self.step(Step::new("query-events", args()));
    }

    /// `query-jobs` or `query-block-jobs`.
    pub(super) fn query_jobs(&mut self) {
        let command = self.pick(&["query-jobs", "query-block-jobs"]);
        self.execute(command, args());
    }

    /// `sleep`.
    pub(super) fn sleep(&mut self, milliseconds: u64) {
        self.step(Step::new("sleep", format!("{milliseconds}ms")));
    }

    /// Waits until `job` is in `status`.
    pub(super) fn wait_status(&mut self, job: &str, status: &str, log: bool) {
        let event = args().set("id", job).set("status", status);
        self.step(Step::new("wait-event", "JOB_STATUS_CHANGE").with("match", event).with_if(!log, "log", "none"));
    }

    /// Waits for a BLOCK_JOB event of `job`.
    pub(super) fn wait_event(&mut self, event: &str, job: &str) {
        self.step(Step::new("wait-event", event).with("match", args().set("device", job)));
    }

    /// Whether the bitmap called `name` of `disk` has as many dirty granules as the model thinks.
    pub(super) fn expect_bitmap(&mut self, disk: usize, name: &str) {
        let disk = &self.disks[disk];
        let Some(bitmap) = disk.bitmap(name) else { return };
        let step = Step::new("expect-bitmap", &disk.node).with("name", name);
        match bitmap {
            Bitmap { known: true, inconsistent: false, .. } => self.step(step.with("clusters", bitmap.count())),
            _ => self.query_bitmaps(),
        }
    }

    /// Runs a procedure, which becomes one of the scenario's.
    pub(super) fn call(&mut self, procedure: Procedure, with: Args) {
        self.step(Step::new("use", procedure.name).with("with", with));
        self.procedures.insert(procedure.name, procedure);
    }

    /// The steps that `write` adds, taken out of the scenario.
    pub(super) fn inside(&mut self, write: impl FnOnce(&mut World)) -> Vec<Step> {
        let outer = std::mem::take(&mut self.steps);
        write(self);
        std::mem::replace(&mut self.steps, outer)
    }

    /// The name of a target that does not exist yet.
    pub(super) fn new_target(&mut self) -> String {
        self.targets += 1;
        format!("target{}", self.targets - 1)
    }

    /// The name of a job that does not exist yet.
    pub(super) fn new_job(&mut self) -> String {
        self.jobs += 1;
        format!("job{}", self.jobs - 1)
    }

    /// The number of an image that does not exist yet.
    pub(super) fn new_image(&mut self) -> u64 {
        self.images += 1;
        self.images - 1
    }

    /// The name of a disk's node that is not taken.
    pub(super) fn new_drive(&mut self) -> String {
        let taken = |name: &String| self.disks.iter().any(|disk| disk.node == *name);
        let names = (0..).map(|number| format!("drive{number}"));
        let free = names.into_iter().find(|name| !taken(name));
        free.unwrap_or_else(|| "drive".to_string())
    }

    /// Where the disk `node` stands among the disks.
    pub(super) fn disk(&self, node: &str) -> Option<usize> {
        self.disks.iter().position(|disk| disk.node == node)
    }

    /// The scenario of all that was written.
    pub(super) fn script(self, name: String, description: String) -> Script {
        let procedures = self.procedures.into_values().collect();
        Script { name, description, procedures, steps: self.steps, ..Script::default() }
    }
}

/// The step that executes `command`.
pub(super) fn command_step(command: &str, arguments: Args) -> Step {
    let step = Step::new("execute", command);
    if arguments.is_empty() { step } else { step.with("arguments", arguments) }
}

/// A transaction with its actions, one a line.
pub(super) fn transaction(mode: Option<&str>, actions: Vec<Args>) -> Step {
    let properties = mode.map(|mode| args().set("completion-mode", mode));
    let actions = Yaml::List(actions.into_iter().map(Yaml::from).collect());
    Step::new("execute", "transaction")
        .rows("arguments", args().maybe("properties", properties).set("actions", actions))
}

/// An action of a transaction.
pub(super) fn action(kind: &str, data: Args) -> Args {
    args().set("type", kind).set("data", data)
}
