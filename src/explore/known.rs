//! The list of known findings: what QEMU itself is known to do wrong, so that searches go on past it.
//!
//! It lies in `findings/known.list` beside the directory of the scenario. An entry counts only for scenarios whose text
//! uses all that the finding needs, so that nothing else of the same kind is passed over; and never for the scenario that
//! was kept to show the finding.

use std::path::Path;

use serde::Deserialize;

use super::model::{Invariant, Violation};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Finding {
    /// The scenario beside the list that shows it, without `.yaml`.
    pub finding: String,
    /// The invariant that it breaks.
    pub invariant: String,
    /// What the violation says, in part.
    #[serde(default)]
    pub text: String,
    /// What a scenario's text must hold for the finding to be possible.
    pub uses: Vec<String>,
}

impl Finding {
    /// As `--known` is given it.
    pub fn signature(&self) -> String {
        if self.text.is_empty() { self.invariant.clone() } else { format!("{}:{}", self.invariant, self.text) }
    }

    fn may_show_in(&self, scenario: &Path, text: &str) -> bool {
        let is_its_own = scenario.file_stem().is_some_and(|stem| stem == self.finding.as_str());
        !is_its_own && self.uses.iter().all(|part| text.contains(part.as_str()))
    }
}

/// Signatures as `--known` is given them: invariant's name, and part of the text after a colon.
pub fn read(signatures: &[String]) -> Result<Vec<(String, String)>, String> {
    let read = |signature: &String| {
        let (name, part) = signature.split_once(':').unwrap_or((signature, ""));
        Invariant::from_name(name).ok_or_else(|| format!("no invariant is called '{name}'"))?;
        Ok((name.to_owned(), part.trim().to_owned()))
    };
    signatures.iter().map(read).collect()
}

/// Whether a violation is among those that are known: invariant's name and part of the text.
pub fn is_known(known: &[(String, String)], violation: &Violation) -> bool {
    let name = violation.invariant.name();
    known.iter().any(|(invariant, part)| invariant == name && violation.text.contains(part.as_str()))
}

/// Reads a list.
fn parse(text: &str) -> Result<Vec<Finding>, String> {
    let found: Vec<Finding> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    for finding in &found {
        Invariant::from_name(&finding.invariant)
            .ok_or_else(|| format!("no invariant is called '{}'", finding.invariant))?;
        if finding.uses.is_empty() {
            return Err(format!("{} does not say what it needs", finding.finding));
        }
    }
    Ok(found)
}

/// The findings that a search of this scenario may meet; none where there is no list.
pub fn beside(scenario: &Path, text: &str) -> Result<Vec<Finding>, String> {
    let directory = scenario.parent().unwrap_or(Path::new(""));
    let list = directory.join("../findings/known.list");
    let Ok(listed) = std::fs::read_to_string(&list) else { return Ok(Vec::new()) };
    let all = parse(&listed).map_err(|error| format!("{}: {error}", list.display()))?;
    Ok(all.into_iter().filter(|finding| finding.may_show_in(scenario, text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_where_it_may_show_only() {
        let text = "- {finding: f, invariant: guest, text: holds, uses: [discard, qcow2]}\n";
        let found = parse(text).expect("a list").remove(0);
        assert_eq!(found.signature(), "guest:holds");
        assert!(found.may_show_in(Path::new("x/other.yaml"), "format: qcow2 and discard"));
        assert!(!found.may_show_in(Path::new("x/other.yaml"), "format: qcow2"));
        assert!(!found.may_show_in(Path::new("x/f.yaml"), "format: qcow2 and discard"));
    }

    #[test]
    fn a_list_that_would_pass_everything_over_is_refused() {
        assert!(parse("- {finding: f, invariant: guest, uses: []}\n").is_err());
        assert!(parse("- {finding: f, invariant: gust, uses: [qcow2]}\n").is_err());
    }
}
