//! The bytes of one file, read range by range.
//!
//! A model file is gigabytes large and others may write to it while we read, so the default is
//! plain positional reads into memory of our own: a file that shrinks gives an error. A memory map
//! is offered because it saves a copy through the kernel, but a file that shrinks under a map kills
//! the process; it is never chosen by itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

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
    Mapped { map: Mmap, file: File },
}

impl Blob {
    pub(super) fn embedded(path: PathBuf, bytes: &'static [u8]) -> Self {
        Self { path, len: bytes.len() as u64, source: Source::Embedded(bytes) }
    }

    /// `file` must be a regular one; `len` is its size when it was opened.
    pub(super) fn file(path: PathBuf, file: File, len: u64) -> Self {
        Self { path, len, source: Source::File(file) }
    }

    /// The same through a memory map; for a file that nobody writes to.
    #[allow(unsafe_code)]
    pub(super) fn mapped(path: PathBuf, file: File, len: u64) -> Result<Self> {
        // SAFETY: the map is private to this value and its bytes are only ever copied out by
        // `read_into`, which checks the range; no reference to them is handed on, and any byte is a
        // valid u8. What remains is a writer that changes or truncates the file meanwhile; whoever
        // asks for a map has been told that this is theirs to exclude, and the default is no map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", &path, e))?;
        Ok(Self { path, len, source: Source::Mapped { map, file } })
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
            Source::Mapped { map, .. } => self.copy(map, offset, into),
            Source::File(file) => file.read_exact_at(into, offset).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => self.too_short(),
                _ => Error::io("read", &self.path, e),
            }),
        }
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

    /// SHA-256 of all bytes, in hexadecimal.
    pub fn sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.len {
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
