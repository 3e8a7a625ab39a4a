//! Binaries by the hash of everything they were made from, in a folder that outlives a build.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::{env, fs, process, thread};

use sha2::{Digest, Sha256};

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Next to the build folders of all packages, so that every set of features shares it.
    pub fn beside(out: &Path) -> Self {
        let folder = out.ancestors().nth(3).unwrap_or(out).join("kernel-cache");
        fs::create_dir_all(&folder).expect("the target folder can be written");
        Self { folder }
    }

    /// The path, without extension, of the files with that content key. Where they are not there yet, `make`
    /// writes one for every extension to the path that it is given.
    pub fn get(
        &self,
        parts: &[&str],
        extensions: &[&str],
        make: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let path = self.folder.join(&key);
        if !extensions.iter().all(|extension| path.with_extension(extension).exists()) {
            // Two jobs may want the same thing at the same time: each makes its own, and the last one stays.
            static MADE: AtomicUsize = AtomicUsize::new(0);
            let made = MADE.fetch_add(1, Ordering::Relaxed);
            let partial = self.folder.join(format!("{key}-{}-{made}", process::id()));
            make(&partial)?;
            for extension in extensions {
                let (from, to) = (partial.with_extension(extension), path.with_extension(extension));
                fs::rename(&from, &to).map_err(|e| format!("{}: {e}", to.display()))?;
            }
        }
        Ok(path)
    }
}

/// Runs `job` on every item, as many at once as cargo allows, also where several lists are worked on at the same
/// time: while one waits for its last item, the others go on. Results keep the order of the items.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], job: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { return };
                    let result = {
                        let _turn = Turn::wait(jobs);
                        job(item)
                    };
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|&(i, _)| i);
    results.into_iter().map(|(_, result)| result).collect()
}

/// One of the jobs that run, of all lists.
struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

impl Turn {
    fn wait(jobs: usize) -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running =
            LEFT.wait_while(running, |running| *running >= jobs).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LEFT.notify_one();
    }
}
