//! (founding skeleton: the store layer)
