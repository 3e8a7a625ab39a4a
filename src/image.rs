//! Pictures as PNG files that say how they were made, and that appear whole or not at all.
//!
//! A picture carries two texts. `parameters` is the line that AUTOMATIC1111's web UI made common and most
//! viewers show; `unguide` is a canonical JSON object from which the run can be repeated. Files are written
//! next to their target, flushed, and renamed: a reader never sees half a picture, and nothing is replaced
//! unless that was asked for.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// An 8-bit RGB picture, rows from the top, `[h, w, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// From values in [0, 1] (others are clamped), `[h, w, 3]`, rounded half to even as diffusers does.
    /// `None` if a value is NaN or infinite: then there is no picture.
    ///
    /// # Panics
    /// If there are not `width * height * 3` values: a mistake of the caller.
    pub fn from_unit(width: u32, height: u32, rgb: &[f32]) -> Option<Self> {
        assert_eq!(rgb.len(), width as usize * height as usize * 3, "three values a pixel");
        let byte = |v: &f32| v.is_finite().then(|| (v.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
        Some(Self { width, height, pixels: rgb.iter().map(byte).collect::<Option<_>>()? })
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes of a PNG file; without texts where `metadata` is `None`.
    pub fn to_png(&self, metadata: Option<&Metadata>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.encode(metadata, &mut bytes).map_err(|e| Error::Bug(format!("cannot encode a PNG: {e}")))?;
        Ok(bytes)
    }

    fn encode(&self, metadata: Option<&Metadata>, bytes: &mut Vec<u8>) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        if let Some(metadata) = metadata {
            let (keyword, text) = (PARAMETERS.to_owned(), metadata.parameters.clone());
            if text.chars().all(is_latin1_text) {
                encoder.add_text_chunk(keyword, text)?;
            } else {
                encoder.add_itxt_chunk(keyword, text)?;
            }
            encoder.add_itxt_chunk(RECORD.to_owned(), canonical_json(&metadata.record))?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()
    }
}

/// What a picture says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Text for people and viewers; see [`Parameters`].
    pub parameters: String,
    /// Everything needed to repeat the run.
    pub record: Value,
}

/// The two texts as far as a file has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoundMetadata {
    pub parameters: Option<String>,
    pub record: Option<Value>,
}

const PARAMETERS: &str = "parameters";
const RECORD: &str = "unguide";
/// More than any picture of ours needs before its pixels begin.
const MAX_METADATA_BYTES: usize = 64 << 20;

/// Reads the texts of a PNG file, whoever wrote it.
pub fn read_metadata(path: &Path) -> Result<FoundMetadata> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let limits = png::Limits { bytes: MAX_METADATA_BYTES };
    let reader =
        png::Decoder::new_with_limits(BufReader::new(file), limits).read_info().map_err(|e| match e {
            png::DecodingError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                Error::io("read", path, source)
            }
            other => Error::input(path, format!("not a readable PNG: {other}")),
        })?;
    let info = reader.info();
    let latin1 = |keyword: &str| {
        info.uncompressed_latin1_text.iter().find(|c| c.keyword == keyword).map(|c| c.text.clone())
    };
    let utf8 = |keyword: &str| {
        info.utf8_text.iter().find(|c| c.keyword == keyword).and_then(|chunk| chunk.get_text().ok())
    };
    let record = utf8(RECORD).map(|text| serde_json::from_str(&text)).transpose();
    Ok(FoundMetadata {
        parameters: latin1(PARAMETERS).or_else(|| utf8(PARAMETERS)),
        record: record.map_err(|e| Error::input(path, format!("its `{RECORD}` text is not JSON: {e}")))?,
    })
}

/// The pieces of a `parameters` text; `Display` puts them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    pub prompt: String,
    /// Left out where empty.
    pub negative_prompt: String,
    /// `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size` ... in this order.
    pub settings: Vec<(String, String)>,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "Negative prompt: {}", self.negative_prompt)?;
        }
        for (i, (key, value)) in self.settings.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            if value.contains([',', ':', '\n', '"']) {
                write!(f, "{separator}{key}: {}", Value::from(value.as_str()))?;
            } else {
                write!(f, "{separator}{key}: {value}")?;
            }
        }
        Ok(())
    }
}

/// Compact JSON with the keys of every object in order, so that equal values have equal texts.
pub fn canonical_json(value: &Value) -> String {
    sorted(value).to_string()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), sorted(&fields[key]))).collect()
        }
        plain => plain.clone(),
    }
}

/// What a PNG tEXt chunk may hold: line feeds and the printable part of Latin-1.
fn is_latin1_text(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a1}'..='\u{ff}')
}

/// Where one picture goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stdout,
    File(PathBuf),
}

impl Target {
    pub fn write(&self, overwrite: bool, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File(path) => write_atomically(FLAG, path, overwrite, bytes),
            Self::Stdout => {
                let mut out = io::stdout().lock();
                let written = out.write_all(bytes).and_then(|()| out.flush());
                written.map_err(|source| Error::io("write", "<stdout>", source))
            }
        }
    }
}

