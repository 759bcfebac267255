//! The list of known findings: what QEMU itself is known to do wrong, so that searches go on past it.
//!
//! It lies in `findings/known.list` beside the directory of the scenario. An entry counts only for scenarios whose text
//! uses all that the finding needs, so that nothing else of the same kind is passed over; and never for the scenario that
//! was kept to show the finding.

use std::path::Path;

use serde::Deserialize;

use crate::quirks::Compat;

use super::model::{Breach, Invariant, Violation};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Finding {
    /// The scenario beside the list that shows it, without `.yaml`.
    pub finding: String,
    /// What breaks: an invariant, or in which way one does.
    pub breaks: String,
    /// What the violation says, in part.
    #[serde(default)]
    pub text: String,
    /// The only version that does it; absent: all do.
    #[serde(default)]
    pub compat: Option<String>,
    /// What a scenario's text must hold for the finding to be possible.
    pub uses: Vec<String>,
}

impl Finding {
    /// As `--known` is given it.
    pub fn signature(&self) -> String {
        if self.text.is_empty() { self.breaks.clone() } else { format!("{}:{}", self.breaks, self.text) }
    }

    fn may_show_in(&self, scenario: &Path, text: &str, versions: &[Compat]) -> bool {
        let is_its_own = scenario.file_stem().is_some_and(|stem| stem == self.finding.as_str());
        let has_it = |version: &Compat| self.compat.as_deref().is_none_or(|compat| compat == version.name());
        !is_its_own && versions.iter().any(has_it) && self.uses.iter().all(|part| text.contains(part.as_str()))
    }
}

/// Whether an invariant, or a way to break one, has this name.
fn must_break(name: &str) -> Result<(), String> {
    let is_there = Invariant::from_name(name).is_some() || Breach::from_name(name).is_some();
    if is_there { Ok(()) } else { Err(format!("no invariant and no breach is called '{name}'")) }
}

/// Signatures as `--known` is given them: the name of an invariant or a breach, and part of the text after a colon.
pub fn read(signatures: &[String]) -> Result<Vec<(String, String)>, String> {
    let read = |signature: &String| {
        let (name, part) = signature.split_once(':').unwrap_or((signature, ""));
        must_break(name)?;
        Ok((name.to_owned(), part.trim().to_owned()))
    };
    signatures.iter().map(read).collect()
}

/// Whether a violation is among those that are known: invariant's or breach's name and part of the text.
pub fn is_known(known: &[(String, String)], violation: &Violation) -> bool {
    let names = [violation.invariant().name(), violation.breach.name()];
    known.iter().any(|(name, part)| names.contains(&name.as_str()) && violation.text.contains(part.as_str()))
}

/// Reads a list.
fn parse(text: &str) -> Result<Vec<Finding>, String> {
    let found: Vec<Finding> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    for finding in &found {
        must_break(&finding.breaks)?;
        let version = finding.compat.as_deref().filter(|name| Compat::from_name(name).is_none());
        if let Some(name) = version {
            return Err(format!("no version is called '{name}'"));
        }
        if finding.uses.is_empty() {
            return Err(format!("{} does not say what it needs", finding.finding));
        }
    }
    Ok(found)
}

/// The findings that a search of this scenario as these versions may meet; none where there is no list.
pub fn beside(scenario: &Path, text: &str, versions: &[Compat]) -> Result<Vec<Finding>, String> {
    let directory = scenario.parent().unwrap_or(Path::new(""));
    let list = directory.join("../findings/known.list");
    let Ok(listed) = std::fs::read_to_string(&list) else { return Ok(Vec::new()) };
    let all = parse(&listed).map_err(|error| format!("{}: {error}", list.display()))?;
    Ok(all.into_iter().filter(|finding| finding.may_show_in(scenario, text, versions)).collect())
}

/// What this project has found and written up, for whoever meets it in a scenario of his own.
const WRITTEN_UP: &str = include_str!("../../scenarios/findings/known.list");

/// The finding that a violation of this scenario looks like, as that version.
pub fn recognize(violation: &Violation, text: &str, compat: Compat) -> Option<Finding> {
    let looks_like = |finding: &Finding| {
        let signature = (finding.breaks.clone(), finding.text.clone());
        is_known(&[signature], violation) && finding.may_show_in(Path::new(""), text, &[compat])
    };
    parse(WRITTEN_UP).ok()?.into_iter().find(looks_like)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_where_it_may_show_only() {
        let text = "- {finding: f, breaks: guest, text: holds, compat: qemu-7.2, uses: [discard, qcow2]}\n";
        let found = parse(text).expect("a list").remove(0);
        assert_eq!(found.signature(), "guest:holds");
        let may = |file: &str, text: &str, versions: &[Compat]| found.may_show_in(Path::new(file), text, versions);
        assert!(may("x/other.yaml", "format: qcow2 and discard", &Compat::ALL));
        assert!(!may("x/other.yaml", "format: qcow2", &Compat::ALL));
        assert!(!may("x/other.yaml", "format: qcow2 and discard", &[Compat::Qemu100]));
        assert!(!may("x/f.yaml", "format: qcow2 and discard", &Compat::ALL));
    }

    #[test]
    fn a_list_that_would_pass_everything_over_is_refused() {
        assert!(parse("- {finding: f, breaks: guest, uses: []}\n").is_err());
        assert!(parse("- {finding: f, breaks: gust, uses: [qcow2]}\n").is_err());
        assert!(parse("- {finding: f, breaks: guest, compat: qemu-7, uses: [qcow2]}\n").is_err());
    }

    #[test]
    fn what_is_written_up_is_recognized_where_it_may_show() {
        let text =
            "a reader of the snapshot of disk disk got 0x11 instead of 0x00, by a read that ends behind what was kept";
        let torn = Violation::new(Breach::SnapshotStraddled, "disk", text.to_owned());
        let found = |scenario: &str, compat| recognize(&torn, scenario, compat).map(|finding| finding.finding);
        let reader = "driver: snapshot-access";
        assert_eq!(found(reader, Compat::Qemu72).as_deref(), Some("snapshot-shows-new-data"));
        assert_eq!((found(reader, Compat::Qemu100), found("nothing", Compat::Qemu72)), (None, None));
    }

    #[test]
    fn an_invariant_and_each_way_to_break_it_can_be_known() {
        let lost = Violation::new(Breach::BitLost, "bitmap0", "bitmap0 lacks cluster 1".to_owned());
        let known = |signature: &str| is_known(&read(&[signature.to_owned()]).expect("a signature"), &lost);
        assert!(known("no-lost-write") && known("bit-lost") && known("bit-lost:cluster 1"));
        assert!(!known("bit-lost:cluster 2") && !known("bit-lost-by-job") && !known("guest"));
    }
}
