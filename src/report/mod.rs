//! (founding skeleton: the report layer)