/// Writes a file so that it is there whole or not at all, and survives a power cut once this returns.
/// Refuses to replace an existing one unless `overwrite`; `flag` is what named it.
pub fn write_atomically(flag: &str, path: &Path, overwrite: bool, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io("write", path, source);
    let parent = parent_of(path);
    let mut file = temporary_file_in(parent).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    if overwrite {
        file.persist(path).map_err(|e| failed(e.error))?;
    } else {
        file.persist_noclobber(path).map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => exists_already(flag, path),
            _ => failed(e.error),
        })?;
    }
    sync_directory(parent).map_err(failed)
}

/// The value of `-o`: where the pictures of a run go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputPattern {
    /// `-`
    Stdout,
    File(PathBuf),
    /// An existing directory, or a name that ends with a slash. Names are made up.
    Directory(PathBuf),
    /// A file name with one `%d` or `%0Nd`, the number of the picture from 0.
    Numbered {
        directory: PathBuf,
        before: String,
        digits: usize,
        after: String,
    },
}

const FLAG: &str = "--output";
const MAX_DIGITS: usize = 9;

impl OutputPattern {
    pub fn parse(value: &OsStr) -> Result<Self> {
        let path = Path::new(value);
        if value.is_empty() {
            return Err(Error::usage(FLAG, "expected a file, a directory or a pattern, found nothing"));
        }
        if value == "-" {
            return Ok(Self::Stdout);
        }
        if value.as_encoded_bytes().ends_with(b"/") || path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if is_special(path) {
            return Err(Error::io("write", path, io::Error::other("it is not a regular file")));
        }
        let name = path.file_name().unwrap_or(value);
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            let problem = "expected a name that ends in .png, an existing directory, or `-`";
            return Err(Error::usage(FLAG, format!("{problem}; found `{}`", path.display())));
        }
        if !name.as_encoded_bytes().contains(&b'%') {
            return Ok(Self::File(path.to_owned()));
        }
        let pattern = name.to_str().and_then(split_pattern);
        let Some((before, digits, after)) = pattern else {
            let problem =
                "expected exactly one %d or %0Nd (N from 1 to 9) in the file name, %% for a percent sign";
            return Err(Error::usage(FLAG, format!("{problem}; found `{}`", path.display())));
        };
        Ok(Self::Numbered { directory: parent_of(path).to_owned(), before, digits, after })
    }

    /// Where the pictures with these seeds go, one target each, once it is sure that they can be written:
    /// the directory takes files, and no target is there already unless `overwrite`. In a directory, numbers
    /// go on after the largest that is there.
    pub fn check(&self, seeds: &[u64], overwrite: bool) -> Result<Vec<Target>> {
        match self {
            Self::Stdout | Self::File(_) if seeds.len() > 1 => {
                let problem = format!(
                    "{} pictures need a directory or a pattern such as image-%03d.png, not one name",
                    seeds.len()
                );
                return Err(Error::usage(FLAG, problem));
            }
            Self::Stdout => return Ok(vec![Target::Stdout; seeds.len()]),
            _ => {}
        }
        let paths: Vec<PathBuf> = match self {
            Self::Stdout => Vec::new(),
            Self::File(path) => vec![path.clone(); seeds.len()],
            Self::Directory(directory) => {
                probe(directory)?;
                let first = next_number(directory)?;
                let name = |(i, seed): (u64, &u64)| directory.join(format!("{:05}-{seed}.png", first + i));
                (0..).zip(seeds).map(name).collect()
            }
            Self::Numbered { directory, before, digits, after } => (0..seeds.len())
                .map(|number| directory.join(format!("{before}{number:0digits$}{after}")))
                .collect(),
        };
        for path in &paths {
            check_target(FLAG, path, overwrite)?;
        }
        if let Some(path) = paths.first() {
            probe(parent_of(path))?;
        }
        Ok(paths.into_iter().map(Target::File).collect())
    }
}

/// `a%03d.png` to `("a", 3, ".png")`, with `%%` read as `%`; `None` unless there is exactly one number.
fn split_pattern(name: &str) -> Option<(String, usize, String)> {
    let mut parts = [String::new(), String::new()];
    let mut digits = None;
    let mut rest = name;
    while let Some((text, after)) = rest.split_once('%') {
        let part = &mut parts[usize::from(digits.is_some())];
        part.push_str(text);
        if let Some(after) = after.strip_prefix('%') {
            part.push('%');
            rest = after;
            continue;
        }
        let (number, after) = after.split_once('d')?;
        let width = match number.strip_prefix('0') {
            Some(width) if width.bytes().all(|b| b.is_ascii_digit()) => width.parse().ok()?,
            None if number.is_empty() => 1,
            _ => return None,
        };
        if digits.is_some() || !(1..=MAX_DIGITS).contains(&width) {
            return None;
        }
        digits = Some(width);
        rest = after;
    }
    let [before, mut after] = parts;
    after.push_str(rest);
    Some((before, digits?, after))
}

