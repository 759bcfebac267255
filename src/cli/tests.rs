//! The commands with a runner that only writes the `log` steps, so that they can be tested without a
//! simulator: `PANIC` in a text breaks it, `FAIL` ends the run.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::report::Style;
use crate::scenario::Case;
use crate::scenario::ast::Verb;
use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::{CaseOutcome, Ending};
use crate::scenario::transcript::Transcript;

use super::engine::{CaseRun, RunOptions};
use super::exit::Exit;
use super::terminal::Terminal;

fn echo(case: &Case, options: &RunOptions) -> Result<CaseRun, String> {
    let mut transcript = Transcript::default();
    let mut ending = Ending::Passed;
    for step in case.steps.iter() {
        let Verb::Log(log) = &*step.verb else { continue };
        let text = log.log.0.replace("COMPAT", case.settings.compat.0.name());
        assert!(!text.contains("PANIC"), "a step says {text}");
        if text.contains("FAIL") {
            ending = Ending::Failed { line: step.line, kind: RunErrorKind::Failed, why: text };
            break;
        }
        transcript.log(step.line, &text.replace("SEED", &case.settings.seed.to_string()));
    }
    if let Some(dir) = &options.dir {
        fs::write(dir.join("PID-img"), "an image").expect("the runner's directory exists");
    }
    Ok(CaseRun { outcome: CaseOutcome { transcript, ending }, trace: Vec::new(), stderr: String::new() })
}

/// A project in a directory of its own.
struct Project {
    home: tempfile::TempDir,
    ci: bool,
}

/// What a command gave.
struct Given {
    exit: Exit,
    out: String,
    err: String,
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Project {
        let project = Project { home: tempfile::tempdir().expect("a temporary directory"), ci: false };
        for (name, text) in files {
            project.write(name, text);
        }
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file below the project")).expect("a directory can be made");
        fs::write(path, text).expect("a file can be written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file was written")
    }

    /// Runs a command; `@` stands for the project's directory.
    fn backsim(&self, args: &str) -> Given {
        let home = self.home.path().display().to_string();
        let words = args.split_whitespace().map(|word| OsString::from(word.replace('@', &home)));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut terminal =
            Terminal { out: &mut out, err: &mut err, style: Style::default(), progress: false, ci: self.ci };
        let exit = super::execute([OsString::from("backsim")].into_iter().chain(words), &mut terminal, echo);
        let shown = |bytes| String::from_utf8(bytes).expect("output is UTF-8").replace(&home, "@");
        Given { exit, out: shown(out), err: shown(err) }
    }
}

impl Given {
    #[track_caller]
    fn ends(self, exit: Exit) -> Given {
        assert_eq!(self.exit, exit, "out:\n{}\nerr:\n{}", self.out, self.err);
        self
    }
}

const TWO: &str =
    "cases: [{x: one}, {x: two}]\ncase-name: \"{{ x }}\"\nsteps:\n  - log: \"hello {{ x }}\"\n  - log: done\n";

#[test]
fn run_writes_transcripts_one_after_another_and_nothing_else() {
    let project = Project::new(&[("a.yaml", TWO), ("b.yaml", "steps: [{log: seed SEED on COMPAT}]\n")]);
    let given = project.backsim("run @/a.yaml @/b.yaml --compat qemu-10.0 --seed 7").ends(Exit::Good);
    assert_eq!(given.out, "hello one\ndone\nhello two\ndone\nseed 7 on qemu-10.0\n");
    assert_eq!(given.err, "");
    let given = project.backsim("run @/a.yaml @/b.yaml --case two").ends(Exit::Good);
    assert_eq!(given.out, "hello two\ndone\n");
}

#[test]
fn run_says_which_cases_there_are() {
    let project = Project::new(&[("a.yaml", TWO)]);
    let given = project.backsim("run @/a.yaml --case three").ends(Exit::Nothing);
    let expected =
        "no case is called `three`\n  = expected: `one`, `two`\n  = hint: `backsim list FILE` shows all cases\n";
    assert_eq!((given.out.as_str(), given.err.as_str()), ("", expected));
}

