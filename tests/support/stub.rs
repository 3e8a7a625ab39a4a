//! The stand-in for the CUDA driver, `tests/stub_cuda/libcuda.cpp`, as a library.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
