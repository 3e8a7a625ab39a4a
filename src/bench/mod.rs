//! Microbenchmarks: what kernels cost, predicted and measured.

pub mod kernels;
pub mod occupancy;
pub mod opcodes;
pub mod simulate;
pub mod statistics;
