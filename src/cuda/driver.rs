//! The driver's functions: found one by one, called with integers for answers.
//!
//! cudarc opens the libraries and knows their types. Its own functions panic where a library or a symbol is missing
//! and take every answer for one of the errors that they know; so each function that we call is looked up here
//! before anything runs, and a driver that lacks one, or answers what nobody knows yet, is an ordinary error.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::table::table;

const NO_DEVICE: c_int = 100;
const OUT_OF_MEMORY: c_int = 2;
const UNSUPPORTED_PTX: c_int = 222;
/// CUDA 12.0: what the embedded binaries need, by the rule that a major version's binaries run on its first driver.
const OLDEST: c_int = 12000;

pub type Address = u64;

table! {
    /// What tells a driver from another library, whatever its age.
    Identity {
        driver_version: "cuDriverGetVersion"(*mut c_int),
        init: "cuInit"(c_uint),
        error_name: "cuGetErrorName"(c_int, *mut *const c_char),
        error_words: "cuGetErrorString"(c_int, *mut *const c_char),
        device_count: "cuDeviceGetCount"(*mut c_int),
        device: "cuDeviceGet"(*mut c_int, c_int),
        device_name: "cuDeviceGetName"(*mut c_char, c_int, c_int),
        device_memory: "cuDeviceTotalMem_v2"(*mut usize, c_int),
        device_attribute: "cuDeviceGetAttribute"(*mut c_int, c_int, c_int),
    }
}

table! {
    /// What running takes.
    Calls {
        context_retain: "cuDevicePrimaryCtxRetain"(*mut sys::CUcontext, c_int),
        context_release: "cuDevicePrimaryCtxRelease_v2"(c_int),
        context_set: "cuCtxSetCurrent"(sys::CUcontext),
        memory_info: "cuMemGetInfo_v2"(*mut usize, *mut usize),
        memory_alloc: "cuMemAlloc_v2"(*mut Address, usize),
        memory_free: "cuMemFree_v2"(Address),
        pinned_alloc: "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint),
        pinned_free: "cuMemFreeHost"(*mut c_void),
        upload: "cuMemcpyHtoDAsync_v2"(Address, *const c_void, usize, sys::CUstream),
        download: "cuMemcpyDtoHAsync_v2"(*mut c_void, Address, usize, sys::CUstream),
        fill_bytes: "cuMemsetD8Async"(Address, u8, usize, sys::CUstream),
        fill_words: "cuMemsetD32Async"(Address, c_uint, usize, sys::CUstream),
        stream_create: "cuStreamCreate"(*mut sys::CUstream, c_uint),
        stream_destroy: "cuStreamDestroy_v2"(sys::CUstream),
        stream_wait: "cuStreamSynchronize"(sys::CUstream),
        event_create: "cuEventCreate"(*mut sys::CUevent, c_uint),
        event_destroy: "cuEventDestroy_v2"(sys::CUevent),
        event_record: "cuEventRecord"(sys::CUevent, sys::CUstream),
        event_wait: "cuEventSynchronize"(sys::CUevent),
        event_elapsed: "cuEventElapsedTime"(*mut f32, sys::CUevent, sys::CUevent),
        module_load: "cuModuleLoadData"(*mut sys::CUmodule, *const c_void),
        module_unload: "cuModuleUnload"(sys::CUmodule),
        module_function: "cuModuleGetFunction"(*mut sys::CUfunction, sys::CUmodule, *const c_char),
        function_set: "cuFuncSetAttribute"(sys::CUfunction, c_int, c_int),
        launch: "cuLaunchKernel"(
            sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream,
            *mut *mut c_void, *mut *mut c_void,
        ),
        tensor_map: "cuTensorMapEncodeTiled"(
            *mut sys::CUtensorMap, c_int, c_uint, Address, *const u64, *const u64, *const c_uint, *const c_uint, c_int,
            c_int, c_int, c_int,
        ),
    }
}

table! {
    /// What graphs that branch by themselves take; drivers before 12.4 lack some of it.
    GraphCalls {
        create: "cuGraphCreate"(*mut sys::CUgraph, c_uint),
        destroy: "cuGraphDestroy"(sys::CUgraph),
        add_node: "cuGraphAddNode_v2"(
            *mut sys::CUgraphNode, sys::CUgraph, *const sys::CUgraphNode, *const sys::CUgraphEdgeData, usize,
            *mut sys::CUgraphNodeParams,
        ),
        condition: "cuGraphConditionalHandleCreate"(
            *mut sys::CUgraphConditionalHandle, sys::CUgraph, sys::CUcontext, c_uint, c_uint,
        ),
        instantiate: "cuGraphInstantiateWithFlags"(*mut sys::CUgraphExec, sys::CUgraph, u64),
        exec_destroy: "cuGraphExecDestroy"(sys::CUgraphExec),
        launch: "cuGraphLaunch"(sys::CUgraphExec, sys::CUstream),
    }
}

