//! Kernels of one device, loaded when they are first asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::driver::version_words;
use super::handles::{Context, Function, Module};
use super::nvrtc;
use crate::error::{Error, Result};
use crate::launch::binaries::{self, MODULES};
use crate::manifest::{Kernel, TARGETS};

/// Set to `source`: compiles the embedded sources even where binaries are embedded.
const SWITCH: &str = "UNGUIDE_KERNELS";

/// Whether this build or this machine has what devices of a target take; else why not.
pub fn available() -> Result<(), String> {
    if from_binaries() {
        return Ok(());
    }
    let wrong = |problem| format!("the kernels are to be compiled from their sources: {problem}");
    nvrtc::library().map(drop).map_err(wrong)
}

/// The targets that this build has binaries for.
pub fn embedded() -> Vec<&'static str> {
    let has = |target: &&str| MODULES.iter().any(|module| module.target == *target);
    TARGETS.into_iter().filter(has).collect()
}

fn from_binaries() -> bool {
    !MODULES.is_empty() && std::env::var_os(SWITCH).is_none_or(|value| value != "source")
}

pub struct Kernels {
    context: Arc<Context>,
    /// As users call it: `cuda:0`.
    device: String,
    target: &'static str,
    /// Of a block, at most.
    shared_bytes: u32,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By file, and whether they are those for bf16.
    modules: HashMap<(&'static str, bool), Module>,
    /// By kernel.
    functions: HashMap<&'static str, Function>,
    took: Duration,
}

impl Kernels {
    pub fn new(context: &Arc<Context>, device: &str, target: &'static str, shared_bytes: u32) -> Self {
        let (context, device) = (Arc::clone(context), device.to_owned());
        Self { context, device, target, shared_bytes, loaded: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time that loading took, compilations included.
    pub fn took(&self) -> Duration {
        self.lock().took
    }

    /// Good for as long as `self`.
    pub fn function(&self, kernel: &'static Kernel) -> Result<Function> {
        let mut loaded = self.lock();
        if let Some(&function) = loaded.functions.get(kernel.name) {
            return Ok(function);
        }
        if kernel.shared_bytes > self.shared_bytes {
            let problem = format!(
                "kernel `{}` needs {} bytes of shared memory, a block there has {}",
                kernel.name, kernel.shared_bytes, self.shared_bytes
            );
            return Err(self.error(problem));
        }
        let (start, unit) = (Instant::now(), (kernel.file, kernel.is_bf16()));
        let module = match loaded.modules.remove(&unit) {
            Some(module) => module,
            None => self.load(kernel)?,
        };
        loaded.took += start.elapsed();
        let module = loaded.modules.entry(unit).or_insert(module);
        let function = module.function(kernel.name, kernel.threads, kernel.shared_bytes);
        let function =
            function.map_err(|failure| self.error(format!("kernel `{}`: {failure}", kernel.name)))?;
        loaded.functions.insert(kernel.name, function);
        Ok(function)
    }

    fn load(&self, kernel: &Kernel) -> Result<Module> {
        let mut image = match binaries::module(kernel, self.target) {
            Some(module) if from_binaries() => module.binary.to_vec(),
            _ => {
                let cache =
                    Cache::of_user().map_err(|problem| tracing::warn!("no cache of kernels: {problem}"));
                nvrtc::compile(kernel.file, self.target, cache.ok().as_ref())
                    .map_err(|problem| self.error(problem))?
            }
        };
        if self.target.starts_with("compute") && image.last() != Some(&0) {
            // The driver takes PTX as a text that ends in NUL.
            image.push(0);
        }
        self.context.module(&image).map_err(|failure| {
            let driver = version_words(self.context.driver.version);
            let advice = match failure.is_unsupported_ptx() {
                true => format!("; the driver ({driver}) is older than the kernels: update it"),
                false => String::new(),
            };
            self.error(format!("kernels/{} for {}: {failure}{advice}", kernel.file, self.target))
        })
    }

    fn error(&self, problem: String) -> Error {
        Error::Device { device: self.device.clone(), problem }
    }
}
