//! The runtime in `kernels/simt`, behind safe functions.

use std::borrow::Cow;
use std::ffi::{CString, c_char, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};

use super::{Copies, Mode, Schedule, SimtError, TensorMap};
use crate::launch::Launch;
use crate::launch::params::DevicePtr;

/// What a launch did; bytes are counted in the checked build and by [`Simt::count_blocks`] alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub threads: u64,
    pub switches: u64,
    pub barriers: u64,
    pub collectives: u64,
    pub ldmatrix: u64,
    /// Cycles that ldmatrix and stmatrix take beyond one for eight rows.
    pub bank_conflicts: u64,
    pub mma: u64,
    pub async_bytes: u64,
    pub global_read_bytes: u64,
    pub global_written_bytes: u64,
    pub shared_read_bytes: u64,
    pub shared_written_bytes: u64,
    /// Cycles that `ld_shared` and `st_shared` take beyond one for every 128 bytes of a warp; where bytes are counted.
    pub access_conflicts: u64,
    /// Products of a warp: a warpgroup's counts four times.
    pub wgmma: u64,
    pub bulk_copies: u64,
    /// Boxes that are brought into the L2 cache.
    pub bulk_prefetches: u64,
    /// Boxes that are copied from shared memory.
    pub bulk_stores: u64,
}

#[repr(C)]
struct RawMode {
    schedule: i32,
    copies: i32,
    checked: i32,
    counts_alone: i32,
    seed: u64,
    first_block: u32,
    blocks: u32,
}

impl RawMode {
    fn new(mode: Mode, blocks: Range<u32>) -> Self {
        Self {
            schedule: match mode.schedule {
                Schedule::Fifo => 0,
                Schedule::Lifo => 1,
                Schedule::Priorities => 2,
            },
            copies: match mode.copies {
                Copies::Eager => 0,
                Copies::Lazy => 1,
                Copies::Random => 2,
            },
            checked: i32::from(mode.checked),
            counts_alone: 0,
            seed: mode.seed,
            first_block: blocks.start,
            blocks: blocks.end - blocks.start,
        }
    }
}

// SAFETY: these are the signatures of kernels/simt/launch.cpp and memory.cpp, and `Counts` and `RawMode` are laid out
// as `Counts` and `Mode` of runtime.h.
unsafe extern "C" {
    fn simt_create() -> *mut c_void;
    fn simt_destroy(context: *mut c_void);
    fn simt_alloc(context: *mut c_void, bytes: usize) -> *mut u8;
    fn simt_alloc_untouched(context: *mut c_void, bytes: usize) -> *mut u8;
    fn simt_kernel(name: *const c_char, threads: *mut u32, params_bytes: *mut u64) -> bool;
    fn simt_launch(
        context: *mut c_void,
        name: *const c_char,
        grid: *const u32,
        dynamic_bytes: u32,
        params: *const c_void,
        mode: *const RawMode,
        counts: *mut Counts,
        report: *mut c_char,
        capacity: u64,
    ) -> bool;
}

/// A device made of one CPU thread. Its buffers live as long as it does.
pub struct Simt {
    context: NonNull<c_void>,
    /// Address and length of every buffer.
    buffers: Vec<(u64, usize)>,
}

impl Simt {
    pub fn new() -> Self {
        // SAFETY: makes a context of its own, or returns null.
        let context = NonNull::new(unsafe { simt_create() });
        Self { context: context.expect("256 KiB of memory can be had"), buffers: Vec::new() }
    }

    /// Threads of a block and bytes of params of a linked kernel.
    pub fn kernel(name: &str) -> Option<(u32, usize)> {
        let name = CString::new(format!("fast:{name}")).ok()?;
        let (mut threads, mut bytes) = (0, 0);
        // SAFETY: the name ends in NUL, and both results have a place.
        let found = unsafe { simt_kernel(name.as_ptr(), &mut threads, &mut bytes) };
        found.then_some((threads, bytes as usize))
    }

