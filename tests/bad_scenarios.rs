//! Wrong scenarios and the exact words in which each is refused.
//!
//! `bad/NAME.yaml` is the scenario, `bad/NAME.err` what is printed. Run with `BLESS=1` to write the latter anew, and
//! read the difference before it is committed.

use std::path::{Path, PathBuf};

use backsim::scenario;
use proptest::prelude::*;

/// Everything that is wrong with a scenario, whether seen when it is read or when its cases are expanded.
fn mistakes(name: &str, text: &str) -> Option<String> {
    let result = scenario::parse(name, text).and_then(|scenario| scenario.cases());
    result.err().map(|mistakes| format!("{mistakes}\n"))
}

fn bad_scenarios() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let entries = std::fs::read_dir(directory).expect("the directory of wrong scenarios");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths
}

#[test]
fn every_mistake_is_told_in_its_own_words() {
    let bless = std::env::var_os("BLESS").is_some();
    let paths = bad_scenarios();
    assert!(paths.len() >= 60, "only {} wrong scenarios", paths.len());
    let mut differing = Vec::new();
    for path in paths {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a readable file");
        let found = mistakes(&name, &text).unwrap_or_else(|| "no mistake\n".to_owned());
        let expected = path.with_extension("err");
        if bless {
            std::fs::write(&expected, &found).expect("a writable file");
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        if found != wanted {
            differing.push(format!("--- {name}\nexpected:\n{wanted}found:\n{found}"));
        }
        assert_ne!(found, "no mistake\n", "{name} is right");
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let text = format!("description: {}\n", "x".repeat(scenario::MAX_FILE));
    let told = mistakes("large.yaml", &text).expect("a mistake");
    let size = text.len();
    let limit = scenario::MAX_FILE;
    let wanted = format!("large.yaml: the file is too large: {size} bytes\n  = expected: at most {limit} bytes\n");
    assert_eq!(told, wanted);
}

#[test]
fn aliases_can_not_make_a_file_larger_than_it_is() {
    let mut text = String::from("vars:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let below = format!("*a{}", i - 1);
        let ten = vec![below; 10].join(", ");
        text += &format!("  a{i}: &a{i} [{ten}]\n");
    }
    let told = mistakes("bomb.yaml", &(text + "steps: []\n")).expect("a mistake");
    assert!(told.contains("the file has too many values"), "{told}");
}

#[test]
fn procedures_can_not_make_endlessly_many_steps() {
    let mut text = String::from("procedures:\n  p0: {steps: [{log: x}]}\n");
    for i in 1..30 {
        let below = format!("{{use: p{}}}", i - 1);
        text += &format!("  p{i}: {{steps: [{below}, {below}]}}\n");
    }
    let told = mistakes("bomb.yaml", &(text + "steps: [{use: p29}]\n")).expect("a mistake");
    assert!(told.contains("the scenario has too many steps"), "{told}");
}

#[test]
fn a_missing_file_is_named() {
    let told = scenario::load(Path::new("no/such/file.yaml")).expect_err("no such file");
    assert_eq!(told.to_string(), "no/such/file.yaml: No such file or directory (os error 2)");
}

#[test]
fn aliases_can_not_make_a_file_deeper_than_it_may_be() {
    let mut text = String::from("vars:\n  a0: &a0 [x]\n");
    for i in 1..100 {
        text += &format!("  a{i}: &a{i} [*a{}]\n", i - 1);
    }
    let told = mistakes("deep.yaml", &(text + "steps: []\n")).expect("a mistake");
    assert!(told.contains("nested too deep"), "{told}");
}

#[test]
fn an_endless_expression_does_not_exhaust_the_stack() {
    for link in ["not ", "a.b + ", "(", "[", "-", "1 if 1 else "] {
        let within = link.repeat(2000 / link.len());
        let beyond = link.repeat(50_000);
        for chain in [within, beyond] {
            let text = format!("vars: {{a: 1}}\nsteps:\n  - log: \"{{{{ {chain}1 }}}}\"\n");
            // Right or wrong is MiniJinja's business; that there is an answer is ours.
            let _ = mistakes("chain.yaml", &text);
        }
    }
}

const RIGHT: &str = include_str!("../scenarios/257-bitmap-sync.yaml");

proptest! {
    /// A scenario with bytes changed, cut out or put in is read or refused; nothing else happens to it.
    #[test]
    fn no_damage_makes_the_reader_panic(
        edits in prop::collection::vec((0..RIGHT.len(), 0..4_usize, prop::sample::select(&b"{}[]:,-'\"|>&*!#%@ \n\tax0\xff"[..])), 1..8)
    ) {
        let mut bytes = RIGHT.as_bytes().to_vec();
        for (at, how, byte) in edits {
            let at = at % bytes.len().max(1);
            if bytes.is_empty() {
                break;
            }
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some(told) = mistakes("damaged.yaml", &text) {
            prop_assert!(told.starts_with("damaged.yaml:"), "{}", told);
        }
    }
}
