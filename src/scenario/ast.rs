//! The scenario language as Rust types: one record a verb, one field an option.
//!
//! Each type is written once and yields the decoder, the list of known keys and the JSON Schema, so that
//! these can't contradict one another. The types hold plain values; templates are gone by then. Nothing
//! here may run anything.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::decode::{record, words};
use super::values::{Bytes, Empty, Errors, Nanos, Pair, Range, Schedule, Spread, Steps, Text, Timing, Word};

words! {
    /// The format of an image.
    ImageFormat {
        /// QEMU's own format.
        #[default] Qcow2 = "qcow2",
        /// The bytes of the disk, one to one.
        Raw = "raw",
    }
    /// What a step writes to the transcript.
    LogMode {
        /// What was asked and what was answered.
        #[default] All = "all",
        /// Only what was answered.
        Reply = "reply",
        /// Nothing.
        None = "none",
    }
    /// What happens to the simulated machine.
    VmAction {
        /// It starts.
        #[default] Launch = "launch",
        /// It ends in order: jobs are cancelled, bitmaps stored.
        Shutdown = "shutdown",
        /// It is gone, as after SIGKILL.
        Kill = "kill",
    }
    /// What a comparison should find.
    Match {
        /// Equal content.
        #[default] Identical = "identical",
        /// Different content.
        Mismatch = "mismatch",
    }
    /// A device operation.
    Operation {
        /// Reading data.
        #[default] Read = "read",
        /// Writing data, zeroes included.
        Write = "write",
        /// Making written data durable.
        Flush = "flush",
        /// Giving space back.
        Discard = "discard",
    }
    /// How a workload chooses its places.
    Distribution {
        /// Every place is as likely as any other.
        #[default] Uniform = "uniform",
        /// One after the other.
        Sequential = "sequential",
        /// Few places take most of the requests.
        Zipf = "zipf",
    }
    /// Where images live.
    Storage {
        /// In memory, by runs.
        #[default] Memory = "memory",
        /// In real files.
        File = "file",
    }
    /// How a run can end.
    Outcome {
        /// Every step was done.
        #[default] Passed = "passed",
        /// A wait was not answered or a bitmap was not there.
        Failed = "failed",
        /// Nothing could go on any more.
        Deadlock = "deadlock",
    }
}

