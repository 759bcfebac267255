//! (founding skeleton: the conform layer)
