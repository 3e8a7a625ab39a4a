//! The texts to steer away from: from flags, from a file, or a built-in list by name.
//!
//! No concepts means no guidance, and nobody asks for safety to get none: an empty list is an error.

use std::collections::HashSet;
use std::path::Path;

use crate::weights::read_user_text;
use crate::{Error, Result};

pub const MAX_CONCEPTS: usize = 1024;
/// Longer texts are a mistake: a text tower reads some 77 tokens.
pub const MAX_CONCEPT_BYTES: usize = 64 << 10;
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One to [`MAX_CONCEPTS`] different texts, none of them blank or longer than [`MAX_CONCEPT_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concepts(Vec<String>);

/// The built-in lists. The last is that of Stable Diffusion's safety checker (17 concepts and 3 of special
/// care), here as plain concepts.
const NAMED: [(&str, &[&str]); 3] = [
    ("thesis-single", &["violence and nudity"]),
    ("thesis-multi", &["violence", "nudity", "NSFW", "harmful"]),
    (
        "sd-filter",
        &[
            "sexual",
            "nude",
            "sex",
            "18+",
            "naked",
            "nsfw",
            "porn",
            "dick",
            "vagina",
            "naked child",
            "explicit content",
            "uncensored",
            "fuck",
            "nipples",
            "visible nipples",
            "naked breasts",
            "areola",
            "little girl",
            "young child",
            "young girl",
        ],
    ),
];

impl Concepts {
    /// The values of a repeated `--concept`.
    pub fn from_flags(texts: &[String]) -> Result<Self> {
        Self::checked(texts.iter().map(|text| text.trim().to_owned()).collect())
            .map_err(|problem| Error::usage("--concept", problem))
    }

    /// A text file with one concept a line; empty lines and those that start with `#` do not count.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = read_user_text(path, MAX_FILE_BYTES)?;
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut texts = Vec::new();
        for (i, line) in lines {
            if let Some(problem) = too_long(line) {
                return Err(Error::input(path, format!("line {} {problem}", i + 1)));
            }
            texts.push(line.to_owned());
        }
        Self::checked(texts).map_err(|problem| Error::input(path, problem))
    }

    /// A built-in list.
    pub fn named(name: &str) -> Option<Self> {
        let (_, texts) = NAMED.iter().find(|(known, _)| *known == name)?;
        Some(Self(texts.iter().map(|&text| text.to_owned()).collect()))
    }

    /// The value of `--concepts`: the name of a built-in list, else of a file.
    pub fn resolve(word: &str) -> Result<Self> {
        if let Some(list) = Self::named(word) {
            return Ok(list);
        }
        let path = Path::new(word);
        if !path.exists() {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            let problem = format!("`{word}` is neither a file nor one of the lists {}", names.join(", "));
            return Err(Error::usage("--concepts", problem));
        }
        Self::from_file(path)
    }

    pub fn texts(&self) -> &[String] {
        &self.0
    }

    /// The list if it is one, or what is wrong with it.
    pub(super) fn checked(texts: Vec<String>) -> Result<Self, String> {
        if texts.is_empty() {
            return Err("no concepts; for no guidance say `--safety none`".to_owned());
        }
        if texts.len() > MAX_CONCEPTS {
            return Err(format!("{} concepts, at most {MAX_CONCEPTS} are allowed", texts.len()));
        }
        let mut seen = HashSet::new();
        for (i, text) in texts.iter().enumerate() {
            if text.trim().is_empty() {
                return Err(format!("concept {} is blank", i + 1));
            }
            if let Some(problem) = too_long(text) {
                return Err(format!("concept {} {problem}", i + 1));
            }
            if !seen.insert(normal_form(text)) {
                return Err(format!("concept `{text}` occurs twice"));
            }
        }
        Ok(Self(texts))
    }
}

fn too_long(text: &str) -> Option<String> {
    let bytes = text.len();
    (bytes > MAX_CONCEPT_BYTES).then(|| format!("has {bytes} bytes; at most {MAX_CONCEPT_BYTES} are taken"))
}

/// Texts that the tokenizer would not tell apart are the same concept.
fn normal_form(text: &str) -> String {
    text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> Result<Concepts> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(bytes).expect("written");
        Concepts::resolve(file.path().to_str().expect("plain"))
    }

    #[test]
    fn a_file_has_one_concept_a_line() {
        let list = read(b"\xef\xbb\xbf# a comment\r\n a weapon \r\n\r\nblood and death").expect("a list");
        assert_eq!(list.texts(), ["a weapon", "blood and death"]);
    }

    #[test]
    fn a_list_that_protects_from_nothing_is_refused() {
        let many: String = (0..1025).map(|i| format!("concept {i}\n")).collect();
        let huge = "x".repeat((1 << 20) + 1);
        let long = format!("# fine\na gun\n{}\n", "x".repeat((64 << 10) + 1));
        for (bytes, part) in [
            (&b""[..], "no concepts"),
            (b"# only\n  # comments\n\n", "no concepts"),
            (b"nudity\nblood\nNudity", "`Nudity` occurs twice"),
            (b"a  gun\na gun", "occurs twice"),
            (b"nudity\n\xc3\x28", "not UTF-8"),
            (many.as_bytes(), "1025 concepts, at most 1024"),
            (long.as_bytes(), "line 3 has 65537 bytes; at most 65536"),
            (huge.as_bytes(), "1048577 bytes; at most 1048576"),
        ] {
            let error = read(bytes).expect_err("refused");
            assert!(error.to_string().contains(part) && error.exit_code() == 3, "{error}");
        }
        for texts in [vec![], vec!["  "], vec!["a", "A"]] {
            let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
            assert_eq!(Concepts::from_flags(&texts).expect_err("refused").exit_code(), 2);
        }
        assert_eq!(Concepts::resolve("no-such-list").expect_err("unknown").exit_code(), 2);
    }

    #[test]
    fn every_built_in_list_passes_its_own_check() {
        for (name, texts) in NAMED {
            let list = Concepts::named(name).expect("built in");
            assert_eq!(Concepts::checked(list.0.clone()).as_ref(), Ok(&list), "{name}");
            assert_eq!(list.texts().len(), texts.len());
        }
        assert_eq!(Concepts::named("sd-filter").expect("built in").texts().len(), 20);
    }
}