#[test]
fn run_finds_every_mistake_before_anything_runs() {
    let project = Project::new(&[("a.yaml", TWO), ("b.yaml", "steps: [{lag: x}]\n"), ("c.yaml", "steps: 1\n")]);
    let given = project.backsim("run @/a.yaml @/b.yaml @/c.yaml").ends(Exit::Mistake);
    assert_eq!(given.out, "");
    assert!(given.err.contains("@/b.yaml:1:") && given.err.contains("@/c.yaml:1:"), "{}", given.err);
}

#[test]
fn run_tells_how_a_case_ended() {
    let project = Project::new(&[
        ("a.yaml", "steps:\n  - log: one\n  - log: FAIL here\n  - log: two\n"),
        ("b.yaml", "expect: {outcome: failed}\nsteps: [{log: FAIL}]\n"),
        ("c.yaml", "expect: {outcome: deadlock}\nsteps: [{log: x}]\n"),
    ]);
    let given = project.backsim("run @/a.yaml @/b.yaml").ends(Exit::Different);
    assert_eq!(given.out, "one\n");
    assert_eq!(given.err, "@/a.yaml:3: case `a`: the run failed: FAIL here\n");
    let given = project.backsim("run @/c.yaml").ends(Exit::Different);
    assert_eq!(given.err, "@/c.yaml:1: case `c`: the run passed (`expect` says: deadlock)\n");
}

#[test]
fn a_panic_in_a_run_is_a_defect_of_backsim() {
    let project = Project::new(&[("a.yaml", "steps: [{log: PANIC}]\n"), ("b.yaml", "steps: [{log: fine}]\n")]);
    let given = project.backsim("run @/a.yaml @/b.yaml").ends(Exit::Broken);
    assert_eq!(given.out, "fine\n");
    assert!(given.err.starts_with("@/a.yaml:1: case `a`: a broken invariant of backsim's own: a step says PANIC\n"));
    assert!(given.err.contains("please report it"), "{}", given.err);
}

#[test]
fn images_are_kept_in_a_new_directory_only() {
    let project = Project::new(&[("a.yaml", TWO), ("b/a.yaml", "steps: [{log: x}]\n")]);
    project.backsim("run @/a.yaml @/b/a.yaml --storage file --dir @/d").ends(Exit::Good);
    for file in ["d/a/01-one/PID-img", "d/a/02-two/PID-img", "d/a/01-a/PID-img"] {
        assert!(project.path(file).exists(), "{file}");
    }
    let given = project.backsim("run @/a.yaml --storage file --dir @/d").ends(Exit::Mistake);
    assert!(given.err.starts_with("@/d: this directory is not empty"), "{}", given.err);
    project.backsim("run @/a.yaml --dir @/new").ends(Exit::Mistake);
    assert!(!project.path("new").exists());
}

#[test]
fn a_trace_never_overwrites_a_scenario() {
    let project = Project::new(&[("a.yaml", TWO)]);
    let given = project.backsim("run @/a.yaml --trace @/a.yaml").ends(Exit::Mistake);
    assert!(given.err.starts_with("@/a.yaml: --trace would overwrite a scenario"), "{}", given.err);
    assert_eq!(project.read("a.yaml"), TWO);
    project.backsim("run @/a.yaml --trace @/t.json").ends(Exit::Good);
    let trace: serde_json::Value = serde_json::from_str(&project.read("t.json")).expect("JSON");
    let name = trace["traceEvents"][0]["args"]["name"].as_str().expect("the process has a name");
    assert!(name.ends_with("/a.yaml: one"), "{name}");
}

/// The project of the check's tests: one scenario as expected under both versions.
fn checked() -> Project {
    Project::new(&[
        ("scenarios/two.yaml", TWO),
        ("expected/two.qemu-7.2.out", "hello one\ndone\nhello two\ndone\n"),
        ("expected/two.qemu-10.0.out", "hello one\ndone\nhello two\ndone\n"),
    ])
}

#[test]
fn check_says_one_line_a_case_and_a_summary() {
    let given = checked().backsim("check @/scenarios").ends(Exit::Good);
    let expected = "ok       two qemu-7.2 one\nok       two qemu-7.2 two\nok       two qemu-10.0 one\n\
                    ok       two qemu-10.0 two\n4 cases: 4 as expected\n";
    assert_eq!(given.out, expected);
}

