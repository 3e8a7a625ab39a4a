//! Finds NVRTC, the CUDA compiler as a library, and calls it. Nothing else of CUDA is needed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use libloading::Library;

use crate::places::{builtins, candidates, explicit};

type Program = *mut c_void;

/// The library and the functions of it that we call.
pub struct Nvrtc {
    pub version: (i32, i32),
    pub place: String,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log: Output,
    cubin: Output,
    ptx: Output,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    message: unsafe extern "C" fn(c_int) -> *const c_char,
    _builtins: Option<Library>,
    _library: Library,
}

/// A pair of functions: how many bytes, and the bytes.
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Program, *mut u8) -> c_int,
}

/// What a compilation gave: the binary, and what the compiler said about registers and spills.
pub struct Compiled {
    pub binary: Vec<u8>,
    pub log: String,
}

impl Nvrtc {
    /// The first usable library in the order of the README; `None` where there is none.
    pub fn find(root: &Path) -> Result<Option<Self>, String> {
        if let Some((variable, path)) = explicit() {
            let wrong = |e| format!("{variable}={} is no usable NVRTC: {e}", path.display());
            return Self::open(&path).map(Some).map_err(wrong);
        }
        Ok(candidates(Some(root.join("target/nvrtc"))).iter().find_map(|path| Self::open(path).ok()))
    }

    /// Opens a library by its path, or by its bare name through the loader.
    fn open(path: &Path) -> Result<Self, String> {
        let words = |error: libloading::Error| error.to_string();
        let builtins = builtins(path).and_then(|second| {
            // SAFETY: a compiler's data library; its initialisers touch nothing of ours.
            unsafe { Library::new(second) }.ok()
        });
        // SAFETY: the file was chosen for being NVRTC; its initialisers touch nothing of ours.
        let library = unsafe { Library::new(path) }.map_err(words)?;
        // SAFETY: names and signatures are those of nvrtc.h, unchanged since CUDA 11.1. The pointers live
        // as long as the library, which the same struct owns.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                *library.get(b"nvrtcVersion").map_err(words)?;
            let (mut major, mut minor) = (0, 0);
            if version(&mut major, &mut minor) != 0 {
                return Err("nvrtcVersion fails".to_owned());
            }
            Ok(Self {
                version: (major, minor),
                place: path.display().to_string(),
                create: *library.get(b"nvrtcCreateProgram").map_err(words)?,
                compile: *library.get(b"nvrtcCompileProgram").map_err(words)?,
                log: Output {
                    size: *library.get(b"nvrtcGetProgramLogSize").map_err(words)?,
                    get: *library.get(b"nvrtcGetProgramLog").map_err(words)?,
                },
                cubin: Output {
                    size: *library.get(b"nvrtcGetCUBINSize").map_err(words)?,
                    get: *library.get(b"nvrtcGetCUBIN").map_err(words)?,
                },
                ptx: Output {
                    size: *library.get(b"nvrtcGetPTXSize").map_err(words)?,
                    get: *library.get(b"nvrtcGetPTX").map_err(words)?,
                },
                destroy: *library.get(b"nvrtcDestroyProgram").map_err(words)?,
                message: *library.get(b"nvrtcGetErrorString").map_err(words)?,
                _builtins: builtins,
                _library: library,
            })
        }
    }

    /// Compiles `source`, in which errors are reported as being in `name`; `headers` are names and texts.
    /// The binary is PTX where `options` ask for a virtual architecture. The error is the compiler's log.
    pub fn compile(
        &self,
        (name, source): (&str, &str),
        headers: &[(String, String)],
        options: &[String],
        ptx: bool,
    ) -> Result<Compiled, String> {
        let c = |text: &str| CString::new(text).map_err(|_| format!("{name}: a NUL byte in the source"));
        let (source, file) = (c(source)?, c(name)?);
        let names = headers.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));

        let mut program: Program = ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the calls; counts match the arrays; `program` is made
        // by the first call, used by the next ones and destroyed once.
        unsafe {
            let count = names.len() as c_int;
            let code = (self.create)(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            );
            if code != 0 {
                return Err(self.words(code));
            }
            let code = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let log = self.output(program, &self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
            let result = if code == 0 {
                let output = if ptx { &self.ptx } else { &self.cubin };
                self.output(program, output).map(|mut binary| {
                    // PTX comes with the NUL that ends it.
                    while ptx && binary.last() == Some(&0) {
                        binary.pop();
                    }
                    Compiled { binary, log }
                })
            } else {
                Err(format!("{}\n{log}", self.words(code)))
            };
            (self.destroy)(&mut program);
            result
        }
    }

    /// # Safety
    /// `program` is a live program of this library, and `output` two functions of it.
    unsafe fn output(&self, program: Program, output: &Output) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the caller's promise.
        let code = unsafe { (output.size)(program, &mut size) };
        let mut bytes = vec![0; size];
        // SAFETY: the buffer has as many bytes as the library asked for.
        let code = if code == 0 { unsafe { (output.get)(program, bytes.as_mut_ptr()) } } else { code };
        if code == 0 { Ok(bytes) } else { Err(self.words(code)) }
    }

    fn words(&self, code: c_int) -> String {
        // SAFETY: the function returns a constant string for every code.
        unsafe { CStr::from_ptr((self.message)(code)) }.to_string_lossy().into_owned()
    }
}
