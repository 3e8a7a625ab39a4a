//! What a safetensors header must be before anything of the file is used.
//!
//! The `safetensors` crate proves that the tensors cover the file exactly, without overlap. Before
//! it sees the header we bound what it costs (size, number of tensors, rank) and refuse what it
//! lets pass: names that occur twice or hold control characters, tensors without elements, a header
//! that does not begin with `{`. And a file of quite another kind is named as what it looks like.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error as _, IgnoredAny, IntoDeserializer, MapAccess, Visitor};

use super::bytes::Blob;
use crate::error::{Error, Result};

/// A header of Stable Diffusion has some hundred kilobytes.
pub const MAX_HEADER_BYTES: u64 = 8 << 20;
/// A whole Stable Diffusion checkpoint has about 1100 tensors, with EMA copies twice as many.
pub const MAX_TENSORS: usize = 16_384;
pub const MAX_RANK: usize = 8;
pub const MAX_NAME_BYTES: usize = 256;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Number of elements; cannot overflow, since the bytes are in a file.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Reads and checks the header of a file.
pub(super) fn read_header(blob: &Blob) -> Result<Vec<(String, TensorInfo)>> {
    let path = blob.path();
    let refuse = |problem: String| Error::input(path, problem);

    // 1. The first bytes: a plausible header length and `{`, or else some other kind of file.
    let mut start = vec![0; blob.len().min(64) as usize];
    blob.read_into(0, &mut start)?;
    let Some((length, rest)) = start.split_first_chunk() else {
        return Err(refuse(format!("it has {} bytes, too few for a safetensors file", blob.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES || rest.first() != Some(&b'{') {
        return Err(refuse(match recognise(&start, path) {
            Some(kind) => kind,
            None if length > MAX_HEADER_BYTES => {
                format!(
                    "not a safetensors file: its header would have {length} bytes; at most 8 MiB are accepted"
                )
            }
            None => "not a safetensors file: its header does not begin with `{`".to_owned(),
        }));
    }
    if length > blob.len() - 8 {
        return Err(refuse(format!(
            "it is cut short: the header should have {length} bytes, and the file ends after {}; \
             is it still being downloaded?",
            blob.len() - 8
        )));
    }

    // 2. The header as a list of tensors, each checked on its own.
    let mut header = vec![0; length as usize];
    blob.read_into(8, &mut header)?;
    let header = str::from_utf8(&header).map_err(|e| refuse(format!("its header is not UTF-8: {e}")))?;
    let Entries(entries) =
        serde_json::from_str(header).map_err(|e| refuse(format!("its header is not valid: {e}")))?;
    if entries.is_empty() {
        return Err(refuse("it holds no tensors".to_owned()));
    }
    if entries.len() > MAX_TENSORS {
        let count = entries.len();
        return Err(refuse(format!("it holds {count} tensors; at most {MAX_TENSORS} are accepted")));
    }
    let data_start = 8 + length;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push((name.clone(), check_entry(path, &name, entry, data_start)?));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(refuse(format!("tensor `{}` occurs twice", pair[0].0)));
    }

    // 3. Together they must cover the rest of the file: the crate checks the order, we the length.
    let metadata: Metadata =
        serde_json::from_str(header).map_err(|e| refuse(format!("its header is not valid: {e}")))?;
    let expected = data_start + metadata.data_len() as u64;
    if expected != blob.len() {
        let hint = if blob.len() < expected {
            "it is cut short; is it still being downloaded?"
        } else {
            "there are bytes that no tensor owns"
        };
        let found = blob.len();
        return Err(refuse(format!("its header describes {expected} bytes, the file has {found}: {hint}")));
    }
    Ok(tensors)
}

/// A name as it may be shown: control characters escaped, at most some 80 characters.
pub(super) fn shown(name: &str) -> String {
    let escaped = name.escape_default().to_string();
    if escaped.len() <= 80 { escaped } else { format!("{}...", &escaped[..77]) }
}

/// The command that turns a pickled checkpoint into a safetensors file.
pub(super) fn conversion_command(pickle: &Path, target: &Path) -> String {
    format!(
        "python3 -c \"import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], map_location='cpu', \
         weights_only=True); d = d.get('state_dict', d); s.save_file({{k: v.clone().contiguous() for k, v in \
         d.items() if torch.is_tensor(v)}}, sys.argv[2])\" '{}' '{}'",
        pickle.display(),
        target.display()
    )
}

fn recognise(start: &[u8], path: &Path) -> Option<String> {
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix.as_bytes()));
    let pickle = start.starts_with(b"PK") || start[0] == 0x80 && matches!(start.get(1), Some(2..=5));
    let kind = if pickle {
        let command = conversion_command(path, &path.with_extension("converted.safetensors"));
        return Some(format!(
            "it is a pickled PyTorch checkpoint (or a zip archive), which can run code when it is \
             loaded and is never opened; convert it first: {command}"
        ));
    } else if begins(&["<!doctype", "<html", "<head", "<?xml"]) {
        "it is a web page: the download saved an error or log-in page instead of the file"
    } else if begins(&["version https://git-lfs"]) {
        "it is a Git LFS pointer: fetch the real file with `git lfs pull`"
    } else if start.starts_with(&[0x1f, 0x8b]) {
        "it is gzip-compressed: decompress it first"
    } else if start.starts_with(b"GGUF") || start.starts_with(b"GGML") {
        "it is a GGUF/GGML file; only safetensors files are read: get the original checkpoint"
    } else {
        return None;
    };
    Some(kind.to_owned())
}

fn check_entry(path: &Path, name: &str, entry: Entry, data_start: u64) -> Result<TensorInfo> {
    let refuse = |expected: &str, found: String| Error::Tensor {
        path: path.to_owned(),
        tensor: shown(name),
        expected: expected.to_owned(),
        found,
    };
    let printable = name.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !printable {
        let found = format!("{} bytes{}", name.len(), if printable { "" } else { ", some not printable" });
        return Err(refuse("a name of 1 to 256 printable ASCII characters", found));
    }
    let by_name: StrDeserializer<'_, serde::de::value::Error> = entry.dtype.as_str().into_deserializer();
    let dtype = Dtype::deserialize(by_name)
        .map_err(|_| refuse("a known dtype such as F32 or F16", shown(&entry.dtype)))?;
    if entry.shape.len() > MAX_RANK {
        return Err(refuse("at most 8 dimensions", entry.shape.len().to_string()));
    }
    if entry.shape.contains(&0) {
        return Err(refuse("at least one element", format!("shape {:?}", entry.shape)));
    }
    let bits = entry.shape.iter().try_fold(dtype.bitsize() as u64, |bits, &extent| bits.checked_mul(extent));
    let (start, end) = entry.data_offsets;
    let length = end.checked_sub(start);
    if bits.is_none_or(|bits| bits % 8 != 0 || length != Some(bits / 8)) {
        let expected = match bits {
            Some(bits) => format!("{} bytes for shape {:?} of {dtype}", bits.div_ceil(8), entry.shape),
            None => "a size that fits 64 bits".to_owned(),
        };
        let found = format!("shape {:?} at bytes {start} to {end}", entry.shape);
        return Err(refuse(&expected, found));
    }
    let (Some(start), Some(end)) = (data_start.checked_add(start), data_start.checked_add(end)) else {
        return Err(refuse("a place inside the file", format!("bytes {start} to {end}")));
    };
    let shape = entry.shape.iter().map(|&extent| extent as usize).collect();
    Ok(TensorInfo { dtype, shape, range: start..end })
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// All entries of the header as they stand there, so that a repeated name is seen.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("`__metadata__` occurs twice"));
                }
                continue;
            }
            let entry = map
                .next_value()
                .map_err(|e| A::Error::custom(format_args!("tensor `{}`: {e}", shown(&name))))?;
            entries.push((name, entry));
        }
        Ok(Entries(entries))
    }
}
