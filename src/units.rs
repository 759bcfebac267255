//! Sizes and durations as people write them (`64K`, `0x10000`, `50us`).
//!
//! Must never guess: a text that is not wholly a number with a known suffix is refused.
