//! Compiled kernels on disk, in the user's own cache folder.
//!
//! A file's name is the hash of everything it was made from, and its first bytes are the hash of that name and the
//! rest: what is cut off, changed or renamed is compiled again. Files appear whole or not at all. A folder that
//! somebody else can write to is not used.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const HASH_BYTES: usize = 32;
/// No file of kernels comes near.
const MOST_BYTES: u64 = 64 << 20;

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// `UNGUIDE_CACHE_DIR`, or `unguide` in the user's cache folder; none where there is no such place.
    pub fn of_user() -> Result<Self, String> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = variable("UNGUIDE_CACHE_DIR")
            .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("unguide")))
            .or_else(|| variable("HOME").map(|folder| folder.join(".cache/unguide")))
            .or_else(|| variable("LOCALAPPDATA").map(|folder| folder.join("unguide")));
        let folder = folder.ok_or("none of UNGUIDE_CACHE_DIR, XDG_CACHE_HOME and HOME is set")?;
        Self::open(&folder)
    }

    /// A folder, made if it is not there.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let words = |error: std::io::Error| format!("{}: {error}", folder.display());
        make_private(folder).map_err(words)?;
        is_private(folder).map_err(|problem| format!("{}: {problem}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The name of what is made from these parts.
    pub fn key(parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What was put there, if it is whole.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.folder.join(key)).ok()?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        let (hash, binary) = bytes.split_at_checked(HASH_BYTES)?;
        (hash == seal(key, binary)).then(|| binary.to_vec())
    }

    pub fn put(&self, key: &str, binary: &[u8]) -> Result<(), String> {
        let words = |error: std::io::Error| format!("{}: {error}", self.folder.display());
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(words)?;
        let written = file.write_all(&seal(key, binary)).and_then(|()| file.write_all(binary));
        written.and_then(|()| file.as_file().sync_all()).map_err(words)?;
        file.persist(self.folder.join(key)).map_err(|error| words(error.error)).map(drop)
    }
}

fn seal(key: &str, binary: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update(binary);
    hash.finalize().into()
}

#[cfg(unix)]
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)
}

/// Who may write there could put code on our device.
#[cfg(unix)]
fn is_private(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(folder).map_err(|error| error.to_string())?;
    if found.mode() & 0o022 != 0 {
        return Err(format!("others may write there (mode {:o}); it must be private", found.mode() & 0o777));
    }
    // The owner of a file that we make is who we are.
    let ours =
        tempfile::tempfile_in(folder).and_then(|file| file.metadata()).map_err(|error| error.to_string())?;
    if found.uid() != ours.uid() {
        return Err("it belongs to another user".to_owned());
    }
    Ok(())
}

#[cfg(not(unix))]
fn is_private(_: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_comes_back_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(&folder.path().join("a/b")).expect("made");
        let (key, other) = (Cache::key(&["ab", "c"]), Cache::key(&["a", "bc"]));
        assert_ne!(key, other);
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"binary").expect("written");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"binary"[..]));

        let path = cache.folder.join(&key);
        let whole = fs::read(&path).expect("read");
        fs::copy(&path, cache.folder.join(&other)).expect("copied");
        assert_eq!(cache.get(&other), None, "of another key");
        for end in [0, 10, HASH_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..end]).expect("written");
            assert_eq!(cache.get(&key), None, "cut off at {end}");
        }
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] ^= 4;
            fs::write(&path, wrong).expect("written");
            assert_eq!(cache.get(&key), None, "a bit of byte {at}");
        }
        cache.put(&key, b"binary").expect("replaced");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"binary"[..]));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
        assert!(Cache::open(folder.path()).is_err_and(|problem| problem.contains("others may write")));
        let inside = Cache::open(&folder.path().join("new")).expect("made");
        let mode = fs::metadata(&inside.folder).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