record! {
    /// Writes a text and a newline.
    Log("step `log`") {
        /// The text.
        log "log": Text,
    }
    /// Creates an image outside the machine, as qemu-img create does; writes nothing.
    Image("step `image`") {
        /// The name; the file is TEST_DIR/PID-NAME.
        image "image": Word,
        /// The format.
        format "format": ImageFormat = ImageFormat::Qcow2,
        /// Size of the disk in bytes; that of the backing file if absent.
        size "size": Option<Bytes> = None,
        /// The name of the image below.
        backing "backing": Option<Word> = None,
        /// The format of the image below.
        backing_format "backing-format": ImageFormat = ImageFormat::Qcow2,
        /// Cluster size in bytes.
        cluster_size "cluster-size": Option<Bytes> = None,
        /// Further creation options, as behind `qemu-img create -o`.
        options "options": Map<String, Value> = Map::new(),
    }
    /// Starts, ends or kills the machine; writes nothing.
    Vm("step `vm`") {
        /// What happens to it.
        vm "vm": VmAction,
    }
    /// Sends a QMP command.
    Execute("step `execute`") {
        /// The command.
        execute "execute": Word,
        /// Its arguments, as on the wire.
        arguments "arguments": Map<String, Value> = Map::new(),
        /// What is written: command and reply, the return value alone, or nothing.
        log "log": LogMode = LogMode::All,
        /// Spaces by which each level of the written JSON is indented; absent: one line.
        indent "indent": Option<u64> = None,
    }
    /// Guest I/O at a node, in qemu-io's command language.
    QemuIo("step `qemu-io`") {
        /// The node.
        qemu_io "qemu-io": Word,
        /// One command.
        command "command": Option<Word> = None,
        /// Several commands.
        commands "commands": Option<Vec<Word>> = None,
        /// What is written: command and reply, the reply alone, or nothing.
        log "log": LogMode = LogMode::All,
        /// Whether what qemu-io prints is written too, before the reply.
        output "output": bool = false,
    }
    /// Follows a job to its end and writes its events, as iotests' run_job does.
    RunJob("step `run-job`") {
        /// The job.
        run_job "run-job": Word,
        /// False: on `pending` the steps of `pre-finalize` run, then job-finalize or job-cancel.
        auto_finalize "auto-finalize": bool = true,
        /// False: on `concluded` job-dismiss.
        auto_dismiss "auto-dismiss": bool = false,
        /// Whether a pending job is cancelled instead of finalized.
        cancel "cancel": bool = false,
        /// What happens while the job is pending.
        pre_finalize "pre-finalize": Steps = Steps::default(),
    }
    /// Waits for an event and writes it.
    WaitEvent("step `wait-event`") {
        /// The event's name.
        wait_event "wait-event": Word,
        /// What its data must contain.
        matching "match": Map<String, Value> = Map::new(),
        /// How long the step waits before the run fails.
        timeout "timeout": Nanos = Nanos(20_000_000_000),
        /// `none`: the event is not written.
        log "log": LogMode = LogMode::All,
    }
    /// Writes the bitmaps of all nodes that have any.
    QueryBitmaps("step `query-bitmaps`") {
        /// An empty map.
        query_bitmaps "query-bitmaps": Empty,
    }
    /// Compares the number of dirty clusters of a bitmap with the expected one and writes the result.
    ExpectBitmap("step `expect-bitmap`") {
        /// The node.
        expect_bitmap "expect-bitmap": Word,
        /// The bitmap's name; absent: an anonymous one.
        name "name": Option<Word> = None,
        /// Only a bitmap that records, or only one that does not.
        recording "recording": Option<bool> = None,
        /// How many clusters should be dirty.
        clusters "clusters": u64,
    }
    /// Compares two images and writes the result.
    Compare("step `compare`") {
        /// The image and the reference.
        compare "compare": Pair,
        /// The image is first rebased (unsafely) onto this one.
        backing "backing": Option<Word> = None,
        /// The format of the image below.
        backing_format "backing-format": ImageFormat = ImageFormat::Qcow2,
        /// What should come out.
        expect "expect": Match = Match::Identical,
    }
    /// Runs qemu-img outside the machine.
    QemuImg("step `qemu-img`") {
        /// The arguments.
        qemu_img "qemu-img": Vec<Word>,
        /// What is written: arguments and output, the output alone, or nothing.
        log "log": LogMode = LogMode::All,
    }
    /// Lets virtual time pass for this actor.
    Sleep("step `sleep`") {
        /// How long.
        sleep "sleep": Nanos,
    }
    /// Writes every event seen since the last such step.
    QueryEvents("step `query-events`") {
        /// An empty map.
        query_events "query-events": Empty,
        /// What the data of an event must contain; others are passed over for good.
        matching "match": Map<String, Value> = Map::new(),
    }
    /// Adds a fault to a node.
    Fault("step `fault`") {
        /// The fault.
        fault "fault": FaultSpec,
    }
    /// What fails or is slow, where and how often.
    FaultSpec("a fault") {
        /// The node.
        node "node": Word,
        /// The operation.
        on "on": Operation,
        /// The bytes of the node it concerns; absent: all.
        range "range": Option<Range> = None,
        /// How the operation fails; absent: it does not.
        error "error": Option<Errors> = None,
        /// How many operations pass unharmed before.
        after "after": u64 = 0,
        /// How many operations it strikes; absent: all from then on.
        times "times": Option<u64> = None,
        /// What each operation takes longer.
        latency "latency": Option<Nanos> = None,
    }
    /// A seeded guest; each read is checked against the guest's own model of the disk.
    Workload("step `workload`") {
        /// The node it works at.
        workload "workload": Word,
        /// How many requests it makes.
        ops "ops": u64,
        /// How likely each kind of request is.
        mix "mix": Mix = Mix::default(),
        /// Bytes of one request.
        size "size": Spread = Spread { min: 4096, max: 65536 },
        /// What offsets and sizes are multiples of, in bytes.
        align "align": Bytes = Bytes(4096),
        /// The bytes of the disk it keeps to; absent: all.
        range "range": Option<Range> = None,
        /// How places are chosen.
        distribution "distribution": Distribution = Distribution::Uniform,
        /// Requests in flight at once.
        depth "depth": u64 = 1,
        /// `none`: the line with the summary is not written.
        log "log": LogMode = LogMode::All,
    }
    /// Weights of a workload's requests.
    Mix("a mix") {
        /// Writing data.
        write "write": u64 = 0,
        /// Writing zeroes.
        zeroes "zeroes": u64 = 0,
        /// Discarding.
        discard "discard": u64 = 0,
        /// Reading.
        read "read": u64 = 0,
        /// Flushing.
        flush "flush": u64 = 0,
    }
    /// What is asserted about the end of a run.
    Expect("`expect`") {
        /// How it ends.
        outcome "outcome": Outcome = Outcome::Passed,
    }
    /// What holds for a whole run.
    Settings("a scenario") {
        /// Whose observable behaviour is reproduced.
        compat "compat": Compatibility = Compatibility::default(),
        /// Where images live.
        storage "storage": Storage = Storage::Memory,
        /// Seeds every random choice of a run.
        seed "seed": u64 = 0,
        /// The order in which runnable tasks run.
        schedule "schedule": Schedule = Schedule::default(),
        /// What device operations take in virtual time.
        timing "timing": Timing = Timing::default(),
        /// Assertions about the end.
        expect "expect": Option<Expect> = None,
        /// Named defects that are put back into the model.
        defects "defects": Vec<DefectName> = Vec::new(),
        /// Why the scenario is known to fail; then passing is what is reported.
        expected_failure "expected-failure": Option<Text> = None,
    }
}

