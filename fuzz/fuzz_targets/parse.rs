//! Any bytes: reading a scenario and working out its cases ends in cases or in mistakes, never in a panic,
//! and every mistake points into the file.
#![no_main]

use backsim::scenario::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse("fuzz.yaml", text).and_then(|scenario| scenario.cases()) {
        Ok(cases) => assert!(!cases.is_empty(), "a scenario has at least one case"),
        Err(mistakes) => {
            assert!(!mistakes.items.is_empty(), "an error says what is wrong");
            // A lone carriage return ends a line of YAML.
            let lines = text.replace("\r\n", "\n").split(['\r', '\n']).count();
            for mistake in &mistakes.items {
                assert!(mistake.pos.line as usize <= lines + 1, "{mistake}");
                assert!(!mistake.to_string().is_empty(), "a mistake has words");
            }
        }
    }
});