#[test]
fn a_difference_is_shown_with_the_scenarios_line() {
    let project = checked();
    project.write("expected/two.qemu-7.2.out", "hello one\ndone\nhello 2\ndone\n");
    let given = project.backsim("check @/scenarios --compat qemu-7.2").ends(Exit::Different);
    let expected = "ok       two qemu-7.2 one
differs  two qemu-7.2 two
--- @/expected/two.qemu-7.2.out
+++ @/scenarios/two.yaml (qemu-7.2)
@@ -1,4 +1,4 @@ @/scenarios/two.yaml:4: two
 hello one
 done
-hello 2
+hello two
 done
2 cases: 1 as expected, 1 not as expected
";
    assert_eq!(given.out, expected);
}

#[test]
fn what_is_missing_or_left_over_names_its_remedy() {
    let project = checked();
    fs::remove_file(project.path("expected/two.qemu-7.2.out")).expect("it was there");
    project.write("expected/gone.qemu-7.2.out", "");
    project.write("expected/two.qemu-9.0.out", "");
    let given = project.backsim("check @/scenarios").ends(Exit::Different);
    for line in [
        "  = hint: to make it: backsim check --bless --compat qemu-7.2 @/scenarios/two.yaml\n",
        "  = hint: to remove it: rm @/expected/gone.qemu-7.2.out\n",
        "  = hint: to remove it: rm @/expected/two.qemu-9.0.out\n",
    ] {
        assert!(given.out.contains(line), "{line}\n{}", given.out);
    }
    assert!(given.out.ends_with("4 cases: 2 as expected, 2 not as expected, 2 orphans\n"), "{}", given.out);
}

#[test]
fn blessing_shows_and_writes_the_change() {
    let project = checked();
    project.write("expected/two.qemu-7.2.out", "hello one\ndone\n");
    fs::remove_file(project.path("expected/two.qemu-10.0.out")).expect("it was there");
    let given = project.backsim("check @/scenarios --bless").ends(Exit::Good);
    assert!(given.out.contains("\n+hello two\n+done\nblessed: @/expected/two.qemu-7.2.out changed"), "{}", given.out);
    assert!(given.out.contains("blessed: @/expected/two.qemu-10.0.out is new, 4 lines"), "{}", given.out);
    let given = project.backsim("check @/scenarios").ends(Exit::Good);
    assert!(given.out.ends_with("\n4 cases: 4 as expected\n"), "{}", given.out);
}

#[test]
fn blessing_is_refused_in_ci_and_for_what_failed() {
    let mut project = checked();
    project.write("scenarios/two.yaml", "steps: [{log: x}, {log: FAIL}]\n");
    let given = project.backsim("check @/scenarios --bless").ends(Exit::Different);
    assert!(given.out.contains("not blessed: a run did not end as it should"), "{}", given.out);
    project.ci = true;
    let given = project.backsim("check @/scenarios --bless").ends(Exit::Mistake);
    assert!(given.err.starts_with("--bless is refused where CI is set"), "{}", given.err);
    assert_eq!(project.read("expected/two.qemu-7.2.out"), "hello one\ndone\nhello two\ndone\n");
}

#[test]
fn an_expected_failure_may_not_pass() {
    let project = checked();
    project.write("scenarios/two.yaml", &format!("expected-failure: not modelled\n{TWO}"));
    let given = project.backsim("check @/scenarios --compat qemu-7.2").ends(Exit::Different);
    let line = "passes   two qemu-7.2 one (marked as an expected failure: not modelled)\n";
    assert!(given.out.contains(line), "{}", given.out);
    project.write("expected/two.qemu-7.2.out", "something else\n");
    let given = project.backsim("check @/scenarios --compat qemu-7.2").ends(Exit::Good);
    assert!(given.out.contains("known    two qemu-7.2 one (expected failure: not modelled)\n"), "{}", given.out);
    let given = project.backsim("check @/scenarios --compat qemu-7.2 --bless").ends(Exit::Good);
    assert!(given.out.contains("not blessed: a case is marked"), "{}", given.out);
    assert_eq!(project.read("expected/two.qemu-7.2.out"), "something else\n");
}

