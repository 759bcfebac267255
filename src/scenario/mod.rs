//! (founding skeleton: the scenario layer)
