//! Where NVRTC may be: for the build, which includes this file, and for a program that has to compile its kernels.
//! Nothing but `std`.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Variables that name the library, or a folder with it. Set but unusable is an error.
pub const EXPLICIT: [&str; 2] = ["UNGUIDE_NVRTC", "NVRTC_LIB"];
/// Variables that name an installation to look into: two of Python, two of CUDA.
pub const INSTALLATIONS: [&str; 4] = ["VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH"];

/// The variable that names a library, and the path: a folder stands for the first library in it.
pub fn explicit() -> Option<(&'static str, PathBuf)> {
    EXPLICIT.into_iter().find_map(|variable| {
        let path = PathBuf::from(env::var_os(variable).filter(|value| !value.is_empty())?);
        let inside = if path.is_dir() { libraries(&path).into_iter().next() } else { None };
        Some((variable, inside.unwrap_or(path)))
    })
}

/// Everywhere else a library may be, in the order in which it is looked for; `packages` is a folder of Python
/// packages that goes before all others.
pub fn candidates(packages: Option<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut packages: Vec<_> = packages.into_iter().collect();
    let (environments, toolkits) = INSTALLATIONS.split_at(2);
    for variable in environments {
        let Some(prefix) = env::var_os(variable) else { continue };
        let versions = fs::read_dir(Path::new(&prefix).join("lib")).into_iter().flatten().flatten();
        packages.extend(versions.map(|version| version.path().join("site-packages")));
    }
    for folder in packages {
        for inner in ["nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib", "nvidia/cu13/lib"] {
            found.extend(libraries(&folder.join(inner)));
        }
    }
    for variable in toolkits {
        if let Some(home) = env::var_os(variable) {
            found.extend(libraries(&Path::new(&home).join("lib64")));
        }
    }
    found.extend(libraries(Path::new("/usr/local/cuda/lib64")));
    // Bare names go through the loader's own path.
    found.extend(["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"].map(PathBuf::from));
    found
}

/// The second library that a compiler wants beside itself. Some releases cannot find it; whoever is loaded already is
/// found.
pub fn builtins(library: &Path) -> Option<PathBuf> {
    named(library.parent()?, "libnvrtc-builtins.so").into_iter().next()
}

fn libraries(folder: &Path) -> Vec<PathBuf> {
    named(folder, "libnvrtc.so")
}

/// Files of a folder whose name starts so, sorted. The `.alt.` twins of a library are left alone.
fn named(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && !name.contains(".alt.")
    });
    paths.sort();
    paths
}
