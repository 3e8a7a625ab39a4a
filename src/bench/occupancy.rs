//! How many blocks of a kernel a multiprocessor holds at once, and what keeps it from more.
//!
//! Limits are those of the CUDA programming guide, table "Technical specifications per compute capability".
//! Registers are given out to warps in portions of 256; every block takes 1 KiB of shared memory besides its own
//! from compute capability 8.0 on.

use std::fmt;

use crate::manifest::Kernel;

/// What one multiprocessor of an architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub warps: u32,
    pub blocks: u32,
    pub registers: u32,
    pub shared_bytes: u32,
    /// Dynamic and static, of one block.
    pub shared_bytes_of_block: u32,
}

/// `None` for one that names no multiprocessor.
pub fn limits(architecture: &str) -> Option<Limits> {
    let (warps, blocks, shared_kib) = match architecture {
        "sm_80" => (64, 32, 164),
        "sm_90a" | "sm_100" => (64, 32, 228),
        "sm_89" | "sm_120" => (48, 24, 100),
        _ => return None,
    };
    let shared_bytes = shared_kib * 1024;
    let shared_bytes_of_block = shared_bytes - RESERVED_BYTES;
    Some(Limits { warps, blocks, registers: 65536, shared_bytes, shared_bytes_of_block })
}

const RESERVED_BYTES: u32 = 1024;
const REGISTER_PORTION: u32 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub blocks: u32,
    pub warps: u32,
    /// Of [`Limits::warps`].
    pub most_warps: u32,
    pub bound: Bound,
}

/// What is used up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Warps,
    Blocks,
    Registers,
    SharedMemory,
}

impl Occupancy {
    /// Of a kernel that takes so many registers a thread and so much static shared memory a block.
    pub fn of(kernel: &Kernel, registers: u32, static_shared_bytes: u32, limits: Limits) -> Self {
        let warps = kernel.threads.div_ceil(32);
        let registers = (registers.max(1) * 32).next_multiple_of(REGISTER_PORTION) * warps;
        let shared = kernel.shared_bytes + static_shared_bytes + RESERVED_BYTES;
        let candidates = [
            (limits.warps / warps, Bound::Warps),
            (limits.blocks, Bound::Blocks),
            (limits.registers / registers, Bound::Registers),
            (limits.shared_bytes / shared, Bound::SharedMemory),
        ];
        // The first of equals: warps are the natural limit.
        let (blocks, bound) =
            candidates.into_iter().min_by_key(|&(blocks, _)| blocks).unwrap_or((0, Bound::Warps));
        Self { blocks, warps: blocks * warps, most_warps: limits.warps, bound }
    }

    pub fn share(&self) -> f64 {
        f64::from(self.warps) / f64::from(self.most_warps)
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warps => "warps",
            Self::Blocks => "blocks",
            Self::Registers => "registers",
            Self::SharedMemory => "shared memory",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{KERNELS, TARGETS};

    fn kernel(threads: u32, shared_bytes: u32) -> Kernel {
        Kernel { threads, shared_bytes, ..KERNELS[0] }
    }

    #[test]
    fn the_scarcest_resource_decides() {
        let hopper = limits("sm_90a").expect("known");
        let of = |threads, shared, registers| Occupancy::of(&kernel(threads, shared), registers, 0, hopper);
        assert_eq!(of(256, 0, 32), Occupancy { blocks: 8, warps: 64, most_warps: 64, bound: Bound::Warps });
        assert_eq!(of(32, 0, 32), Occupancy { blocks: 32, warps: 32, most_warps: 64, bound: Bound::Blocks });
        // 128 threads of 168 registers: 21504 of 65536.
        assert_eq!(
            of(128, 0, 168),
            Occupancy { blocks: 3, warps: 12, most_warps: 64, bound: Bound::Registers }
        );
        let two = Occupancy { blocks: 2, warps: 16, most_warps: 64, bound: Bound::SharedMemory };
        assert_eq!(of(256, 96 * 1024, 64), two);
        // Three times 75 KiB fit, but not with the KiB that each block takes besides.
        assert_eq!(of(256, 76 * 1024, 64).blocks, 2);
    }

    #[test]
    fn every_binary_target_has_limits() {
        for target in TARGETS.iter().filter(|target| target.starts_with("sm_")) {
            assert!(limits(target).is_some(), "{target}");
        }
    }

    #[test]
    fn every_kernel_fits_on_everything_it_is_made_for() {
        for target in TARGETS {
            let Some(limits) = limits(target) else { continue };
            for kernel in KERNELS.iter().filter(|kernel| kernel.arch.runs_on(target)) {
                assert!(kernel.shared_bytes <= limits.shared_bytes_of_block, "{} on {target}", kernel.name);
            }
        }
    }
}
