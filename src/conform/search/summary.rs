//! How many scenarios of each family went which way.
//!
//! Must never count a scenario twice or not at all.

use std::collections::BTreeMap;
use std::fmt;

use crate::conform::verdict::Verdict;

use super::Done;

/// Scenarios by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The same on both sides.
    pub same: u64,
    /// The same in another order of the model.
    pub reordered: u64,
    /// Different.
    pub different: u64,
    /// Not asked of real QEMU.
    pub skipped: u64,
    /// Real QEMU does not always do the same.
    pub unstable: u64,
    /// Real QEMU died, hung or spoke nonsense.
    pub broken: u64,
    /// Not a scenario.
    pub invalid: u64,
}

impl Counts {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.same + self.reordered + self.different + self.skipped + self.unstable + self.broken + self.invalid
    }

    /// The share that is the same of all that could be compared, between 0 and 1; 1 if there were none.
    pub fn agreement(&self) -> f64 {
        let agreed = self.same + self.reordered;
        let compared = agreed + self.different + self.broken;
        if compared == 0 { 1.0 } else { agreed as f64 / compared as f64 }
    }

    /// Counts one verdict.
    pub fn count(&mut self, verdict: &Verdict) {
        *match verdict {
            Verdict::Same => &mut self.same,
            Verdict::Reordered { .. } => &mut self.reordered,
            Verdict::Different(_) => &mut self.different,
            Verdict::Skipped { .. } => &mut self.skipped,
            Verdict::Unstable { .. } => &mut self.unstable,
            Verdict::Broken { .. } => &mut self.broken,
        } += 1;
    }

    fn add(&mut self, other: &Counts) {
        self.same += other.same;
        self.reordered += other.reordered;
        self.different += other.different;
        self.skipped += other.skipped;
        self.unstable += other.unstable;
        self.broken += other.broken;
        self.invalid += other.invalid;
    }
}

/// The counts by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Name and counts.
    pub families: BTreeMap<&'static str, Counts>,
}

impl Summary {
    pub(super) fn count(&mut self, done: &Done) {
        let counts = self.families.entry(done.family.name()).or_default();
        match &done.result {
            Ok(verdict) => counts.count(verdict),
            Err(_) => counts.invalid += 1,
        }
    }

    /// The counts of all families together.
    pub fn all(&self) -> Counts {
        let mut all = Counts::default();
        self.families.values().for_each(|counts| all.add(counts));
        all
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.families.keys().map(|family| family.len()).max().unwrap_or(0).max(6);
        let mut row = |name: &str, cells: [&str; 7]| {
            write!(f, "{name:width$}")?;
            cells.iter().try_for_each(|cell| write!(f, "  {cell:>9}"))?;
            writeln!(f)
        };
        row("family", ["same", "reordered", "different", "skipped", "unstable", "broken", "invalid"])?;
        let all = ("all", self.all());
        for (family, counts) in self.families.iter().map(|(family, counts)| (*family, *counts)).chain([all]) {
            let numbers = [
                counts.same,
                counts.reordered,
                counts.different,
                counts.skipped,
                counts.unstable,
                counts.broken,
                counts.invalid,
            ];
            let cells = numbers.map(|number| number.to_string());
            row(family, std::array::from_fn(|place| cells[place].as_str()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conform::generate::Family;

    #[test]
    fn the_table_adds_up() {
        let mut summary = Summary::default();
        let done = |family, result| Done { family, seed: 1, result, written: None, write_error: None };
        summary.count(&done(Family::Jobs, Ok(Verdict::Same)));
        summary.count(&done(Family::Bitmaps, Ok(Verdict::Skipped { why: "x".to_owned() })));
        summary.count(&done(Family::Bitmaps, Err("y".to_owned())));
        let expected = "\
family        same  reordered  different    skipped   unstable     broken    invalid
bitmaps          0          0          0          1          0          0          1
jobs             1          0          0          0          0          0          0
all              1          0          0          1          0          0          1
";
        assert_eq!(summary.to_string(), expected);
        assert_eq!(summary.all().total(), 3);
        assert!(summary.all().agreement() > 0.99);
    }
}
