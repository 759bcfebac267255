//! (founding skeleton: the cli layer)