    /// A buffer of bytes that are all ones, NaN in every type; its end is exact, beyond it everything faults.
    pub fn alloc(&mut self, bytes: usize) -> DevicePtr {
        // SAFETY: the context lives as long as `self`.
        let buffer = unsafe { simt_alloc(self.context.as_ptr(), bytes) };
        assert!(!buffer.is_null(), "no memory for a buffer of {bytes} bytes");
        self.buffers.push((buffer as u64, bytes));
        DevicePtr(buffer as u64)
    }

    /// Zeros that take no memory until somebody writes to them, up to the end of a page; `None` beyond 8 GiB.
    pub fn alloc_untouched(&mut self, bytes: usize) -> Option<DevicePtr> {
        // SAFETY: the context lives as long as `self`.
        let buffer = NonNull::new(unsafe { simt_alloc_untouched(self.context.as_ptr(), bytes) })?;
        let address = buffer.as_ptr() as u64;
        self.buffers.push((address, bytes));
        Some(DevicePtr(address))
    }

    /// A buffer with these bytes.
    pub fn put(&mut self, bytes: &[u8]) -> DevicePtr {
        let at = self.alloc(bytes.len());
        self.write(at, 0, bytes);
        at
    }

    /// Overwrites bytes of a buffer from `offset` on.
    pub fn write(&mut self, at: DevicePtr, offset: usize, bytes: &[u8]) {
        let (address, room) = self.buffer(at);
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= room);
        assert!(fits, "{} bytes from {offset} on do not fit a buffer of {room}", bytes.len());
        let to = (address + offset as u64) as *mut u8;
        // SAFETY: the range lies inside of this context's buffer, whose memory is no object of Rust's, and no
        // launch runs while `self` is borrowed.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Every buffer so far, in the order in which they were made.
    pub fn buffers(&self) -> impl Iterator<Item = DevicePtr> + '_ {
        self.buffers.iter().map(|(address, _)| DevicePtr(*address))
    }

    fn buffer(&self, at: DevicePtr) -> (u64, usize) {
        let found = self.buffers.iter().find(|(address, _)| *address == at.0);
        *found.expect("an address that `alloc` gave")
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The bytes of a whole buffer.
    pub fn get(&self, at: DevicePtr) -> Vec<u8> {
        let (address, bytes) = self.buffer(at);
        // SAFETY: the buffer is this context's, has that length, and no launch runs while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec()
    }

    /// Runs a launch to its end.
    pub fn run(&mut self, launch: &Launch, mode: Mode) -> Result<Counts, SimtError> {
        let (kernel, params) = (launch.kernel, Self::params(launch)?);
        self.launch(kernel.name, launch.grid, kernel.threads, kernel.shared_bytes, &params, mode)
    }

    /// The params with their tensor maps as this device takes them.
    pub fn params(launch: &Launch) -> Result<Cow<'_, [u8]>, SimtError> {
        let encoded = launch.encoded(TensorMap::encode);
        encoded.map_err(|rule| SimtError::new(launch.kernel.name, &format!("TENSOR MAP: not {rule}")))
    }

    /// Runs a kernel to its end. `params` are the bytes of its params struct.
    pub fn launch(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &[u8],
        mode: Mode,
    ) -> Result<Counts, SimtError> {
        let variant = if mode.checked { "checked" } else { "fast" };
        let Some((its_threads, its_bytes)) = Self::kernel(kernel) else {
            return Err(SimtError::new(kernel, "LAUNCH: there is no such kernel"));
        };
        if (threads, params.len()) != (its_threads, its_bytes) {
            let report = format!(
                "LAUNCH: {threads} threads and {} bytes of params, the kernel has {its_threads} and {its_bytes}",
                params.len()
            );
            return Err(SimtError::new(kernel, &report));
        }
        self.launch_variant(variant, kernel, grid, shared_bytes, params, mode)
    }

    /// Runs these blocks of a launch, numbered x first. Addresses may be those of another context: the blocks of
    /// one launch do not hear of each other, so several contexts may share them, each on a thread of its own.
    pub fn run_blocks(
        &mut self,
        launch: &Launch,
        blocks: Range<u32>,
        mode: Mode,
    ) -> Result<Counts, SimtError> {
        let (kernel, params) = (launch.kernel, Self::params(launch)?);
        let variant = if mode.checked { "checked" } else { "fast" };
        let mode = RawMode::new(mode, blocks);
        self.start((variant, kernel.name), launch.grid, kernel.shared_bytes, &params, mode)
    }

    /// What these blocks of a launch do to memory. Nothing is checked, and products on tensor cores are left out: the
    /// numbers in memory mean nothing afterwards.
    pub fn count_blocks(&mut self, launch: &Launch, blocks: Range<u32>) -> Result<Counts, SimtError> {
        let (kernel, params) = (launch.kernel, Self::params(launch)?);
        let mode = RawMode { counts_alone: 1, ..RawMode::new(Mode::FAST, blocks) };
        self.start(("checked", kernel.name), launch.grid, kernel.shared_bytes, &params, mode)
    }

    /// Runs a variant of a kernel that is linked under that name, with the kernel's own params.
    pub fn launch_variant(
        &mut self,
        variant: &str,
        kernel: &str,
        grid: [u32; 3],
        shared_bytes: u32,
        params: &[u8],
        mode: Mode,
    ) -> Result<Counts, SimtError> {
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let Ok(blocks) = u32::try_from(blocks) else {
            return Err(SimtError::new(kernel, "LAUNCH: too large a grid"));
        };
        self.start((variant, kernel), grid, shared_bytes, params, RawMode::new(mode, 0..blocks))
    }

    fn start(
        &mut self,
        (variant, kernel): (&str, &str),
        grid: [u32; 3],
        shared_bytes: u32,
        params: &[u8],
        mode: RawMode,
    ) -> Result<Counts, SimtError> {
        let Ok(name) = CString::new(format!("{variant}:{kernel}")) else {
            return Err(SimtError::new(kernel, "LAUNCH: a NUL byte in the name"));
        };
        let (mut threads, mut bytes) = (0, 0);
        // SAFETY: the name ends in NUL, and both results have a place.
        let known = unsafe { simt_kernel(name.as_ptr(), &mut threads, &mut bytes) };
        if !known || bytes != params.len() as u64 {
            return Err(SimtError::new(kernel, "LAUNCH: no such variant, or wrong params"));
        }
        // Params hold tensor maps, which are aligned; the bytes that we were given may lie anywhere.
        let mut aligned = vec![TensorMap::default(); params.len().div_ceil(size_of::<TensorMap>())];
        bytemuck::cast_slice_mut::<TensorMap, u8>(&mut aligned)[..params.len()].copy_from_slice(params);
        let mut counts = Counts::default();
        let mut report = vec![0u8; 1 << 15];
        // SAFETY: all pointers are to live values of the types that launch.cpp names, the report has its
        // capacity, and params are as long as the kernel's struct. A kernel that uses a wrong address faults
        // inside of the runtime, which reports it.
        let ok = unsafe {
            simt_launch(
                self.context.as_ptr(),
                name.as_ptr(),
                grid.as_ptr(),
                shared_bytes,
                aligned.as_ptr().cast(),
                &mode,
                &mut counts,
                report.as_mut_ptr().cast(),
                report.len() as u64,
            )
        };
        if ok {
            return Ok(counts);
        }
        let end = report.iter().position(|&byte| byte == 0).unwrap_or(report.len());
        Err(SimtError::new(kernel, &String::from_utf8_lossy(&report[..end])))
    }
}

// SAFETY: a context belongs to no thread: what the runtime keeps by thread it sets at the begin of a launch and takes
// back at its end, and its buffers are memory of the process.
unsafe impl Send for Simt {}

impl Default for Simt {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Simt {
    fn drop(&mut self) {
        // SAFETY: made by `simt_create`, and destroyed once.
        unsafe { simt_destroy(self.context.as_ptr()) }
    }
}
