//! (founding skeleton: the sim layer)
