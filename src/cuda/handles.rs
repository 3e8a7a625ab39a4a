//! What a driver hands out, each given back when dropped: a context, streams, memory, modules.
//!
//! Everything here is safe to use. Whoever has a handle keeps its context alive; addresses stay inside of the memory
//! they belong to; host memory that the device reads by itself is waited for before it goes. A launch is as safe as
//! the addresses in its params: those come from relocation alone, and one that is wrong ends in the driver's error.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Address, Answer, Driver};
use crate::launch::maps::{Encoded, Map, Swizzle};
use crate::launch::params::DevicePtr;

/// The primary context of a device.
pub struct Context {
    pub driver: &'static Driver,
    device: c_int,
    raw: sys::CUcontext,
}

// SAFETY: the driver takes a context's handle from any thread; `bind` makes it the calling thread's own.
unsafe impl Send for Context {}
// SAFETY: as above, and the handle never changes.
unsafe impl Sync for Context {}

impl Context {
    pub fn new(driver: &'static Driver, device: c_int) -> Answer<Arc<Self>> {
        let mut raw = ptr::null_mut();
        // SAFETY: the result has a place; the device is one that the driver counted.
        let code = unsafe { (driver.calls.context_retain)(&mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self { driver, device, raw }))
    }

    /// Makes it the context of the calling thread. Work comes from any thread of a pool, so every use begins here.
    pub fn bind(&self) -> Answer<()> {
        // SAFETY: the context is retained as long as `self` lives.
        let code = unsafe { (self.driver.calls.context_set)(self.raw) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    pub fn raw(&self) -> sys::CUcontext {
        self.raw
    }

    /// Bytes that are free now.
    pub fn free_bytes(&self) -> Answer<usize> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both results have a place.
        let code = unsafe { (self.driver.calls.memory_info)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", code).map(|()| free)
    }

    /// A tensor for bulk copies, as the driver encodes it; zeros lie outside of it.
    pub fn tensor_map(&self, at: DevicePtr, map: &Map) -> Answer<Encoded> {
        use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT16;
        use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        use sys::CUtensorMapSwizzle_enum as Of;
        let swizzle = match map.swizzle {
            Swizzle::None => Of::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => Of::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => Of::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => Of::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let (rank, near) = (map.extents.len(), vec![1; map.extents.len()]);
        assert!(map.strides.len() + 1 == rank && map.tile.len() == rank, "a tensor of {rank} dimensions");
        let mut encoded = Encoded::default();
        let to = ptr::from_mut(&mut encoded).cast();
        let kinds = [CU_TENSOR_MAP_DATA_TYPE_UINT16 as c_int, swizzle as c_int];
        let fetched = CU_TENSOR_MAP_L2_PROMOTION_L2_128B as c_int;
        let (extents, strides, tile) = (map.extents.as_ptr(), map.strides.as_ptr(), map.tile.as_ptr());
        // SAFETY: the result has the size and alignment of the driver's type; each array has as many numbers as the
        // rank says, strides one less. The address is not followed. Neither interleaved nor filled with NaN.
        let code = unsafe {
            let encode = self.driver.calls.tensor_map;
            encode(
                to,
                kinds[0],
                rank as c_uint,
                at.0,
                extents,
                strides,
                tile,
                near.as_ptr(),
                0,
                kinds[1],
                fetched,
                0,
            )
        };
        self.driver.check("cuTensorMapEncodeTiled", code).map(|()| encoded)
    }

    /// A module from the bytes of a cubin, or of PTX that ends in NUL.
    pub fn module(self: &Arc<Self>, image: &[u8]) -> Answer<Module> {
        self.bind()?;
        // The format has 64-bit fields, and embedded bytes may lie anywhere.
        let mut aligned = vec![0u64; image.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..image.len()].copy_from_slice(image);
        let mut raw = ptr::null_mut();
        // SAFETY: the image is whole; the driver copies what it keeps.
        let code = unsafe { (self.driver.calls.module_load)(&mut raw, aligned.as_ptr().cast()) };
        self.driver.check("cuModuleLoadData", code)?;
        Ok(Module { context: Arc::clone(self), raw })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once; all that belonged to it is gone, since it held this context. An
        // error cannot be told to anyone, here and in the other drops: the one that led here was told already.
        unsafe { (self.driver.calls.context_release)(self.device) };
    }
}

/// A piece of the device's memory.
pub struct Memory {
    context: Arc<Context>,
    address: Address,
    bytes: usize,
}

impl Memory {
    /// Not initialised. Aligned to 256 bytes at least. No bytes need no driver.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Answer<Self> {
        let mut memory = Self { context: Arc::clone(context), address: 0, bytes };
        if bytes > 0 {
            context.bind()?;
            // SAFETY: the result has a place.
            let code = unsafe { (context.driver.calls.memory_alloc)(&mut memory.address, bytes) };
            if let Err(failure) = context.driver.check("cuMemAlloc", code) {
                memory.address = 0;
                return Err(failure);
            }
        }
        Ok(memory)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of a range that lies inside.
    fn range(&self, offset: usize, bytes: usize) -> Address {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{bytes} bytes from {offset} of {} on the device", self.bytes);
        self.address + offset as Address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.address != 0 {
            let _ = self.context.bind();
            // SAFETY: allocated once, freed once. The driver waits for work that uses it.
            unsafe { (self.context.driver.calls.memory_free)(self.address) };
        }
    }
}

/// A queue of work; what is put there runs in that order.
pub struct Stream {
    pub context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: the driver takes a stream's handle from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above, and the handle never changes.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Answer<Self> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: the result has a place.
        let code = unsafe { (context.driver.calls.stream_create)(&mut raw, flags) };
        context.driver.check("cuStreamCreate", code)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    fn driver(&self) -> &'static Driver {
        self.context.driver
    }

    /// Waits until everything is done. Errors of earlier work appear here.
    pub fn wait(&self) -> Answer<()> {
        self.context.bind()?;
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { (self.driver().calls.stream_wait)(self.raw) };
        self.driver().check("cuStreamSynchronize", code)
    }

    /// Copies to the device, and waits.
    pub fn write(&self, to: &Memory, offset: usize, bytes: &[u8]) -> Answer<()> {
        self.context.bind()?;
        let at = to.range(offset, bytes.len());
        // SAFETY: both ranges exist until the wait below is over.
        let code = unsafe { (self.driver().calls.upload)(at, bytes.as_ptr().cast(), bytes.len(), self.raw) };
        let queued = self.driver().check("cuMemcpyHtoDAsync", code);
        queued.and(self.wait())
    }

    /// Copies from the device, and waits.
    pub fn read(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Answer<()> {
        self.context.bind()?;
        let at = from.range(offset, bytes.len());
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: both ranges exist until the wait below is over.
        let code = unsafe { (self.driver().calls.download)(to, at, bytes.len(), self.raw) };
        let queued = self.driver().check("cuMemcpyDtoHAsync", code);
        queued.and(self.wait())
    }

    /// Zeros, without waiting.
    pub fn clear(&self, memory: &Memory) -> Answer<()> {
        self.fill(memory, 0)
    }

    /// The same byte everywhere, without waiting.
    pub fn fill(&self, memory: &Memory, byte: u8) -> Answer<()> {
        self.context.bind()?;
        // SAFETY: all of a live piece of memory, whose free waits for this.
        let code = unsafe { (self.driver().calls.fill_bytes)(memory.address, byte, memory.bytes, self.raw) };
        self.driver().check("cuMemsetD8Async", code)
    }

    /// One 32-bit word, without waiting.
    pub fn set_word(&self, memory: &Memory, offset: usize, word: u32) -> Answer<()> {
        self.context.bind()?;
        let at = memory.range(offset, size_of::<u32>());
        // SAFETY: a word of a live piece of memory, whose free waits for this; offsets of words are multiples of 4.
        let code = unsafe { (self.driver().calls.fill_words)(at, word, 1, self.raw) };
        self.driver().check("cuMemsetD32Async", code)
    }

    /// Queues a kernel.
    pub fn launch(&self, function: Function, grid: [u32; 3], params: &[u8]) -> Answer<()> {
        self.context.bind()?;
        let params = Params::new(params);
        let mut pointer = params.pointer();
        let ([x, y, z], Function { raw, threads, shared_bytes }) = (grid, function);
        // SAFETY: the function's module is loaded as long as its owner, who holds this stream too. It takes one
        // struct, which the driver copies before it returns. What the kernel does on the device is its rules'
        // business, which every launch was checked against.
        let code = unsafe {
            let launch = self.driver().calls.launch;
            launch(raw, x, y, z, threads, 1, 1, shared_bytes, self.raw, &mut pointer, ptr::null_mut())
        };
        self.driver().check("cuLaunchKernel", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created once, destroyed once; the driver finishes queued work first.
        unsafe { (self.driver().calls.stream_destroy)(self.raw) };
    }
}

/// A moment in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

impl Event {
    /// One that knows its time.
    pub fn new(context: &Arc<Context>) -> Answer<Self> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the result has a place. Without flags: with a time.
        let code = unsafe { (context.driver.calls.event_create)(&mut raw, 0) };
        context.driver.check("cuEventCreate", code)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Marks the moment at which everything that was queued before is done.
    pub fn record(&self, stream: &Stream) -> Answer<()> {
        self.context.bind()?;
        // SAFETY: an event and a stream that live, of one context.
        let code = unsafe { (self.context.driver.calls.event_record)(self.raw, stream.raw) };
        self.context.driver.check("cuEventRecord", code)
    }

    /// Milliseconds from an earlier moment to this one, which is waited for.
    pub fn since(&self, earlier: &Self) -> Answer<f32> {
        self.context.bind()?;
        let (calls, mut milliseconds) = (&self.context.driver.calls, 0.0);
        // SAFETY: the event lives as long as `self`.
        let code = unsafe { (calls.event_wait)(self.raw) };
        self.context.driver.check("cuEventSynchronize", code)?;
        // SAFETY: the result has a place; both events live and are of one context.
        let code = unsafe { (calls.event_elapsed)(&mut milliseconds, earlier.raw, self.raw) };
        self.context.driver.check("cuEventElapsedTime", code)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created once, destroyed once.
        unsafe { (self.context.driver.calls.event_destroy)(self.raw) };
    }
}

/// A kernel's params where the driver can read them: 64-bit numbers need their alignment.
pub struct Params(Vec<u64>);

impl Params {
    pub fn new(bytes: &[u8]) -> Self {
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
        Self(aligned)
    }

    /// Valid as long as `self`.
    pub fn pointer(&self) -> *mut c_void {
        self.0.as_ptr().cast_mut().cast()
    }
}

/// Compiled kernels on the device.
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: the driver takes a module's handle from any thread.
unsafe impl Send for Module {}

/// A kernel of a loaded module, and how it is launched.
#[derive(Clone, Copy)]
pub struct Function {
    pub raw: sys::CUfunction,
    pub threads: u32,
    pub shared_bytes: u32,
}

// SAFETY: a handle that the driver takes from any thread.
unsafe impl Send for Function {}

/// More dynamic shared memory than this must be asked for.
const FREE_SHARED_BYTES: u32 = 48 << 10;

impl Module {
    pub fn function(&self, name: &str, threads: u32, shared_bytes: u32) -> Answer<Function> {
        self.context.bind()?;
        let driver = self.context.driver;
        let name = CString::new(name).expect("names of kernels have no NUL");
        let mut raw = ptr::null_mut();
        // SAFETY: the result has a place, the name ends in NUL, and the module is loaded.
        let code = unsafe { (driver.calls.module_function)(&mut raw, self.raw, name.as_ptr()) };
        driver.check("cuModuleGetFunction", code)?;
        if shared_bytes > FREE_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let code = unsafe { (driver.calls.function_set)(raw, attribute as c_int, shared_bytes as c_int) };
            driver.check("cuFuncSetAttribute", code)?;
        }
        Ok(Function { raw, threads, shared_bytes })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded once, unloaded once; nobody launches its functions any more.
        unsafe { (self.context.driver.calls.module_unload)(self.raw) };
    }
}

/// Uploads through pinned memory: while one half travels the other is filled.
pub struct Staging<'a> {
    stream: &'a Stream,
    halves: Vec<Half>,
    next: usize,
}

/// Pinned memory, and when its last upload is done.
struct Half {
    memory: *mut c_void,
    done: sys::CUevent,
    travels: bool,
}

const HALVES: usize = 2;

impl<'a> Staging<'a> {
    /// For pieces of `HALF_BYTES` bytes at most.
    pub fn new(stream: &'a Stream) -> Answer<Self> {
        let mut staging = Self { stream, halves: Vec::new(), next: 0 };
        let (context, driver) = (&stream.context, stream.driver());
        context.bind()?;
        for _ in 0..HALVES {
            let mut memory = ptr::null_mut();
            // SAFETY: the result has a place. Without flags: ordinary pinned memory.
            let code = unsafe { (driver.calls.pinned_alloc)(&mut memory, HALF_BYTES, 0) };
            driver.check("cuMemHostAlloc", code)?;
            staging.halves.push(Half { memory, done: ptr::null_mut(), travels: false });
            let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;
            let half = staging.halves.last_mut().expect("pushed just now");
            // SAFETY: the result has a place.
            let code = unsafe { (driver.calls.event_create)(&mut half.done, flags) };
            driver.check("cuEventCreate", code)?;
        }
        Ok(staging)
    }

    /// Sends bytes; they may be forgotten at once.
    pub fn send(&mut self, to: &Memory, offset: usize, bytes: &[u8]) -> Answer<()> {
        let (stream, driver) = (self.stream, self.stream.driver());
        stream.context.bind()?;
        for (i, piece) in bytes.chunks(HALF_BYTES).enumerate() {
            let at = to.range(offset + i * HALF_BYTES, piece.len());
            let half = &mut self.halves[self.next];
            self.next = (self.next + 1) % HALVES;
            if half.travels {
                // SAFETY: the event lives as long as its half.
                let code = unsafe { (driver.calls.event_wait)(half.done) };
                driver.check("cuEventSynchronize", code)?;
            }
            // SAFETY: the half has room for a piece, and nothing reads it: its last upload is over.
            unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), half.memory.cast(), piece.len()) };
            half.travels = true;
            // SAFETY: both ranges exist; the half stays as it is until the event below.
            let code = unsafe { (driver.calls.upload)(at, half.memory, piece.len(), stream.raw) };
            driver.check("cuMemcpyHtoDAsync", code)?;
            // SAFETY: an event and a stream of one context.
            let code = unsafe { (driver.calls.event_record)(half.done, stream.raw) };
            driver.check("cuEventRecord", code)?;
        }
        Ok(())
    }

    /// Waits until everything has arrived.
    pub fn finish(self) -> Answer<()> {
        self.stream.wait()
    }
}

/// As large as the pieces that weights are packed in.
const HALF_BYTES: usize = crate::launch::PIECE_BYTES;

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let calls = &self.stream.driver().calls;
        // Nothing may read the halves any more; after an error nothing does.
        let _ = self.stream.wait();
        for half in &self.halves {
            // SAFETY: allocated once, freed once, and the device is done with it.
            unsafe { (calls.pinned_free)(half.memory) };
            if !half.done.is_null() {
                // SAFETY: created once, destroyed once.
                unsafe { (calls.event_destroy)(half.done) };
            }
        }
    }
}
