//! The CUDA compiler as a library, for builds that had none: embedded sources become binaries at first use.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use cudarc::nvrtc::sys;
use libloading::Library;

use super::cache::Cache;
use super::places::{builtins, candidates, explicit};
use super::table::table;
use crate::launch::binaries::{HEADERS, source};

const ADVICE: &str = "install it (pip install nvidia-cuda-nvrtc-cu12, or the CUDA toolkit), or name it with \
                      UNGUIDE_NVRTC=FILE|FOLDER, or build unguide where NVRTC is, which embeds the kernels";

table! {
    /// What a compilation takes.
    Calls {
        version: "nvrtcVersion"(*mut c_int, *mut c_int),
        create: "nvrtcCreateProgram"(
            *mut sys::nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        ),
        destroy: "nvrtcDestroyProgram"(*mut sys::nvrtcProgram),
        compile: "nvrtcCompileProgram"(sys::nvrtcProgram, c_int, *const *const c_char),
        log_bytes: "nvrtcGetProgramLogSize"(sys::nvrtcProgram, *mut usize),
        log: "nvrtcGetProgramLog"(sys::nvrtcProgram, *mut u8),
        cubin_bytes: "nvrtcGetCUBINSize"(sys::nvrtcProgram, *mut usize),
        cubin: "nvrtcGetCUBIN"(sys::nvrtcProgram, *mut u8),
        ptx_bytes: "nvrtcGetPTXSize"(sys::nvrtcProgram, *mut usize),
        ptx: "nvrtcGetPTX"(sys::nvrtcProgram, *mut u8),
    }
}

// SAFETY: no promise but a type, that of the table's fields.
type Size = unsafe extern "C" fn(sys::nvrtcProgram, *mut usize) -> c_int;
// SAFETY: as above.
type Get = unsafe extern "C" fn(sys::nvrtcProgram, *mut u8) -> c_int;

/// The compiler of this machine, looked for once; else what was tried. One that the user names is the only one.
pub fn library() -> Result<&'static Library, String> {
    static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Library, String> {
    let (places, setting) = match explicit() {
        Some((variable, path)) => (vec![path], Some(variable)),
        None => (candidates(None), None),
    };
    let mut tried = Vec::new();
    for place in places {
        match open(&place) {
            Ok(library) => {
                tracing::debug!(place = %place.display(), "NVRTC");
                return Ok(library);
            }
            Err(error) => tried.push((place.display().to_string(), error)),
        }
    }
    Err(match (setting, &tried[..]) {
        (Some(variable), [(place, error), ..]) => format!("{variable}={place} is no usable NVRTC: {error}"),
        _ => {
            let places: Vec<_> = tried.into_iter().map(|(place, _)| place).collect();
            format!("no NVRTC was found (tried {}): {ADVICE}", places.join(", "))
        }
    })
}

/// A library by its path, or by its bare name through the loader. It stays loaded.
fn open(place: &Path) -> Result<Library, libloading::Error> {
    if let Some(second) = builtins(place) {
        // SAFETY: a compiler's data library; its initialisers touch nothing of ours.
        let loaded = unsafe { Library::new(second) };
        // Without it some releases cannot compile, and say so themselves.
        loaded.map(std::mem::forget).unwrap_or_default();
    }
    // SAFETY: the file was chosen for being NVRTC; its initialisers touch nothing of ours.
    unsafe { Library::new(place) }
}

/// The one option besides the target.
const LANGUAGE: &str = "--std=c++17";

