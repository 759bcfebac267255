//! Random scenarios: valid, readable, the same for the same seed on every machine.
//!
//! A scenario is written phase by phase against a small model of the world, so that most commands have a meaning and
//! about one in eight is wrong on purpose. What real QEMU does not do the same way twice is left out: every phase
//! keeps to patterns that were run on it again and again. Must never read a clock, the environment or a file.

mod backup;
mod backups;
mod backups_apart;
mod bitmaps;
mod changes;
mod disks;
mod faults;
mod faults_apart;
mod fleecing;
mod graph;
mod graph_apart;
mod guest;
mod images;
mod jobs;
mod jobs_apart;
mod layers;
mod model;
mod persistent;
mod pick;
mod races;
mod tables;
mod world;
mod yaml;

use std::fmt;
use std::str::FromStr;

use world::World;

/// What a scenario is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Backups of every mode, chains, targets of all kinds.
    Backups,
    /// Bitmap commands, alone and in transactions.
    Bitmaps,
    /// Faults on sources and targets with every policy.
    Faults,
    /// Job control in every state.
    Jobs,
    /// Bitmaps that outlive their node or machine.
    Persistent,
    /// Snapshots of a disk in use.
    Fleecing,
    /// Nodes that come, go and change.
    Graph,
    /// qemu-img on images, their chains and their bitmaps.
    Images,
    /// Changes of the graph beside a backup.
    Changes,
    /// Jobs and bitmaps at any node of a chain.
    Layers,
    /// Commands while short jobs run.
    Races,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 11] = [
        Family::Backups,
        Family::Bitmaps,
        Family::Faults,
        Family::Jobs,
        Family::Persistent,
        Family::Fleecing,
        Family::Graph,
        Family::Images,
        Family::Changes,
        Family::Layers,
        Family::Races,
    ];

    /// What the family is called.
    pub fn name(self) -> &'static str {
        match self {
            Family::Backups => "backups",
            Family::Bitmaps => "bitmaps",
            Family::Faults => "faults",
            Family::Jobs => "jobs",
            Family::Persistent => "persistent",
            Family::Fleecing => "fleecing",
            Family::Graph => "graph",
            Family::Images => "images",
            Family::Changes => "changes",
            Family::Layers => "layers",
            Family::Races => "races",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Family, String> {
        let found = Family::ALL.into_iter().find(|family| family.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
            format!("unknown family `{text}`, expected one of {}", names.join(", "))
        })
    }
}

/// A scenario that was made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// What it is about.
    pub family: Family,
    /// What it is called: family and seed.
    pub name: String,
    /// The scenario as YAML.
    pub text: String,
}

/// The scenario of `seed`, of the given family or of any but the races, of which QEMU's own order shows only one way.
pub fn generate(seed: u64, family: Option<Family>) -> Generated {
    let mut world = World::new(seed);
    // Drawn in any case, so that a seed gives the same scenario with and without its family.
    let drawn = world.weighted(&[
        (4, Family::Backups),
        (4, Family::Bitmaps),
        (4, Family::Faults),
        (4, Family::Jobs),
        (3, Family::Persistent),
        (2, Family::Fleecing),
        (2, Family::Graph),
        (2, Family::Images),
        (1, Family::Changes),
        (1, Family::Layers),
    ]);
    let family = family.unwrap_or(drawn);
    let name = format!("{family}-{seed}");
    let description = format!("{family}, {}", world.level.name());
    let write = match family {
        Family::Backups => backups::generate,
        Family::Bitmaps => bitmaps::generate,
        Family::Faults => faults::generate,
        Family::Jobs => jobs::generate,
        Family::Persistent => persistent::generate,
        Family::Fleecing => fleecing::generate,
        Family::Graph => graph::generate,
        Family::Images => images::generate,
        Family::Changes => changes::generate,
        Family::Layers => layers::generate,
        Family::Races => races::generate,
    };
    let text = write(world, name.clone(), description).text();
    Generated { family, name, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    /// Reads and expands the scenario; how many steps its cases have.
    fn steps(one: &Generated) -> usize {
        let read = scenario::parse(&one.name, &one.text);
        let cases = read.and_then(|scenario| scenario.cases());
        let cases = cases.unwrap_or_else(|problems| panic!("{}:\n{problems}\n{}", one.name, one.text));
        cases.iter().map(|case| case.steps.len()).sum()
    }

    #[test]
    fn every_scenario_is_valid() {
        for family in Family::ALL {
            for seed in 0..500 {
                let one = generate(seed, Some(family));
                assert!(steps(&one) > 3, "{}", one.text);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_scenario_with_and_without_its_family() {
        for seed in 0..50 {
            let any = generate(seed, None);
            assert_eq!(any, generate(seed, Some(any.family)));
            assert_ne!(any.text, generate(seed + 1, Some(any.family)).text);
        }
    }

    #[test]
    fn lines_are_not_longer_than_people_like() {
        for seed in 0..300 {
            let one = generate(seed, None);
            // Texts can't be broken: the name that is too long, a headline.
            let whole = |line: &str| line.contains("xxxx") || line.contains("- log:");
            let long = one.text.lines().find(|line| line.len() > 120 && !whole(line));
            assert_eq!(long, None, "{}", one.name);
        }
    }

    #[test]
    fn families_are_known_by_their_names() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        assert!("backup".parse::<Family>().is_err());
    }
}