pub use super::values::{Compatibility, DefectName};

impl Default for Mix {
    fn default() -> Mix {
        Mix { write: 4, zeroes: 1, discard: 1, read: 4, flush: 1 }
    }
}

/// Step lists that run concurrently, ending when all have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Concurrently {
    /// Each actor's name and steps, in the order of the file.
    pub actors: Vec<(Arc<str>, Steps)>,
}

macro_rules! verbs {
    ($($(#[doc = $doc:literal])* $verb:ident = $key:literal,)*) => {
        /// What a step does.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Verb {
            $($(#[doc = $doc])* $verb($verb),)*
            /// `concurrently`: see [`Concurrently`].
            Concurrently(Concurrently),
        }

        /// The verbs in their order in the language's description; `log` is also an option of others.
        pub const VERBS: &[&str] = &[$($key,)* "concurrently", "use"];

        impl Verb {
            /// The key a step has for it.
            pub fn key(&self) -> &'static str {
                match self { $(Verb::$verb(_) => $key,)* Verb::Concurrently(_) => "concurrently" }
            }

            /// Reads the verb `key` with its options.
            pub(crate) fn read(
                key: &str,
                fields: &mut super::decode::Fields<'_>,
                context: super::decode::Context<'_>,
            ) -> Option<Verb> {
                match key { $($key => $verb::read(fields, context).map(Verb::$verb),)* _ => None }
            }

            /// Key and schema of every verb that is one record.
            pub(crate) fn schemas(generator: &mut schemars::SchemaGenerator) -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($key, <$verb as schemars::JsonSchema>::json_schema(generator)),)*]
            }
        }
    };
}

verbs! {
    /// `log`
    Log = "log",
    /// `image`
    Image = "image",
    /// `vm`
    Vm = "vm",
    /// `execute`
    Execute = "execute",
    /// `qemu-io`
    QemuIo = "qemu-io",
    /// `run-job`
    RunJob = "run-job",
    /// `wait-event`
    WaitEvent = "wait-event",
    /// `query-bitmaps`
    QueryBitmaps = "query-bitmaps",
    /// `expect-bitmap`
    ExpectBitmap = "expect-bitmap",
    /// `compare`
    Compare = "compare",
    /// `qemu-img`
    QemuImg = "qemu-img",
    /// `sleep`
    Sleep = "sleep",
    /// `fault`
    Fault = "fault",
    /// `workload`
    Workload = "workload",
    /// `query-events`
    QueryEvents = "query-events",
}

/// One step, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The line it begins at.
    pub line: u32,
    /// The lines of the `use` steps that led to it, outermost first.
    pub via: Arc<[u32]>,
    /// Its label.
    pub label: Option<Arc<str>>,
    /// What it does.
    pub verb: Arc<Verb>,
}
