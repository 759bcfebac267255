//! (founding skeleton: the qmp layer)
