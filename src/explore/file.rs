//! A failing run in a file of its own: scenario, schedule and version, for bug reports and for git.
//!
//! The file is YAML that a person can edit; the scenario's text is in it, so that it replays in a fresh clone.

use serde::{Deserialize, Serialize};

use crate::quirks::Compat;
use crate::scenario::{self, Case};

use super::model::Violation;
use super::run::Setup;
use super::schedule::{Departure, StepName};

/// The content of a replay file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReplayFile {
    /// The version of backsim that wrote it.
    pub backsim: String,
    /// The invariant that breaks.
    pub invariant: String,
    /// In which way.
    pub breach: String,
    /// The violation in words.
    pub violation: String,
    /// The case of the scenario.
    pub case: String,
    /// Whose behaviour, where that is not the scenario's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<String>,
    /// Defects that were put in.
    #[serde(default)]
    pub defects: Vec<String>,
    /// Where the run leaves QEMU's own order.
    #[serde(default)]
    pub departures: Vec<NamedDeparture>,
    /// The scenario's name, for messages.
    pub scenario_name: String,
    /// The scenario's text, with what the failure does not need taken out.
    pub scenario: String,
}

/// A step as `[actor, step, occurrence]`.
pub type NamedStep = (String, String, u32);

/// A departure in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NamedDeparture {
    /// The arrival before; absent at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<NamedStep>,
    /// Events of the loop since; absent: it comes when the loop is idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u32>,
    /// The arrival that comes.
    pub take: NamedStep,
}

/// The version that a file names, if it names one.
pub(super) fn version(name: Option<&str>) -> Result<Option<Compat>, String> {
    let known = |name: &str| Compat::from_name(name).ok_or_else(|| format!("no version is called '{name}'"));
    name.map(known).transpose()
}

fn named(step: &StepName) -> NamedStep {
    (step.actor.clone(), step.step.clone(), step.occurrence)
}

fn step((actor, step, occurrence): &NamedStep) -> StepName {
    StepName { actor: actor.clone(), step: step.clone(), occurrence: *occurrence }
}

impl From<&Departure> for NamedDeparture {
    fn from(departure: &Departure) -> NamedDeparture {
        NamedDeparture {
            after: departure.after.as_ref().map(named),
            events: departure.events,
            take: named(&departure.take),
        }
    }
}

impl From<&NamedDeparture> for Departure {
    fn from(departure: &NamedDeparture) -> Departure {
        Departure { after: departure.after.as_ref().map(step), events: departure.events, take: step(&departure.take) }
    }
}

impl ReplayFile {
    /// The text of the file.
    pub fn to_yaml(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let of_step = |step: &NamedStep| format!("[{}, {}, {}]", quoted(&step.0), quoted(&step.1), step.2);
        let mut text = format!(
            "# backsim replay THIS-FILE shows this run again.\nbacksim: {}\ninvariant: {}\nbreach: {}\n",
            quoted(&self.backsim),
            self.invariant,
            self.breach,
        );
        text += &format!("violation: {}\ncase: {}\n", quoted(&self.violation), quoted(&self.case));
        if let Some(compat) = &self.compat {
            text += &format!("compat: {compat}\n");
        }
        let defects: Vec<String> = self.defects.iter().map(|name| quoted(name)).collect();
        text += &format!("defects: [{}]\n", defects.join(", "));
        text += if self.departures.is_empty() { "departures: []\n" } else { "departures:\n" };
        for departure in &self.departures {
            let mut parts = Vec::new();
            parts.extend(departure.after.as_ref().map(|after| format!("after: {}", of_step(after))));
            parts.extend(departure.events.map(|events| format!("events: {events}")));
            parts.push(format!("take: {}", of_step(&departure.take)));
            text += &format!("  - {{{}}}\n", parts.join(", "));
        }
        text += &format!("scenario-name: {}\nscenario: |\n", quoted(&self.scenario_name));
        for line in self.scenario.lines() {
            text += if line.is_empty() { "\n" } else { "  " };
            if !line.is_empty() {
                text += line;
                text.push('\n');
            }
        }
        text
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<ReplayFile, String> {
        serde_yaml::from_str(text).map_err(|error| format!("not a replay file: {error}"))
    }

    /// The case that it is about.
    pub fn find_case(&self) -> Result<Case, String> {
        let loaded = scenario::parse(&self.scenario_name, &self.scenario).map_err(|found| found.to_string())?;
        let cases = loaded.cases().map_err(|found| found.to_string())?;
        let found = cases.into_iter().find(|case| case.name == self.case);
        found.ok_or_else(|| format!("the scenario in the file has no case '{}'", self.case))
    }

    /// What is run: the case with the defects, and as the version, of the file.
    pub fn setup(&self) -> Result<Setup, String> {
        let compat = version(self.compat.as_deref())?;
        Ok(Setup { compat, ..Setup::new(self.find_case()?, self.defects.clone()) })
    }

    /// Its own violation among those that a run shows: to the letter, or else broken in the same way.
    pub fn find<'a>(&self, found: &'a [Violation]) -> Option<&'a Violation> {
        let same = found.iter().find(|violation| violation.text == self.violation);
        same.or_else(|| found.iter().find(|violation| violation.breach.name() == self.breach))
    }

    /// The schedule.
    pub fn schedule(&self) -> Vec<Departure> {
        self.departures.iter().map(Departure::from).collect()
    }
}
