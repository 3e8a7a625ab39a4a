//! Where the files of a model come from: a directory, one file, or bytes inside the program.
//!
//! Only regular files are ever opened. A name is inspected before it is opened, so that a FIFO or a
//! device neither blocks us nor feeds us forever; symbolic links are followed (download caches are
//! made of them), and what they lead to must again be a regular file.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::bytes::Blob;
use crate::error::{Error, Result};

/// Files of a program's own model: path relative to the model's root, with `/`, and content.
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

/// A set of files addressed by their path relative to a root. The root itself is `""`.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    root: Root,
    mapped: bool,
}

#[derive(Clone, Debug)]
enum Root {
    Directory(PathBuf),
    File(PathBuf),
    Embedded { name: &'static str, files: EmbeddedFiles },
}

impl ModelFiles {
    /// A directory or one regular file on disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|e| cannot_open(path, e))?;
        let root = if kind.is_dir() {
            Root::Directory(path.to_owned())
        } else if kind.is_file() {
            Root::File(path.to_owned())
        } else {
            return Err(Error::input(path, "it is neither a directory nor a regular file"));
        };
        Ok(Self { root, mapped: false })
    }

    /// Files that are part of the program; `name` stands for their root in messages.
    pub fn embedded(name: &'static str, files: EmbeddedFiles) -> Self {
        Self { root: Root::Embedded { name, files }, mapped: false }
    }

    /// The same files, with weights that need no conversion used where they lie, through memory maps: only for
    /// files that nobody changes while we run, since a map of a file that shrinks ends the process.
    pub fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }

    /// Whether this is one file rather than a tree of them.
    pub fn is_single_file(&self) -> bool {
        matches!(self.root, Root::File(_))
    }

    /// The path that messages show for a file of this set.
    pub fn path(&self, relative: &str) -> PathBuf {
        let root = match &self.root {
            Root::Directory(path) | Root::File(path) => path.as_path(),
            Root::Embedded { name, .. } => Path::new(name),
        };
        if relative.is_empty() { root.to_owned() } else { root.join(relative) }
    }

    /// Whether there is anything of that name, be it readable or not.
    pub fn exists(&self, relative: &str) -> bool {
        match &self.root {
            Root::Directory(_) => fs::symlink_metadata(self.path(relative)).is_ok(),
            Root::File(_) => relative.is_empty(),
            Root::Embedded { files, .. } => {
                let below =
                    |path: &str| path.strip_prefix(relative).is_some_and(|rest| rest.starts_with('/'));
                files.iter().any(|(path, _)| *path == relative || below(path))
            }
        }
    }

    /// Names of the entries of a directory of this set, sorted; none where it does not exist.
    pub fn list(&self, directory: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        match &self.root {
            Root::File(_) => {}
            Root::Embedded { files, .. } => {
                let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
                let inside = files.iter().filter_map(|(path, _)| path.strip_prefix(&prefix));
                names.extend(inside.filter(|name| !name.contains('/')).map(str::to_owned));
            }
            Root::Directory(_) => {
                let path = self.path(directory);
                if !path.is_dir() {
                    return Ok(names);
                }
                let fail = |e| Error::io("list", &path, e);
                for entry in fs::read_dir(&path).map_err(fail)? {
                    names.extend(entry.map_err(fail)?.file_name().into_string());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// The file, open for reading ranges of it.
    pub fn blob(&self, relative: &str) -> Result<Blob> {
        let path = self.path(relative);
        if let Root::Embedded { .. } = self.root {
            let bytes = self.find_embedded(relative).ok_or_else(|| Error::input(&path, NO_SUCH_FILE))?;
            return Ok(Blob::embedded(path, bytes));
        }
        if self.is_single_file() && !relative.is_empty() {
            return Err(Error::input(path, "the model is one file, which has no other files beside it"));
        }
        let (file, len) = open_regular(&path)?;
        if self.mapped && len > 0 { Blob::mapped(path, file, len) } else { Ok(Blob::file(path, file, len)) }
    }

    /// A whole small file of at most `cap` bytes.
    pub fn read_bytes(&self, relative: &str, cap: u64) -> Result<Vec<u8>> {
        let blob = self.blob(relative)?;
        if blob.len() > cap {
            let problem = format!("it has {} bytes; at most {cap} are accepted", blob.len());
            return Err(Error::input(blob.path(), problem));
        }
        let mut bytes = vec![0; blob.len() as usize];
        blob.read_into(0, &mut bytes)?;
        blob.check_size()?;
        Ok(bytes)
    }

    /// A whole small text file of at most `cap` bytes.
    pub fn read_text(&self, relative: &str, cap: u64) -> Result<String> {
        let bytes = self.read_bytes(relative, cap)?;
        String::from_utf8(bytes).map_err(|e| {
            let problem = format!("it is not UTF-8 text (byte {})", e.utf8_error().valid_up_to());
            Error::input(self.path(relative), problem)
        })
    }

    fn find_embedded(&self, relative: &str) -> Option<&'static [u8]> {
        let Root::Embedded { files, .. } = &self.root else { return None };
        files.iter().find(|(path, _)| *path == relative).map(|(_, bytes)| *bytes)
    }
}

const NO_SUCH_FILE: &str = "there is no such file";

/// The text of a small file that the user wrote (a list of prompts or concepts, a profile): at most `cap` bytes, without
/// a byte-order mark. It has the enemies that a model's files have: devices, pipes, wrong encodings.
pub fn read_user_text(path: &Path, cap: u64) -> Result<String> {
    let text = ModelFiles::open(path)?.read_text("", cap)?;
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        return Ok(rest.to_owned());
    }
    Ok(text)
}

/// Opens a regular file and says how long it is.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    check_regular(path, &fs::metadata(path).map_err(|e| cannot_open(path, e))?)?;
    let file = File::open(path).map_err(|e| cannot_open(path, e))?;
    // Once more on what was really opened: the name may have changed hands in between.
    let opened = file.metadata().map_err(|e| Error::io("inspect", path, e))?;
    check_regular(path, &opened)?;
    Ok((file, opened.len()))
}

