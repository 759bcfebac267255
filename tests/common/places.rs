//! Where the named defects show; for the tests of exploration and for the table of how soon they are found.

/// Where each defect shows: scenario and case.
pub const PLACES: &[(&str, &str, &str)] = &[
    ("cbw-ignores-in-flight", "writers", "1 workers"),
    ("copy-bit-cleared-late", "writers", "4 workers"),
    ("failed-copy-loses-bits", "failures", "write target fails, report"),
    ("successor-dropped", "cancel", "bitmap/on-success"),
    ("pending-cancel-is-success", "cancel", "bitmap/on-success"),
    ("always-forgets-uncopied", "cancel", "bitmap/always"),
    ("discard-bypasses-cbw", "discard", "explore-discard"),
    ("fleecing-read-unprotected", "fleecing", "explore-fleecing"),
    ("filter-leaves-early", "cancel", "bitmap/on-success"),
    ("partial-tail-not-copied", "tail", "explore-tail"),
    ("stop-loses-chunk", "stop", "write target fails, stop"),
    ("group-finalizes-alone", "group", "explore-group"),
];
