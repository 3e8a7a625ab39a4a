//! Microbenchmarks: what kernels cost, predicted and measured.

pub mod judge;
pub mod kernels;
pub mod measure;
pub mod occupancy;
pub mod opcodes;
pub mod operands;
pub mod pieces;
pub mod programs;
pub mod simulate;
pub mod statistics;
