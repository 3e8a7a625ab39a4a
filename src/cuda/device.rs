//! Which GPU runs, and which of the kernels' targets is its own.

use std::ffi::c_int;

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::driver::{Answer, Driver};
use super::kernels;
use crate::error::{Error, Result};

/// One GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: usize,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// Dynamic shared memory of a block, at most.
    pub shared_bytes: usize,
    pub multiprocessors: u32,
    /// Of the cache that all multiprocessors share.
    pub l2_bytes: usize,
    /// At most, in MHz: of the multiprocessors, and of the memory; zeros where the driver does not say.
    pub clocks: [u32; 2],
}

/// The GPUs of this machine, or why there are none.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    let driver = Driver::get()?;
    let words = |failure| format!("the CUDA driver is there, but {failure}");
    let count = driver.devices().map_err(words)?;
    (0..count).map(|ordinal| gpu(driver, ordinal).map_err(words)).collect()
}

fn gpu(driver: &Driver, ordinal: c_int) -> Answer<Gpu> {
    let device = driver.device(ordinal)?;
    let attribute = |attribute| driver.device_attribute(device, attribute);
    Ok(Gpu {
        ordinal: ordinal as usize,
        name: driver.device_name(device)?,
        memory_bytes: driver.device_memory(device)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        clocks: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)
                .map_or(0, |kilohertz| kilohertz as u32 / 1000),
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
                .map_or(0, |kilohertz| kilohertz as u32 / 1000),
        ],
    })
}

/// The GPU of that number, if our kernels run on it.
///
/// # Errors
/// [`Error::Device`] with what is missing.
pub fn usable(ordinal: usize) -> Result<Gpu> {
    let wrong = |problem| Error::Device { device: word(ordinal), problem };
    let gpus = gpus().map_err(wrong)?;
    let count = gpus.len();
    let gpu = gpus.into_iter().nth(ordinal).ok_or_else(|| {
        wrong(match count {
            0 => {
                "the CUDA driver sees no GPU (CUDA_VISIBLE_DEVICES hides those that it leaves out)".to_owned()
            }
            _ => format!("the CUDA driver sees {count} of them, counted from 0"),
        })
    })?;
    gpu.target().map_err(wrong)?;
    kernels::available().map_err(wrong)?;
    Ok(gpu)
}

/// The first GPU that our kernels run on; where there is none, what the first of all lacks.
pub fn first_usable() -> Result<Gpu> {
    let count = gpus().map_or(0, |gpus| gpus.len());
    (0..count).find_map(|ordinal| usable(ordinal).ok()).map_or_else(|| usable(0), Ok)
}

/// As users call it.
pub fn word(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

impl Gpu {
    /// The one of [`crate::manifest::TARGETS`] that runs there, else why there is none.
    pub fn target(&self) -> Result<&'static str, String> {
        let (major, minor) = self.compute_capability;
        target(major, minor).ok_or_else(|| {
            format!("{} has compute capability {major}.{minor}, at least 8.0 is needed", self.name)
        })
    }
}

/// Binaries run on later devices of their own generation; those for 9.0a on nothing else. Every other device from
/// 8.0 on gets PTX, which its driver compiles.
fn target(major: i32, minor: i32) -> Option<&'static str> {
    match (major, minor) {
        (..=7, _) => None,
        (8, _) => Some("sm_80"),
        (9, 0) => Some("sm_90a"),
        (10, _) => Some("sm_100"),
        (12, _) => Some("sm_120"),
        _ => Some("compute_80"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::TARGETS;

    #[test]
    fn every_device_since_ampere_has_a_target() {
        let cases = [
            ((7, 5), None),
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_80")),
            ((8, 9), Some("sm_80")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("sm_100")),
            ((10, 3), Some("sm_100")),
            ((11, 0), Some("compute_80")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((13, 0), Some("compute_80")),
        ];
        for ((major, minor), expected) in cases {
            assert_eq!(target(major, minor), expected, "{major}.{minor}");
            assert!(expected.is_none_or(|expected| TARGETS.contains(&expected)));
        }
    }
}
