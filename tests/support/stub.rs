//! The stand-in for the CUDA driver, `tests/stub_cuda/libcuda.cpp`, as a library.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use unguide::launch::Launch;
use unguide::manifest;
use unguide::simt::{Mode, Simt};

/// The folder with the library, compiled with a macro of that name.
pub fn stub(defined: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub_cuda/libcuda.cpp");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stub-{defined}"));
    fs::create_dir_all(&folder).expect("made");
    let library = folder.join("libcuda.so");
    let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    if time(&library) < time(&source) {
        // Tests run at the same time: the library appears whole, whoever was first.
        let partial = tempfile::NamedTempFile::new_in(&folder).expect("a file").into_temp_path();
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let mut command = Command::new(&compiler);
        command.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"]).arg(&partial).arg(&source);
        command.arg(format!("-D{defined}"));
        assert!(command.status().expect(&compiler).success(), "{compiler} does not compile the stub");
        partial.persist(&library).expect("renamed");
    }
    folder
}

/// The counts that the stub wrote at exit.
pub struct Counts(HashMap<String, i64>);

impl Counts {
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("the stub's counts");
        let line = |line: &str| {
            let (name, count) = line.split_once(' ').expect("a name and a count");
            (name.to_owned(), count.parse().expect("a count"))
        };
        Self(text.lines().map(line).collect())
    }

    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        self.0[name]
    }

    /// Everything that the driver handed out came back, and no call was wrong.
    #[track_caller]
    pub fn are_even(&self) {
        for what in [
            "contexts", "memory", "bytes", "pinned", "streams", "events", "modules", "graphs", "execs",
            "mistakes",
        ] {
            assert_eq!(self.get(what), 0, "{what}: {:?}", self.0);
        }
    }
}

/// How many bytes of params a kernel takes.
pub extern "C" fn params_bytes(kernel: *const c_char) -> usize {
    // SAFETY: the stub's names end in NUL.
    let name = unsafe { CStr::from_ptr(kernel) }.to_str().expect("a name");
    Simt::kernel(name).expect("a kernel").1
}

/// A launch, as the stub tells it.
pub fn stub_launch(kernel: *const c_char, grid: *const u32, params: *const c_void, bytes: usize) -> Launch {
    // SAFETY: the stub's names end in NUL, its grids have three extents, and params the bytes that it was told.
    let (name, grid, params) = unsafe {
        let params = std::slice::from_raw_parts(params.cast::<u8>(), bytes).to_vec();
        (CStr::from_ptr(kernel).to_str().expect("a name"), *grid.cast::<[u32; 3]>(), params)
    };
    let kernel = manifest::find(name).expect("a row");
    Launch { kernel, grid, params, addresses: 0, maps: Vec::new() }
}

/// What the stub runs: the very sources of the kernels, on the CPU.
extern "C" fn launch(kernel: *const c_char, grid: *const u32, params: *const c_void, bytes: usize) {
    let launch = stub_launch(kernel, grid, params, bytes);
    Simt::new().run(&launch, Mode::FAST).expect("a launch that is right");
}

/// Has the stub run kernels; returns what asks for its counts.
pub fn stub_with_kernels() -> impl Fn(&CStr) -> i64 {
    // SAFETY: the library is the stub, loaded when devices were counted; these are its functions.
    let count = unsafe {
        let stub = cudarc::driver::sys::culib();
        type Kernels = unsafe extern "C" fn(
            extern "C" fn(*const c_char) -> usize,
            extern "C" fn(*const c_char, *const u32, *const c_void, usize),
        );
        let kernels = stub.get::<Kernels>(b"stub_kernels").expect("the stub");
        kernels(params_bytes, launch);
        *stub.get::<unsafe extern "C" fn(*const c_char) -> i64>(b"stub_count").expect("the stub")
    };
    // SAFETY: names end in NUL.
    move |name: &CStr| unsafe { count(name.as_ptr()) }
}
