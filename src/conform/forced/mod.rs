//! Schedules carried over: an interleaving that the model found, forced on a real QEMU.
//!
//! A replay file says in which order clients act and devices answer. Clients are ours, and where a blkdebug node
//! lies between a raw node and its file, its breakpoints hold each read and write until its turn: so the same
//! order can be brought about in a real QEMU as far as its own yield points allow. What decides inside QEMU
//! (which bottom half runs next, a timer, a second request that begins in the same breath) can't be forced; it is
//! counted and named. Must never call two runs the same because nothing was forced.

mod backend;
mod graph;
mod holds;
mod plan;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::explore::file::ReplayFile;
use crate::explore::schedule::Replay;
use crate::scenario::Case;
use crate::scenario::ast::Compatibility;
use crate::scenario::run::{Recorder, run_recorded};
use crate::scenario::simulate::{SimOptions, simulate};
use crate::sim::Choices;

use super::guests::guest_nodes;
use super::left::show_bitmaps;
use super::real::{RealOptions, RealQemu, TroubleKind};
use super::real_run::ready;
use super::tools::Qemu;
use super::verdict::{RealSide, Side, Verdict, compare};

pub use backend::Forced;
use backend::{ForcedQemu, Setting};
use plan::Planner;

/// What came of carrying a schedule over.
#[derive(Clone, Debug)]
pub struct ForcedReport {
    /// How many moves the schedule has.
    pub moves: usize,
    /// How far it was forced.
    pub forced: Forced,
    /// Both transcripts compared, with the bitmaps at the end.
    pub verdict: Verdict,
    /// Images that hold different data at the end, with what the image tool says.
    pub images: Vec<String>,
    /// Departures of the file that the model of today does not take.
    pub misfits: Vec<String>,
}

impl ForcedReport {
    /// Whether every move came in its turn. The moves are those that the model really made, so a departure that
    /// does not fit any more takes nothing from the comparison.
    pub fn is_complete(&self) -> bool {
        let Forced { actors, held, in_place, .. } = &self.forced;
        actors + held + in_place == self.moves
    }

    /// Whether both sides wrote the same and left the same data.
    pub fn is_same(&self) -> bool {
        self.verdict == Verdict::Same && self.images.is_empty()
    }
}

/// How long QEMU may leave a command open while requests are held.
const PATIENCE: Duration = Duration::from_secs(5);

/// Forces the schedule of `file` on `qemu`. Defects in the file are left out: a real QEMU has its own.
///
/// An error if the file is not about one `concurrently` step over nodes at which requests can be held.
pub fn force(qemu: &Qemu, file: &ReplayFile) -> Result<ForcedReport, String> {
    let setup = file.setup()?;
    let mut case = setup.case.clone();
    case.settings.compat = Compatibility(qemu.compat());
    let points = graph::holding_points(&case.steps);
    if points.is_empty() {
        return Err(
            "no request of it can be held: that takes a named blkdebug node between a raw node and a named file node"
                .to_owned(),
        );
    }
    let actors = plan::actors(&case.steps);
    if actors.is_empty() {
        return Err("it has no `concurrently` step, so there is nothing to force".to_owned());
    }
    show_bitmaps(&mut case);
    let dirs = tempfile::tempdir().map_err(|error| format!("no directory for the runs: {error}"))?;
    let (model_dir, real_dir) = (dirs.path().join("model"), dirs.path().join("real"));
    for dir in [&model_dir, &real_dir] {
        std::fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    let (replay, fit) = Replay::new(&file.schedule());
    let (planner, plan) = Planner::new(Box::new(replay), actors);
    let options = SimOptions {
        choices: Choices::with(Box::new(planner)),
        directory: Some(model_dir.clone()),
        // Departures are named by what actors say that they do next.
        observe: Some(Box::new(|sim| sim.trace().want_detail())),
        ..SimOptions::default()
    };
    let model: Side = simulate(&case, options)?.outcome.into();
    let misfits = fit.take().missed.iter().map(ToString::to_string).collect();
    let setting = Setting { plan: plan.take(), points, nodes: guest_nodes(&case.steps) };
    let moves = setting.plan.moves.len();
    let (real, forced) = run(qemu, &case, setting, &real_dir)?;
    let verdict = compare(&[real], &model, &[]);
    Ok(ForcedReport { moves, forced, verdict, images: different_images(qemu, &model_dir, &real_dir), misfits })
}

fn run(qemu: &Qemu, case: &Case, setting: Setting, dir: &Path) -> Result<(RealSide, Forced), String> {
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    let patience = qemu.options.patience.min(PATIENCE);
    let real = RealQemu::new(&RealOptions { patience, ..qemu.options.clone() }, &dir)
        .map_err(|trouble| trouble.to_string())?;
    let backend = ForcedQemu::new(real.clone(), setting);
    let recorder = Recorder::default();
    let outcome = ready(run_recorded(&backend, case, &recorder)).ok_or("the run waits for nothing")?;
    let (trouble, mut forced) = (real.trouble(), backend.forced());
    if matches!(&trouble, Some(trouble) if matches!(trouble.kind, TroubleKind::Hung { .. })) {
        let why = "all that follows: QEMU waits for every request of a node, which one that is held can't end, and \
                   its monitor does not answer meanwhile";
        forced.free.push(why.to_owned());
    }
    Ok((RealSide { side: outcome.into(), trouble }, forced))
}

/// The images of both sides whose guests would read different data.
fn different_images(qemu: &Qemu, model: &Path, real: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(model) else { return Vec::new() };
    let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    names.sort();
    let mut different = Vec::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let other = real.join(format!("PID-{name}"));
        let compared = Command::new(&qemu.options.qemu_img).arg("compare").arg("-U").arg(&path).arg(&other).output();
        match compared {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = [output.stderr, output.stdout].concat();
                different.push(format!("{name}: {}", String::from_utf8_lossy(&said).trim_end()));
            }
            Err(error) => different.push(format!("{name}: {error}")),
        }
    }
    different
}
