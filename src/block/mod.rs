//! (founding skeleton: the block layer)
