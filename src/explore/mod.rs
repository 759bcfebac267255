//! (founding skeleton: the explore layer)