fn check_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a directory" } else { "a device, pipe or socket" };
    Err(Error::input(path, format!("expected a regular file, found {found}")))
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    let is_link = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    match error.kind() {
        _ if is_link => Error::input(path, format!("it is a symbolic link that cannot be followed: {error}")),
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::input(path, NO_SUCH_FILE),
        _ => Error::io("open", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: EmbeddedFiles = &[("a.json", b"{}"), ("unet/b.json", b"\xff")];

    #[test]
    fn embedded_files_are_found_by_their_relative_path() {
        let files = ModelFiles::embedded("(demo)", FILES);
        assert!(files.exists("a.json") && files.exists("unet/b.json") && !files.exists("b.json"));
        assert_eq!(files.read_text("a.json", 10).expect("it is there"), "{}");
        assert_eq!(files.list("").expect("listed"), ["a.json"]);
        assert_eq!(files.list("unet").expect("listed"), ["b.json"]);
        let error = files.read_text("unet/b.json", 10).expect_err("not text").to_string();
        assert!(error.contains("unet/b.json") && error.contains("UTF-8"), "{error}");
        let error = files.read_text("none", 10).expect_err("not there").to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_or_grows_after_it_was_opened_is_an_error() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("weights");
        fs::write(&path, [7; 100]).expect("written");
        let files = ModelFiles::open(directory.path()).expect("a directory");
        let blob = files.blob("weights").expect("opened");
        fs::write(&path, [7; 10]).expect("written");
        let error = blob.read_into(50, &mut [0; 50]).expect_err("too short");
        assert!(matches!(error, Error::Input { .. }) && error.to_string().contains("ended early"));
        fs::write(&path, [7; 200]).expect("written");
        let error = blob.check_size().expect_err("too long").to_string();
        assert!(error.contains("from 100 to 200 bytes"), "{error}");
    }

    #[test]
    fn a_map_and_plain_reads_give_the_same_bytes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("x"), b"abcdef").expect("written");
        let files = ModelFiles::open(directory.path()).expect("a directory");
        for files in [files.clone(), files.mapped()] {
            let blob = files.blob("x").expect("opened");
            let mut bytes = [0; 3];
            blob.read_into(2, &mut bytes).expect("in range");
            assert_eq!(&bytes, b"cde");
            assert!(blob.read_into(4, &mut bytes).is_err());
            let hash = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
            assert_eq!(blob.sha256(&|| Ok(())).expect("readable"), hash);
        }
    }
}