/// A driver that is there and started.
pub struct Driver {
    pub calls: Calls,
    identity: Identity,
    /// 12040 is 12.4.
    pub version: c_int,
    /// None where some of it is missing.
    pub graphs: Option<GraphCalls>,
    /// Without one it does not even start.
    has_devices: bool,
}

/// A call that the driver refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub call: &'static str,
    pub code: c_int,
    words: String,
}

pub type Answer<T> = Result<T, Failure>;

impl Failure {
    pub fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }

    pub fn is_unsupported_ptx(&self) -> bool {
        self.code == UNSUPPORTED_PTX
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers {}", self.call, self.words)
    }
}

/// `12.4` for 12040.
pub fn version_words(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Driver {
    /// The driver of this machine, or why it cannot be used. Looked for once.
    pub fn get() -> Result<&'static Self, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, String> {
        // SAFETY: opens and closes a library of that name, whose initialisers are the driver's own.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "no CUDA driver (libcuda) was found; install NVIDIA's driver, or use --device cpu".into()
            );
        }
        let old = |found: &str| {
            let least = version_words(OLDEST);
            format!("the CUDA driver is too old: found {found}, at least {least} is needed; update it")
        };
        let unknown =
            |symbol| format!("libcuda has no {symbol}: it is no CUDA driver; reinstall NVIDIA's driver");
        // SAFETY: the library is there, as the line above has found; it stays open for the rest of the process.
        let library = unsafe { sys::culib() };
        let identity = Identity::load(library).map_err(unknown)?;
        let mut version = 0;
        // SAFETY: the result has a place; the function may be called before all others.
        let code = unsafe { (identity.driver_version)(&mut version) };
        identity.check("cuDriverGetVersion", code).map_err(|failure| failure.to_string())?;
        if version < OLDEST {
            return Err(old(&version_words(version)));
        }
        let calls = Calls::load(library);
        let calls = calls.map_err(|symbol| old(&format!("{} without {symbol}", version_words(version))))?;
        // SAFETY: takes no pointer, and may be called any number of times.
        let code = unsafe { (identity.init)(0) };
        let has_devices = code != NO_DEVICE;
        if has_devices {
            let started = identity.check("cuInit", code);
            started.map_err(|failure| format!("the CUDA driver does not start: {failure}"))?;
        }
        Ok(Self { calls, identity, version, graphs: GraphCalls::load(library).ok(), has_devices })
    }

    /// The answer of a call.
    pub fn check(&self, call: &'static str, code: c_int) -> Answer<()> {
        self.identity.check(call, code)
    }

    /// How many devices there are.
    pub fn devices(&self) -> Answer<c_int> {
        if !self.has_devices {
            return Ok(0);
        }
        let mut count = 0;
        // SAFETY: the result has a place.
        let code = unsafe { (self.identity.device_count)(&mut count) };
        self.check("cuDeviceGetCount", code).map(|()| count)
    }

    pub fn device(&self, ordinal: c_int) -> Answer<c_int> {
        let mut device = 0;
        // SAFETY: the result has a place.
        let code = unsafe { (self.identity.device)(&mut device, ordinal) };
        self.check("cuDeviceGet", code).map(|()| device)
    }

    pub fn device_name(&self, device: c_int) -> Answer<String> {
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the name has the length that is given; it is written with its NUL.
        let code = unsafe { (self.identity.device_name)(name.as_mut_ptr(), name.len() as c_int, device) };
        self.check("cuDeviceGetName", code)?;
        let bytes = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect::<Vec<_>>();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn device_memory(&self, device: c_int) -> Answer<usize> {
        let mut bytes = 0;
        // SAFETY: the result has a place.
        let code = unsafe { (self.identity.device_memory)(&mut bytes, device) };
        self.check("cuDeviceTotalMem", code).map(|()| bytes)
    }

    pub fn device_attribute(&self, device: c_int, attribute: sys::CUdevice_attribute) -> Answer<c_int> {
        let mut value = 0;
        // SAFETY: the result has a place.
        let code = unsafe { (self.identity.device_attribute)(&mut value, attribute as c_int, device) };
        self.check("cuDeviceGetAttribute", code).map(|()| value)
    }
}

impl Identity {
    fn check(&self, call: &'static str, code: c_int) -> Answer<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: no promise but a type; both functions in question have it.
        type Question = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let ask = |question: Question| {
            let mut words: *const c_char = std::ptr::null();
            // SAFETY: the result has a place; what is found there is null or a text of the driver's own, which
            // ends in NUL and is never freed.
            unsafe {
                let known = question(code, &mut words) == 0 && !words.is_null();
                known.then(|| CStr::from_ptr(words).to_string_lossy().into_owned())
            }
        };
        let words = match (ask(self.error_name), ask(self.error_words)) {
            (Some(name), Some(words)) => format!("{name} ({code}): {words}"),
            _ => format!("error {code}"),
        };
        Err(Failure { call, code, words })
    }
}
