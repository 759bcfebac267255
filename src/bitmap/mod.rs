//! (founding skeleton: the bitmap layer)