#[test]
fn the_worst_end_is_the_status_of_a_check() {
    let project = checked();
    project.write("scenarios/mistake.yaml", "steps: [{lag: x}]\n");
    let given = project.backsim("check @/scenarios").ends(Exit::Mistake);
    assert!(given.out.contains("mistaken mistake\n@/scenarios/mistake.yaml:1:"), "{}", given.out);
    project.write("scenarios/panic.yaml", "steps: [{log: PANIC}]\n");
    let given = project.backsim("check @/scenarios").ends(Exit::Broken);
    assert!(given.out.contains("broken   panic qemu-7.2 panic\n"), "{}", given.out);
}

#[test]
fn junit_is_the_same_whatever_the_number_of_threads() {
    let project = checked();
    project.write("scenarios/more/other.yaml", "steps: [{log: x}]\n");
    let run = |jobs: u32| {
        project.backsim(&format!("check @/scenarios --jobs {jobs} --junit @/{jobs}.xml")).ends(Exit::Different).out
    };
    assert_eq!(run(1), run(3));
    assert_eq!(project.read("1.xml"), project.read("3.xml"));
    let text = project.read("1.xml");
    assert!(text.contains("<testcase classname=\"qemu-7_2.more.other\" name=\"other\">"), "{text}");
    assert!(text.contains("<testsuite name=\"two qemu-10.0\" tests=\"2\" failures=\"0\""), "{text}");
}

#[test]
fn shards_add_up() {
    let project = checked();
    for n in 0..5 {
        project.write(&format!("scenarios/{n}.yaml"), "steps: [{log: x}]\n");
        project.write(&format!("expected/{n}.qemu-7.2.out"), "x\n");
        project.write(&format!("expected/{n}.qemu-10.0.out"), "x\n");
    }
    for kind in ["slice", "hash"] {
        let part = |m: u32| project.backsim(&format!("check @/scenarios --shard {kind}:{m}/2"));
        let lines: usize = [1, 2].map(|m| part(m).out.matches("ok  ").count()).iter().sum();
        assert_eq!(lines, 14, "{kind}");
    }
    let given = project.backsim("check @/scenarios --shard slice:7/7").ends(Exit::Nothing);
    assert_eq!(given.err, "no scenario falls to this shard\n");
}

#[test]
fn expected_transcripts_may_lie_beside_a_scenario() {
    let project = Project::new(&[("c/a.yaml", "steps: [{log: COMPAT}]\n"), ("c/a.qemu-7.2.out", "qemu-7.2\n")]);
    let given = project.backsim("check @/c --compat qemu-7.2").ends(Exit::Good);
    assert!(given.out.starts_with("ok       @/c/a qemu-7.2 a\n"), "{}", given.out);
}

#[test]
fn nothing_to_do_has_a_status_of_its_own() {
    let project = Project::new(&[("scenarios/readme.txt", "")]);
    let given = project.backsim("check @/scenarios").ends(Exit::Nothing);
    assert!(given.err.starts_with("@/scenarios: no scenario found\n"), "{}", given.err);
    let given = project.backsim("check @/nowhere").ends(Exit::Mistake);
    assert!(given.err.starts_with("@/nowhere: no such file or directory\n"), "{}", given.err);
}

#[test]
fn list_names_every_case() {
    let project = checked();
    let given = project.backsim("list @/scenarios").ends(Exit::Good);
    assert_eq!(given.out, "@/scenarios/two.yaml: one\n@/scenarios/two.yaml: two\n");
}

/// A reader that goes away at once.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let project = checked();
    let file: &Path = &project.path("scenarios/two.yaml");
    for command in ["run", "check", "list"] {
        let mut err = Vec::new();
        let mut terminal =
            Terminal { out: &mut Closed, err: &mut err, style: Style::default(), progress: false, ci: false };
        let args = [OsString::from("backsim"), command.into(), file.into()];
        assert_eq!(super::execute(args, &mut terminal, echo), Exit::Good, "{command}");
        assert!(err.is_empty(), "{}", String::from_utf8_lossy(&err));
    }
}
