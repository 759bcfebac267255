//! (founding skeleton: the job layer)
