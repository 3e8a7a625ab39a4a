//! Kernels as values, without a device: what they are given ([`params`]) and their binaries ([`binaries`]).

pub mod binaries;
pub mod params;
