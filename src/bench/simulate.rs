//! What a launch does to memory, counted block by block on the SIMT layer.
//!
//! The launches are those of whole models, at their true sizes: operands are zeros that take no memory, and of a
//! grid the first, the middle and the last block run. Nothing that a kernel counts by depends on its numbers.

use serde::Serialize;

use super::kernels::Case;
use crate::error::Result;
use crate::launch::LaunchProgram;

/// What some blocks of a launch did, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Simulated {
    /// How many ran, and of how many.
    pub blocks: u64,
    pub of_blocks: u64,
    pub global_read_bytes: u64,
    pub global_written_bytes: u64,
    pub shared_read_bytes: u64,
    pub shared_written_bytes: u64,
    /// Of `cp.async` and bulk copies, among the bytes above.
    pub async_bytes: u64,
    /// Cycles beyond those that the bytes need.
    pub bank_conflicts: u64,
    pub ldmatrix: u64,
    pub mma: u64,
    pub wgmma: u64,
    pub barriers: u64,
}

impl Simulated {
    /// Bytes between a device's memory or cache and its multiprocessors, if all blocks did as much as those that ran.
    pub fn global_bytes(&self) -> f64 {
        let counted = self.global_read_bytes + self.global_written_bytes;
        counted as f64 * self.of_blocks as f64 / self.blocks.max(1) as f64
    }
}

/// Counts for cases of these programs, in their order; nothing where the build has no SIMT layer, or the program takes
/// more memory than that has addresses for.
pub fn count(programs: &[&LaunchProgram], cases: &[&Case]) -> Result<Vec<Option<Simulated>>> {
    #[cfg(feature = "simt")]
    return counting::count(programs, cases);
    #[cfg(not(feature = "simt"))]
    {
        let _ = programs;
        Ok(vec![None; cases.len()])
    }
}

#[cfg(feature = "simt")]
mod counting {
    use super::{Case, Result, Simulated};
    use crate::error::Error;
    use crate::launch::params::DevicePtr;
    use crate::launch::{Addresses, Launch, LaunchProgram, relocate};
    use crate::simt::{Counts, Simt};

    pub fn count(programs: &[&LaunchProgram], cases: &[&Case]) -> Result<Vec<Option<Simulated>>> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let share = cases.len().div_ceil(threads).max(1);
        let counted = std::thread::scope(|scope| {
            let work = cases.chunks(share).map(|cases| scope.spawn(|| count_in_turn(programs, cases)));
            let work: Vec<_> = work.collect();
            work.into_iter().map(|work| work.join().expect("counting does not panic")).collect::<Vec<_>>()
        });
        Ok(counted.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    fn count_in_turn(programs: &[&LaunchProgram], cases: &[&Case]) -> Result<Vec<Option<Simulated>>> {
        let mut memory: Option<(usize, Option<Memory>)> = None;
        let mut counted = Vec::with_capacity(cases.len());
        for case in cases {
            let memory = match &mut memory {
                Some((program, memory)) if *program == case.program => memory,
                other => &mut other.insert((case.program, Memory::of(programs[case.program]))).1,
            };
            counted.push(memory.as_mut().map(|memory| memory.count(&case.launch)).transpose()?);
        }
        Ok(counted)
    }

    /// As large as a program's, all zeros, and none of it touched.
    struct Memory {
        simt: Simt,
        addresses: Addresses,
        state_bytes: usize,
    }

    impl Memory {
        /// Nothing where the layer's slots are too small.
        fn of(program: &LaunchProgram) -> Option<Self> {
            let mut simt = Simt::new();
            let mut room = |bytes: usize| simt.alloc_untouched(bytes);
            let state_bytes = program.state_bytes();
            let (arena, state) = (room(program.arena_bytes)?, room(state_bytes)?);
            let all = room(program.weight_bytes())?;
            let at = |offset: usize| DevicePtr(all.0 + offset as u64);
            let weights = program.weights.iter().map(|weight| at(weight.offset)).collect();
            let buffers = program.buffers.iter().map(|buffer| room(buffer.bytes())).collect::<Option<_>>()?;
            Some(Self { simt, addresses: Addresses { arena, state, weights, buffers }, state_bytes })
        }

        fn count(&mut self, launch: &Launch) -> Result<Simulated> {
            let of_blocks = launch.grid.iter().map(|&n| u64::from(n)).product::<u64>();
            let last = u32::try_from(of_blocks - 1);
            let last = last.map_err(|_| Error::Bug(format!("a grid of {of_blocks} blocks")))?;
            let together = launch.kernel.cluster;
            let mut chosen = [0, last / 2, last].map(|block| block / together * together).to_vec();
            chosen.dedup();
            // Else a block would be the last of its tile, or not, by what was counted before.
            self.simt.write(self.addresses.state, 0, &vec![0; self.state_bytes]);
            let launch = relocate(launch, |location| self.addresses.of(location));
            let mut sum = Simulated { of_blocks, ..Default::default() };
            for block in chosen {
                let counts = self.simt.count_blocks(&launch, block..block + together);
                let counts =
                    counts.map_err(|error| Error::Bug(format!("counting on the SIMT layer: {error}")))?;
                sum.add(&counts, together);
            }
            Ok(sum)
        }
    }

    impl Simulated {
        fn add(&mut self, counts: &Counts, blocks: u32) {
            self.blocks += u64::from(blocks);
            self.global_read_bytes += counts.global_read_bytes;
            self.global_written_bytes += counts.global_written_bytes;
            self.shared_read_bytes += counts.shared_read_bytes;
            self.shared_written_bytes += counts.shared_written_bytes;
            self.async_bytes += counts.async_bytes;
            self.bank_conflicts += counts.bank_conflicts + counts.access_conflicts;
            self.ldmatrix += counts.ldmatrix;
            self.mma += counts.mma;
            self.wgmma += counts.wgmma;
            self.barriers += counts.barriers;
        }
    }
}