/// A file of kernels for one of [`crate::manifest::TARGETS`], from the cache or compiled now.
///
/// # Errors
/// No compiler, one that does not know the target, or its log.
pub fn compile(file: &str, target: &str, cache: Option<&Cache>) -> Result<Vec<u8>, String> {
    let unit = source(file, target).ok_or_else(|| format!("no source of kernels/{file} is embedded"))?;
    let wrong =
        |problem| format!("this build has no kernels for {target}, and cannot compile them: {problem}");
    let compiler = Compiler::open().map_err(wrong)?;
    let (major, minor) = compiler.version;
    let version = format!("NVRTC {major}.{minor}");
    let mut parts = vec![version.as_str(), target, LANGUAGE, file, unit.as_str()];
    parts.extend(HEADERS.iter().flat_map(|(name, text)| [*name, *text]));
    let key = Cache::key(&parts);
    if let Some(binary) = cache.and_then(|cache| cache.get(&key)) {
        return Ok(binary);
    }
    tracing::info!(file, target, %version, "compiling");
    let binary = compiler.compile(file, &unit, target);
    let binary =
        binary.map_err(|log| format!("{version} cannot compile kernels/{file} for {target}:\n{log}"))?;
    if let Some(problem) = cache.and_then(|cache| cache.put(&key, &binary).err()) {
        tracing::warn!("the compiled kernels were not kept: {problem}");
    }
    Ok(binary)
}

struct Compiler {
    calls: Calls,
    version: (c_int, c_int),
}

impl Compiler {
    fn open() -> Result<Self, String> {
        let calls = Calls::load(library()?);
        let calls = calls.map_err(|symbol| format!("the NVRTC found has no {symbol}: {ADVICE}"))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both results have a place.
        let code = unsafe { (calls.version)(&mut major, &mut minor) };
        if code != 0 {
            return Err(format!("nvrtcVersion answers error {code}"));
        }
        Ok(Self { calls, version: (major, minor) })
    }

    /// The error is the compiler's log.
    fn compile(&self, file: &str, unit: &str, target: &str) -> Result<Vec<u8>, String> {
        let c = |text: &str| CString::new(text).map_err(|_| format!("a NUL byte in kernels/{file}"));
        let all = |texts: Vec<&str>| texts.into_iter().map(c).collect::<Result<Vec<_>, _>>();
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (unit, name) = (c(unit)?, c(&format!("kernels/{file}"))?);
        let names = all(HEADERS.iter().map(|(name, _)| *name).collect())?;
        let texts = all(HEADERS.iter().map(|(_, text)| *text).collect())?;
        let architecture = format!("--gpu-architecture={target}");
        let options = all(vec![&architecture, LANGUAGE])?;
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));

        let mut program = ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call; the count is that of both arrays.
        let code = unsafe {
            let count = names.len() as c_int;
            (self.calls.create)(
                &mut program,
                unit.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if code != 0 {
            return Err(format!("nvrtcCreateProgram answers error {code}"));
        }
        // SAFETY: a live program; strings and count as above.
        let code = unsafe { (self.calls.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = if code == 0 {
            let ptx = target.starts_with("compute");
            let (size, get): (Size, Get) = if ptx {
                (self.calls.ptx_bytes, self.calls.ptx)
            } else {
                (self.calls.cubin_bytes, self.calls.cubin)
            };
            output(program, size, get).map_err(|code| format!("the binary cannot be had: error {code}"))
        } else {
            let log = output(program, self.calls.log_bytes, self.calls.log).unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
            Err(format!("error {code}\n{}", log.trim_end()))
        };
        // SAFETY: made once, destroyed once.
        unsafe { (self.calls.destroy)(&mut program) };
        result
    }
}

/// One of a program's results.
fn output(program: sys::nvrtcProgram, size: Size, get: Get) -> Result<Vec<u8>, c_int> {
    let mut bytes = 0;
    // SAFETY: a live program, and the result has a place.
    let code = unsafe { size(program, &mut bytes) };
    let mut result = vec![0; bytes];
    // SAFETY: as above; the buffer has as many bytes as the compiler asked for.
    let code = if code == 0 { unsafe { get(program, result.as_mut_ptr()) } } else { code };
    if code == 0 { Ok(result) } else { Err(code) }
}
