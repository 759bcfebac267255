//! JUnit XML in the dialect that Jenkins reads, and everybody else with it.
//!
//! Carries no times, no host and no id, so that the same results are the same bytes.

use std::fmt::Write;

/// The results that belong together: one scenario under one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// The group that its cases show under; Jenkins takes all before the last dot for a package.
    pub class: String,
    /// Its cases.
    pub cases: Vec<TestCase>,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestCase {
    /// Its name.
    pub name: String,
    /// What came out.
    pub result: TestResult,
}

/// What came out of a case: a headline, and a text with the details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestResult {
    /// As it should be.
    Passed,
    /// Known not to be as it should be, and why.
    Skipped(String),
    /// Not as it should be.
    Failure(String, String),
    /// Could not be run.
    Error(String, String),
}

/// The whole file.
pub fn junit(suites: &[Suite]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = || suites.iter().flat_map(|suite| &suite.cases);
    let _ = writeln!(out, "<testsuites name=\"backsim\" {}>", counts(all()));
    for suite in suites {
        let counts = counts(suite.cases.iter());
        let _ = writeln!(out, "  <testsuite name=\"{}\" {counts}>", escape(&suite.name));
        for case in &suite.cases {
            write_case(&mut out, suite, case);
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn counts<'a>(cases: impl Iterator<Item = &'a TestCase>) -> String {
    let (mut tests, mut failures, mut errors, mut skipped) = (0, 0, 0, 0);
    for case in cases {
        tests += 1;
        match case.result {
            TestResult::Passed => {}
            TestResult::Skipped(_) => skipped += 1,
            TestResult::Failure(..) => failures += 1,
            TestResult::Error(..) => errors += 1,
        }
    }
    format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\"")
}

fn write_case(out: &mut String, suite: &Suite, case: &TestCase) {
    let (class, name) = (escape(&suite.class), escape(&case.name));
    let _ = write!(out, "    <testcase classname=\"{class}\" name=\"{name}\"");
    let (element, headline, details) = match &case.result {
        TestResult::Passed => {
            out.push_str("/>\n");
            return;
        }
        TestResult::Skipped(why) => ("skipped", why, ""),
        TestResult::Failure(headline, details) => ("failure", headline, details.as_str()),
        TestResult::Error(headline, details) => ("error", headline, details.as_str()),
    };
    let headline = escape(headline);
    let _ = write!(out, ">\n      <{element} message=\"{headline}\"");
    match details {
        "" => out.push_str("/>\n"),
        details => {
            let _ = writeln!(out, ">{}</{element}>", escape(details));
        }
    }
    out.push_str("    </testcase>\n");
}

/// Text as it may stand in an attribute or an element. XML has no place for most control characters; each
/// is replaced by the character that stands for the unreadable.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_jenkins_reads() {
        let case = |name: &str, result| TestCase { name: name.to_owned(), result };
        let suite = Suite {
            name: "257 qemu-7.2".to_owned(),
            class: "qemu-7_2.257".to_owned(),
            cases: vec![
                case("a/<b>", TestResult::Passed),
                case("b", TestResult::Skipped("known: \"x\"".to_owned())),
                case("c", TestResult::Failure("differs".to_owned(), "-a\n+b & \x1b\n".to_owned())),
                case("d", TestResult::Error("broken".to_owned(), String::new())),
            ],
        };
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="backsim" tests="4" failures="1" errors="1" skipped="1">
  <testsuite name="257 qemu-7.2" tests="4" failures="1" errors="1" skipped="1">
    <testcase classname="qemu-7_2.257" name="a/&lt;b&gt;"/>
    <testcase classname="qemu-7_2.257" name="b">
      <skipped message="known: &quot;x&quot;"/>
    </testcase>
    <testcase classname="qemu-7_2.257" name="c">
      <failure message="differs">-a&#10;+b &amp; �&#10;</failure>
    </testcase>
    <testcase classname="qemu-7_2.257" name="d">
      <error message="broken"/>
    </testcase>
  </testsuite>
</testsuites>
"#;
        assert_eq!(junit(&[suite]), expected);
    }
}
