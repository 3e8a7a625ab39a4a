//! Which form runs, with which tile: pure numbers in, a printable choice out.

pub mod conv2d;
