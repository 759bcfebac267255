//! Shrinking: leaving out parts of a scenario while a property stays.
//!
//! Must never give back a text of which the property was not seen to hold, and never ask more often than it
//! may.

use crate::scenario::parts::{groups, without};

/// What came of shrinking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shrunk {
    /// The smallest text found.
    pub(super) text: String,
    /// How often the property was asked for.
    pub(super) asked: u32,
}

/// Makes `text` smaller while `holds`, asking at most `budget` times about texts that are `valid`.
pub(super) fn shrink(
    text: &str,
    budget: u32,
    valid: &dyn Fn(&str) -> bool,
    holds: &mut dyn FnMut(&str) -> bool,
) -> Shrunk {
    let mut shrunk = Shrunk { text: text.to_owned(), asked: 0 };
    loop {
        let before = shrunk.text.len();
        round(&mut shrunk, budget, valid, holds);
        if shrunk.text.len() == before || shrunk.asked >= budget {
            return shrunk;
        }
    }
}

/// One pass over all parts. In each group, runs of neighbours are left out: first half of the group at a
/// time, at last one by one, from the end to the beginning, since later steps hang on earlier ones.
fn round(shrunk: &mut Shrunk, budget: u32, valid: &dyn Fn(&str) -> bool, holds: &mut dyn FnMut(&str) -> bool) {
    let text = shrunk.text.clone();
    let mut removed = Vec::new();
    for group in groups(&text) {
        let mut left = group.parts;
        let mut size = left.len().div_ceil(2);
        while size > 0 {
            let mut end = left.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let mut candidate = removed.clone();
                candidate.extend_from_slice(&left[start..end]);
                let smaller = without(&text, &candidate);
                // What went with a part around it would change nothing.
                if smaller.len() < shrunk.text.len() && valid(&smaller) {
                    if shrunk.asked >= budget {
                        return;
                    }
                    shrunk.asked += 1;
                    if holds(&smaller) {
                        shrunk.text = smaller;
                        removed = candidate;
                        left.drain(start..end);
                    }
                }
                end = start;
            }
            size /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays() {
        let text = "steps:\n  - log: a\n  - execute: x\n    arguments: {a: 1, b: 2, c: 3}\n  - log: d\n  - log: e\n  - log: f\n";
        let valid = |text: &str| crate::scenario::parse("t", text).is_ok_and(|scenario| scenario.cases().is_ok());
        let mut holds = |text: &str| text.contains("b: 2") && text.contains("log: e");
        let shrunk = shrink(text, 1000, &valid, &mut holds);
        assert_eq!(shrunk.text, "steps:\n  - execute: x\n    arguments: {b: 2}\n  - log: e\n");
    }

    #[test]
    fn the_budget_is_kept() {
        let text = "steps:\n  - log: a\n  - log: b\n  - log: c\n";
        let mut asked = 0;
        let shrunk = shrink(text, 2, &|_| true, &mut |_| {
            asked += 1;
            false
        });
        assert_eq!((shrunk.text.as_str(), shrunk.asked, asked), (text, 2, 2));
    }
}
