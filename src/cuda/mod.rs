//! CUDA: for now only what can be asked of a driver.
//!
//! The driver is looked for at run time. A machine without one is an ordinary answer here, never a panic:
//! every call stands behind the question whether the library is there.

use cudarc::driver::{result, sys};

/// One GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: usize,
    /// Major and minor.
    pub compute_capability: (i32, i32),
}

/// The GPUs of this machine, or why there are none.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    // SAFETY: only looks whether a library of that name can be opened.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver (libcuda) was found".to_owned());
    }
    let words = |error: result::DriverError| format!("the CUDA driver answers: {error}");
    result::init().map_err(words)?;
    let count = result::device::get_count().map_err(words)?;
    (0..count).map(|ordinal| gpu(ordinal).map_err(words)).collect()
}

fn gpu(ordinal: i32) -> Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(ordinal)?;
    let name = result::device::get_name(device)?;
    // SAFETY: `device` was returned by the driver just now.
    let (memory_bytes, major, minor) = unsafe {
        (
            result::device::total_mem(device)?,
            result::device::get_attribute(device, MAJOR)?,
            result::device::get_attribute(device, MINOR)?,
        )
    };
    Ok(Gpu { name, memory_bytes, compute_capability: (major, minor) })
}
