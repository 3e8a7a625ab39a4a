//! Runs kernels on the CPU, from the very sources that GPUs get: for proofs, not for speed.
//!
//! A [`Simt`] is a device of its own: buffers, and launches that run to their end. Every launch chooses whose
//! turn it is among threads and when asynchronous copies happen ([`Mode`]); the checked build looks at every
//! access for races, reads before a wait or of nothing, and bounds. What goes wrong is a value, [`SimtError`],
//! with the lines of the kernel; a kernel can neither crash nor hang the process. [`SimtDevice`] runs whole step
//! programs on it.

mod device;
mod runtime;
mod tensor_map;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

pub use device::{SimtDevice, SimtProgram};
pub use runtime::{Counts, Simt};
pub use tensor_map::TensorMap;

pub use crate::launch::maps::Swizzle;

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
    static KNOWN: LazyLock<Mutex<Known>> =
        LazyLock::new(|| Mutex::new(Known { lines: HashMap::new(), tool: Addr2line::start() }));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for &offset in offsets {
        let unknown = !known.lines.contains_key(offset);
        let answer = known.tool.as_mut().filter(|_| unknown).and_then(|tool| tool.line_of(offset));
        if let Some(line) = answer {
            known.lines.insert(offset.to_owned(), line);
        }
    }
    known.lines.clone()
}

struct Known {
    lines: HashMap<String, String>,
    tool: Option<Addr2line>,
}

/// One process for all questions: reading a program's debug information takes a second.
struct Addr2line {
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Addr2line {
    fn start() -> Option<Self> {
        let mut command = Command::new("addr2line");
        command.args(["-i", "-a", "-e"]).arg(std::env::current_exe().ok()?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        Some(Self { questions: child.stdin.take()?, answers: BufReader::new(child.stdout.take()?).lines() })
    }

    fn line_of(&mut self, offset: &str) -> Option<String> {
        // Offsets are return addresses: the call is before them.
        let call = u64::from_str_radix(offset, 16).ok()?.saturating_sub(1);
        // An answer is the address, and its lines: of the innermost function first, then of those that it is inlined
        // into. A second question, of address 0, tells where the first one's answer ends.
        writeln!(self.questions, "{call:#x}\n0x0").ok()?;
        self.answers.next()?.ok()?;
        let mut lines = Vec::new();
        loop {
            let line = self.answers.next()?.ok()?;
            if line.strip_prefix("0x").is_some_and(|zeros| zeros.bytes().all(|digit| digit == b'0')) {
                break;
            }
            lines.push(line);
        }
        self.answers.next()?.ok()?;
        // An instruction's wrapper is not where somebody looks.
        let outside = lines.iter().find(|line| !line.contains("kernels/include/ptx_"));
        let line = outside.or(lines.first())?.split(" (").next()?;
        Some(line.rfind("kernels/").map_or(line, |at| &line[at..]).to_owned())
    }
}