/// One more than the largest number that a file name in the directory begins with.
fn next_number(directory: &Path) -> Result<u64> {
    let failed = |source| Error::io("read", directory, source);
    let mut next = 0;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.split_once('-')).and_then(|(number, rest)| {
            let ours = number.len() >= 5 && number.len() <= 15 && rest.ends_with(".png");
            if ours { number.parse::<u64>().ok() } else { None }
        });
        next = next.max(number.map_or(0, |number| number + 1));
    }
    Ok(next)
}

/// Complains before hours of work rather than after: whether [`write_atomically`] will be able to write the
/// file that `flag` names.
pub fn check_writable(flag: &str, path: &Path, overwrite: bool) -> Result<()> {
    check_target(flag, path, overwrite)?;
    probe(parent_of(path))
}

fn check_target(flag: &str, path: &Path, overwrite: bool) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) if is_special(path) => {
            Err(Error::io("write", path, io::Error::other("it is not a regular file")))
        }
        Ok(_) if path.is_dir() => Err(Error::usage(flag, format!("`{}` is a directory", path.display()))),
        Ok(_) if !overwrite => Err(exists_already(flag, path)),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::io("write", path, source)),
    }
}

/// Devices, pipes and sockets: replacing one by a picture is never what was meant.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

fn exists_already(flag: &str, path: &Path) -> Error {
    Error::usage(flag, format!("`{}` exists already; give --overwrite to replace it", path.display()))
}

/// Makes sure that the directory takes files, by making one.
fn probe(directory: &Path) -> Result<()> {
    temporary_file_in(directory).map(drop).map_err(|source| Error::io("write into", directory, source))
}

/// A temporary file with the permissions of an ordinary one; gone when it is dropped.
fn temporary_file_in(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".unguide-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666)); // less the umask
        builder.tempfile_in(directory)
    }
    #[cfg(not(unix))]
    builder.tempfile_in(directory)
}

/// Makes a rename in the directory durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(directory)?.sync_all() {
            // Some file systems cannot flush a directory; the file itself was flushed.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            result => result,
        }
    } else {
        Ok(())
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_bytes_as_numpy_rounds_them() {
        // Many of these are exact ties after the product with 255 in f32; the bytes are numpy's.
        let values = [0.5 / 255.0, 1.5 / 255.0, 2.5 / 255.0, 3.5 / 255.0, 0.1, 0.3, 0.5, 0.7, 0.9];
        let picture = Picture::from_unit(3, 1, &values).expect("finite");
        assert_eq!(picture.pixels(), [0, 2, 2, 4, 26, 76, 128, 178, 230]);
        let clamped = Picture::from_unit(1, 1, &[-0.5, 1.0, 7.0]).expect("finite");
        assert_eq!(clamped.pixels(), [0, 255, 255]);
        assert_eq!(Picture::from_unit(1, 1, &[0.0, f32::NAN, 0.0]), None);
    }

    #[test]
    fn parameters_follow_the_common_grammar() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut parameters = Parameters {
            prompt: "a cat,\non a mat".to_owned(),
            negative_prompt: "blurry".to_owned(),
            settings: vec![pair("Steps", "50"), pair("Size", "512x512"), pair("Model", "a, \"b\": c")],
        };
        let want = "a cat,\non a mat\nNegative prompt: blurry\nSteps: 50, Size: 512x512, \
                    Model: \"a, \\\"b\\\": c\"";
        assert_eq!(parameters.to_string(), want);
        parameters.negative_prompt.clear();
        assert!(!parameters.to_string().contains("Negative"));
    }

    #[test]
    fn canonical_json_does_not_depend_on_the_order_of_keys() {
        let [a, b] = [r#"{"b": [1, {"d": 2, "c": 3}], "a": null}"#, r#"{"a":null,"b":[1,{"c":3,"d":2}]}"#]
            .map(|text| canonical_json(&serde_json::from_str(text).expect("JSON")));
        assert_eq!((a.as_str(), b.as_str()), (r#"{"a":null,"b":[1,{"c":3,"d":2}]}"#, a.as_str()));
    }

    #[test]
    fn a_pattern_has_exactly_one_number() {
        let split =
            |name| split_pattern(name).map(|(before, digits, after)| format!("{before}|{digits}|{after}"));
        assert_eq!(split("a%d.png").as_deref(), Some("a|1|.png"));
        assert_eq!(split("a%03d-50%%.png").as_deref(), Some("a|3|-50%.png"));
        assert_eq!(split("100%%d%d.png").as_deref(), Some("100%d|1|.png"));
        for bad in [
            "a%d%d.png",
            "a%%d.png",
            "a%.png",
            "a%s.png",
            "a%3d.png",
            "a%0d.png",
            "a%010d.png",
            "%0-1d",
            "a%",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
