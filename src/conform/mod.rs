//! (founding skeleton: the conform layer)
pub mod generate;
