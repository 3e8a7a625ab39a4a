//! Runs kernels on the CPU, from the very sources that GPUs get: for proofs, not for speed.
//!
//! A [`Simt`] is a device of its own: buffers, and launches that run to their end. Every launch chooses whose
//! turn it is among threads and when asynchronous copies happen ([`Mode`]); the checked build looks at every
//! access for races, reads before a wait or of nothing, and bounds. What goes wrong is a value, [`SimtError`],
//! with the lines of the kernel; a kernel can neither crash nor hang the process.

mod runtime;
mod tensor_map;

use std::collections::HashMap;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

pub use runtime::{Counts, Simt};
pub use tensor_map::{Swizzle, TensorMap};

/// How one launch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub schedule: Schedule,
    pub copies: Copies,
    /// The instrumented build, some twenty times slower.
    pub checked: bool,
    /// Of everything random.
    pub seed: u64,
}

/// Which thread of a block goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The one that has waited longest.
    Fifo,
    /// The one that became ready last; blocks from the last to the first.
    Lifo,
    /// One of the warp with the highest random priority; blocks in random order.
    Priorities,
}

/// When an asynchronous copy happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// At once: finds data that is overwritten too early.
    Eager,
    /// At the wait: finds a wait that is missing.
    Lazy,
    Random,
}

impl Mode {
    pub const FAST: Self = Self { schedule: Schedule::Fifo, copies: Copies::Lazy, checked: false, seed: 1 };
    pub const CHECKED: Self = Self { checked: true, ..Self::FAST };

    /// Every schedule with every time of copies, unchecked.
    pub fn all() -> impl Iterator<Item = Self> {
        [Schedule::Fifo, Schedule::Lifo, Schedule::Priorities].into_iter().flat_map(|schedule| {
            [Copies::Eager, Copies::Lazy, Copies::Random].map(|copies| Self {
                schedule,
                copies,
                checked: false,
                seed: 1,
            })
        })
    }
}

/// What a launch did wrong, a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel {kernel}:\n{report}")]
pub struct SimtError {
    pub kernel: String,
    pub report: String,
}

impl SimtError {
    /// Puts `kernels/x.cu:12` where the runtime could only say at which address.
    fn new(kernel: &str, report: &str) -> Self {
        let offsets: Vec<&str> = report
            .split("@0x")
            .skip(1)
            .map(|rest| &rest[..rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len())])
            .collect();
        let lines = lines_of(&offsets);
        let mut report = report.trim_end().to_owned();
        for offset in offsets {
            if let Some(line) = lines.get(offset) {
                report = report.replacen(&format!("@0x{offset}"), line, 1);
            }
        }
        Self { kernel: kernel.to_owned(), report }
    }
}

/// File and line of code offsets in this program; none where `addr2line` is missing.
fn lines_of(offsets: &[&str]) -> HashMap<String, String> {
    static KNOWN: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut new: Vec<&str> = offsets.iter().copied().filter(|offset| !known.contains_key(*offset)).collect();
    new.sort_unstable();
    new.dedup();
    if let (false, Ok(program)) = (new.is_empty(), std::env::current_exe()) {
        // Offsets are return addresses: the call is before them.
        let calls = new.iter().filter_map(|offset| u64::from_str_radix(offset, 16).ok());
        let calls = calls.map(|offset| format!("{:#x}", offset.saturating_sub(1)));
        let output = Command::new("addr2line").args(["-i", "-a", "-e"]).arg(program).args(calls).output();
        if let Ok(output) = output {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // An address, then its lines: of the innermost function first, and of those that it is inlined into. An
            // instruction's wrapper is not where somebody looks.
            let places = text.split("0x").skip(1).map(|place| place.lines().skip(1));
            for (offset, mut lines) in new.into_iter().zip(places) {
                let is_wrapper = |line: &&str| line.contains("kernels/include/ptx_");
                let first = lines.clone().next().unwrap_or("?");
                let line = lines.find(|line| !is_wrapper(line)).unwrap_or(first);
                let line = line.split(" (").next().unwrap_or(line);
                let short = line.rfind("kernels/").map_or(line, |at| &line[at..]);
                known.insert(offset.to_owned(), short.to_owned());
            }
        }
    }
    known.clone()
}
