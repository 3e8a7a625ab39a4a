//! What the build made of `kernels/`: binaries for every target, what the compiler said about them, and the
//! sources for devices that none of them fits. Without NVRTC at build time there are sources alone.

use crate::manifest::{self, Kernel};

/// Kernels of one file, those for bf16 or all others, compiled for one target.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    pub file: &'static str,
    pub bf16: bool,
    /// One of [`manifest::TARGETS`].
    pub target: &'static str,
    /// A cubin, or PTX where the target is a virtual architecture.
    pub binary: &'static [u8],
}

/// What one entry point takes on one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    pub kernel: &'static str,
    pub target: &'static str,
    /// Of a thread.
    pub registers: u32,
    /// Static, of a block.
    pub shared_bytes: u32,
    /// Zero, or the build would have failed.
    pub spill_bytes: u32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The binary that has `kernel` for a target; `None` where the build had no NVRTC.
pub fn module(kernel: &Kernel, target: &str) -> Option<&'static Module> {
    let is_its = |module: &&Module| {
        (module.file, module.bf16, module.target) == (kernel.file, kernel.is_bf16(), target)
    };
    MODULES.iter().find(is_its)
}

/// The text of a file of kernels with its entry points, for a compilation at run time.
pub fn source(file: &str, target: &str) -> Option<String> {
    let (_, text) = SOURCES.iter().find(|(name, _)| *name == file)?;
    let rows = manifest::KERNELS.iter().filter(|kernel| kernel.file == file && kernel.arch.runs_on(target));
    Some(rows.map(Kernel::entry).fold(format!("{text}\n"), |unit, entry| unit + &entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{KERNELS, TARGETS};

    #[test]
    fn every_row_has_its_source_and_a_binary_for_every_target_or_for_none() {
        for kernel in KERNELS {
            let mut targets = TARGETS.iter().filter(|target| kernel.arch.runs_on(target)).peekable();
            assert!(targets.peek().is_some(), "{} runs nowhere", kernel.name);
            for target in targets {
                let text = source(kernel.file, target).expect("every file is embedded");
                assert!(text.contains(&format!("KERNEL_ENTRY({},", kernel.name)), "{} {target}", kernel.name);
                assert_eq!(module(kernel, target).is_some(), !MODULES.is_empty(), "{} {target}", kernel.name);
            }
        }
        assert!(HEADERS.iter().any(|(name, _)| *name == "prelude.cuh"));
    }

    #[test]
    fn binaries_are_what_their_target_says_and_keep_their_budgets() {
        for module in MODULES {
            let is_elf = module.binary.starts_with(b"\x7fELF");
            assert_eq!(is_elf, module.target.starts_with("sm_"), "{} {}", module.file, module.target);
        }
        for used in RESOURCES {
            let row = manifest::find(used.kernel).expect("resources are those of a row");
            assert!(
                used.registers > 0 && used.registers <= row.registers && used.spill_bytes == 0,
                "{used:?}"
            );
        }
    }
}
