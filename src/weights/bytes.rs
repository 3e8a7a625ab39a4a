//! The bytes of one file, read range by range.
//!
//! A model file is gigabytes large and others may write to it while we read, so the default is
//! plain positional reads into memory of our own: a file that shrinks gives an error. On request a
//! file is mapped as well: numbers that are stored as they are wanted then stay in the file's pages
//! ([`InPlace`]), and only what must be converted is read. A file that shrinks under a map ends the
//! process, so a map is never chosen by itself; [`explain_lost_pages`] gives that end words.

use std::ffi::c_int;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};
use signal_hook::consts::SIGBUS;
use signal_hook::low_level;

use crate::error::{Error, Result};

/// An open file, or bytes that are part of the program, under the name that messages use.
#[derive(Debug)]
pub struct Blob {
    path: PathBuf,
    len: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Embedded(&'static [u8]),
    File(File),
    Mapped { map: Arc<Mmap>, file: File },
}

/// Numbers of a file in the pages of its map: page cache, not memory of ours. Keeps the map.
#[derive(Clone)]
pub struct InPlace {
    map: Arc<Mmap>,
    bytes: Range<usize>,
}

impl InPlace {
    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.map[self.bytes.clone()])
    }
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InPlace({:?})", self.bytes)
    }
}

impl Blob {
    pub(super) fn embedded(path: PathBuf, bytes: &'static [u8]) -> Self {
        Self { path, len: bytes.len() as u64, source: Source::Embedded(bytes) }
    }

    /// `file` must be a regular one; `len` is its size when it was opened.
    pub(super) fn file(path: PathBuf, file: File, len: u64) -> Self {
        Self { path, len, source: Source::File(file) }
    }

    /// The same with a memory map beside it; for a file that nobody writes to.
    #[allow(unsafe_code)]
    pub(super) fn mapped(path: PathBuf, file: File, len: u64) -> Result<Self> {
        // SAFETY: the map is read only, and whoever looks into it (`InPlace::values`) holds it meanwhile;
        // any bytes are valid as u8 and as f32. What remains is a writer that changes or truncates the
        // file; whoever asks for a map has been told that this is theirs to exclude, and the default is
        // no map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", &path, e))?;
        Ok(Self { path, len, source: Source::Mapped { map: Arc::new(map), file } })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `into` with the bytes from `offset` on.
    pub fn read_into(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        match &self.source {
            Source::Embedded(bytes) => self.copy(bytes, offset, into),
            // Not through the map: here a file that was cut short is an error and no more.
            Source::File(file) | Source::Mapped { file, .. } => {
                file.read_exact_at(into, offset).map_err(|e| match e.kind() {
                    io::ErrorKind::UnexpectedEof => self.too_short(),
                    _ => Error::io("read", &self.path, e),
                })
            }
        }
    }

    /// The f32 values in a range of bytes where they lie, if the file is mapped and they are aligned.
    pub fn in_place(&self, bytes: Range<u64>) -> Option<InPlace> {
        let Source::Mapped { map, .. } = &self.source else { return None };
        let bytes = usize::try_from(bytes.start).ok()?..usize::try_from(bytes.end).ok()?;
        bytemuck::try_cast_slice::<u8, f32>(map.get(bytes.clone())?).ok()?;
        Some(InPlace { map: Arc::clone(map), bytes })
    }

    /// An error if the file has another size than when it was opened: then what was read from it
    /// may be a mixture.
    pub fn check_size(&self) -> Result<()> {
        let (Source::File(file) | Source::Mapped { file, .. }) = &self.source else { return Ok(()) };
        let now = file.metadata().map_err(|e| Error::io("inspect", &self.path, e))?.len();
        if now == self.len {
            return Ok(());
        }
        let problem = format!(
            "its size changed from {} to {now} bytes while it was read; is it still being downloaded?",
            self.len
        );
        Err(Error::input(&self.path, problem))
    }

    /// SHA-256 of all bytes, in hexadecimal. Ends with the error of `go_on` where that gives one: it is asked once a
    /// mebibyte.
    pub fn sha256(&self, go_on: &dyn Fn() -> Result<()>) -> Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.len {
            go_on()?;
            let part = (self.len - offset).min(buffer.len() as u64) as usize;
            self.read_into(offset, &mut buffer[..part])?;
            hash.update(&buffer[..part]);
            offset += part as u64;
        }
        self.check_size()?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn copy(&self, bytes: &[u8], offset: u64, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| self.too_short())?;
        let end = start.checked_add(into.len()).ok_or_else(|| self.too_short())?;
        into.copy_from_slice(bytes.get(start..end).ok_or_else(|| self.too_short())?);
        Ok(())
    }

    fn too_short(&self) -> Error {
        let problem = format!(
            "it ended early: it had {} bytes when it was opened; was it truncated or replaced?",
            self.len
        );
        Error::input(&self.path, problem)
    }
}

/// What `signal` takes for the default action.
const SIG_DFL: usize = 0;

// SAFETY: no promise but a type, that of the function in the C library, which `std` links.
#[allow(unsafe_code)]
unsafe extern "C" {
    /// Sets what a signal does.
    fn signal(signal: c_int, action: usize) -> usize;
}

/// From now on a page that is gone because one of these mapped files was cut short ends the process with words and
/// the exit status of a bad file, where the system would only say "bus error". For programs that own their process.
pub(super) fn explain_lost_pages<'a>(blobs: impl Iterator<Item = &'a Blob>) -> Result<()> {
    let listen = |error| Error::io("listen for", "signals", error);
    let words = File::from(io::stderr().as_fd().try_clone_to_owned().map_err(listen)?);
    let mut watched = Vec::new();
    for blob in blobs {
        let Source::Mapped { file, .. } = &blob.source else { continue };
        let file = file.try_clone().map_err(|e| Error::io("watch", &blob.path, e))?;
        let error = Error::input(&blob.path, "it was cut short while it was mapped (--mmap)");
        watched.push((file, blob.len, error.exit_code(), format!("error: {error}\n")));
    }
    let end = move || {
        for (file, len, status, error) in &watched {
            if file.metadata().is_ok_and(|now| now.len() < *len) {
                let _ = (&words).write_all(error.as_bytes());
                low_level::exit(i32::from(*status));
            }
        }
        // Another fault, such as a disk that cannot be read: what it is to do without us, or the instruction that met
        // it would run again forever.
        let _ = low_level::emulate_default_handler(SIGBUS);
    };
    // `std` has a handler of its own, for stacks that overflow. It would run first and leave the default behind it, by
    // which the next thread that meets the missing page would end the process before this one has said why.
    // SAFETY: the C library's function of that type; the default action runs no code of ours.
    #[allow(unsafe_code)]
    unsafe {
        signal(SIGBUS, SIG_DFL)
    };
    // SAFETY: a handler may only do what is safe between any two instructions. This one looks at the sizes of open
    // files, writes a text that was made beforehand, and ends the process without running anything else, by itself or
    // by the signal's default, which `signal_hook` emulates for handlers: system calls alone, no allocation and no
    // lock.
    #[allow(unsafe_code)]
    unsafe { low_level::register(SIGBUS, end) }.map_err(listen)?;
    Ok(())
}
