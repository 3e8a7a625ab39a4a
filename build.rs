//! Compiles the kernels: with NVRTC to binaries for every GPU, and, with the feature `simt`, with a C++
//! compiler to something that runs on the CPU.
//!
//! Without NVRTC the build works all the same, says so in one line, and embeds the sources alone. The feature
//! `require-cubins` makes NVRTC mandatory. No CUDA installation takes part.

#[path = "kernels/build/cache.rs"]
mod cache;
#[path = "kernels/build/cubins.rs"]
mod cubins;
#[allow(dead_code)] // what the build does not need, the library does
#[path = "src/manifest.rs"]
mod manifest;
#[cfg(feature = "simt")]
#[path = "kernels/simt/mutations.rs"]
mod mutations;
#[path = "kernels/build/nvrtc.rs"]
mod nvrtc;
#[path = "src/cuda/places.rs"]
mod places;
#[cfg(feature = "simt")]
#[path = "kernels/build/simt.rs"]
mod simt;
#[path = "kernels/build/sources.rs"]
mod sources;

use std::path::{Path, PathBuf};
use std::{env, fs, process, thread};

use cache::Cache;
use nvrtc::Nvrtc;
use sources::Sources;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let folder =
        |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set: run cargo"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR")?, folder("OUT_DIR")?);
    // A path that is not there would make cargo run this script every time.
    for path in ["build.rs", "kernels", "src/manifest.rs", "src/cuda/places.rs", "target/nvrtc/12.9.86"] {
        if root.join(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    for variable in places::EXPLICIT.iter().chain(&places::INSTALLATIONS) {
        println!("cargo:rerun-if-env-changed={variable}");
    }

    let sources = Sources::read(&root.join("kernels"))?;
    let cache = Cache::beside(&out);
    thread::scope(|scope| {
        // The two builds share nothing, and neither keeps two cores busy to its end.
        let simt = scope.spawn(|| proven(&root, &out, &sources, &cache));
        write(&out.join("kernels.rs"), &(binaries(&root, &sources, &cache)? + &embedded(&sources)))?;
        simt.join().expect("a build that panics has said why")
    })
}

/// The kernels as code for this CPU, where a feature asks for it.
#[cfg(not(feature = "simt"))]
fn proven(_: &Path, _: &Path, _: &Sources, _: &Cache) -> Result<(), String> {
    Ok(())
}
#[cfg(feature = "simt")]
use simt::build as proven;

/// The tables of what NVRTC makes of the sources.
fn binaries(root: &Path, sources: &Sources, cache: &Cache) -> Result<String, String> {
    match Nvrtc::find(root)? {
        Some(nvrtc) => {
            let words = |e| format!("NVRTC of {}: {e}", nvrtc.place);
            #[cfg(feature = "simt")]
            cubins::try_probes(&nvrtc, sources, cache, &simt::probes(root)?).map_err(words)?;
            cubins::build(&nvrtc, sources, cache).map_err(words)
        }
        None if env::var_os("CARGO_FEATURE_REQUIRE_CUBINS").is_some() => {
            Err("no NVRTC was found, and the feature `require-cubins` asks for one; \
                 `sh kernels/setup.sh` installs it into target/, UNGUIDE_NVRTC names another"
                .to_owned())
        }
        None => {
            println!(
                "cargo:warning=no NVRTC found: the kernels are embedded as sources (`sh kernels/setup.sh` installs it)"
            );
            Ok("pub static MODULES: &[Module] = &[];\npub static RESOURCES: &[Resources] = &[];\n".to_owned())
        }
    }
}

/// The sources themselves, for compilation where no binary fits.
fn embedded(sources: &Sources) -> String {
    let table = |name: &str, files: &[(String, String)]| {
        let rows: String = files.iter().map(|(name, text)| format!("    ({name:?}, {text:?}),\n")).collect();
        format!("pub static {name}: &[(&str, &str)] = &[\n{rows}];\n")
    };
    table("SOURCES", &sources.files) + &table("HEADERS", &sources.headers)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
