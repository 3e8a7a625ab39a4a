//! Configuration files: small JSON objects in which every key occurs once.
//!
//! What a reader may do with a file that says one thing twice differs from parser to parser, so it
//! is refused. Errors name the field: serde knows the name of a missing or unknown one, and for a
//! value of a wrong type it knows the position, from which the last key before it is found.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::files::ModelFiles;
use crate::error::{Error, Result};

/// No configuration file of a model comes near this many bytes.
pub const CONFIG_CAP: u64 = 1 << 20;

/// Reads a configuration file as a `T`.
pub fn read_json<T: DeserializeOwned>(files: &ModelFiles, relative: &str) -> Result<T> {
    parse_json(files, relative, &files.read_text(relative, CONFIG_CAP)?)
}

/// The same from text that was read already; `relative` names it in errors.
pub(crate) fn parse_json<T: DeserializeOwned>(files: &ModelFiles, relative: &str, text: &str) -> Result<T> {
    let mut parser = serde_json::Deserializer::from_str(text);
    OnceOnly
        .deserialize(&mut parser)
        .and_then(|()| serde_json::from_str(text))
        .map_err(|e| explain(files, relative, text, &e))
}

/// Components that a diffusers directory declares: library and class, or `None` where it says null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelIndex {
    pub components: BTreeMap<String, Option<(String, String)>>,
}

/// Reads `model_index.json` and refuses pipelines that are not Stable Diffusion 1.x or 2.x.
/// `None` if there is no such file.
pub fn read_model_index(files: &ModelFiles) -> Result<Option<ModelIndex>> {
    const FILE: &str = "model_index.json";
    if !files.exists(FILE) {
        return Ok(None);
    }
    let fields: Map<String, Value> = read_json(files, FILE)?;
    let refuse = |field: &str, expected: &str, found: String| Error::Config {
        path: files.path(FILE),
        field: field.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    match fields.get("_class_name") {
        None => {}
        Some(Value::String(class)) if PIPELINES.contains(&class.as_str()) => {}
        Some(other) => return Err(refuse("_class_name", PIPELINES[0], other.to_string())),
    }
    let mut index = ModelIndex::default();
    for (name, value) in &fields {
        let pair = value.as_array().map(Vec::as_slice);
        let component = match pair {
            _ if name.starts_with('_') => continue,
            None => continue,
            Some([Value::String(library), Value::String(class)]) => Some((library.clone(), class.clone())),
            Some([Value::Null, Value::Null]) => None,
            Some(_) => return Err(refuse(name, "[library, class] or [null, null]", value.to_string())),
        };
        index.components.insert(name.clone(), component);
    }
    for (name, class) in REQUIRED {
        match index.components.get(name) {
            None => {}
            Some(Some((_, found))) if found == class || name == "tokenizer" && found.starts_with(class) => {}
            Some(Some((_, found))) => return Err(refuse(name, class, found.clone())),
            Some(None) => return Err(refuse(name, class, "null".to_owned())),
        }
    }
    if let Some(Some((_, class))) = index.components.get("text_encoder_2") {
        let expected = "no second text encoder (Stable Diffusion XL has one and is not supported)";
        return Err(refuse("text_encoder_2", expected, class.clone()));
    }
    Ok(Some(index))
}

const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionPipelineSafe"];

const REQUIRED: [(&str, &str); 4] = [
    ("unet", "UNet2DConditionModel"),
    ("vae", "AutoencoderKL"),
    ("text_encoder", "CLIPTextModel"),
    ("tokenizer", "CLIPTokenizer"),
];

fn explain(files: &ModelFiles, relative: &str, text: &str, error: &serde_json::Error) -> Error {
    let path = files.path(relative);
    let message = error.to_string();
    let named = ["missing field `", "unknown field `", "duplicate field `", "duplicate key `"];
    let quoted = named.iter().find_map(|start| message.strip_prefix(start)?.split('`').next());
    if !error.is_data() {
        return Error::input(path, format!("it is not valid JSON: {message}"));
    }
    let field = quoted.map(str::to_owned).or_else(|| key_before(text, error.line(), error.column()));
    let (expected, found) = if message.starts_with("missing") {
        ("a value".to_owned(), "none".to_owned())
    } else if message.starts_with("duplicate") {
        ("one value".to_owned(), "two of them".to_owned())
    } else if let Some((found, expected)) = message.split_once(", expected ") {
        let expected = expected.rsplit_once(" at line").map_or(expected, |(before, _)| before);
        (expected.to_owned(), found.to_owned())
    } else {
        ("a legal value".to_owned(), message.clone())
    };
    Error::Config { path, field: field.unwrap_or_else(|| "(the whole file)".to_owned()), expected, found }
}

/// The last key that stands before a position (counted from 1, columns in bytes).
fn key_before(text: &str, line: usize, column: usize) -> Option<String> {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = (before + column).min(text.len());
    let mut head = &text.as_bytes()[..end];
    loop {
        let colon = head.iter().rposition(|&byte| byte == b':')?;
        head = &head[..colon];
        if let Some(name) = head.trim_ascii_end().strip_suffix(b"\"") {
            let open = name.iter().rposition(|&byte| byte == b'"')?;
            return Some(String::from_utf8_lossy(&name[open + 1..]).escape_default().to_string());
        }
    }
}

/// Accepts any JSON in which no object has a key twice.
struct OnceOnly;

impl<'de> DeserializeSeed<'de> for OnceOnly {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OnceOnly {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format_args!("duplicate key `{}`", key.escape_default())));
            }
            seen.insert(key);
            map.next_value_seed(OnceOnly)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(OnceOnly)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Config {
        layers: u32,
        #[serde(default)]
        names: Vec<String>,
    }

    fn parse(text: &str) -> Result<Config> {
        parse_json(&ModelFiles::embedded("(test)", &[]), "config.json", text)
    }

    #[test]
    fn an_error_names_file_and_field() {
        let good =
            parse(r#"{"layers": 2, "names": ["a"], "other": {"x": [1.5, null, true]}}"#).expect("good");
        assert_eq!((good.layers, good.names.len()), (2, 1));
        for (text, field) in [
            (r#"{"names": []}"#, "layers"),
            (r#"{"layers": "2"}"#, "layers"),
            (r#"{"layers": -1, "names": []}"#, "layers"),
            (r#"{"layers": 1, "layers": 2}"#, "layers"),
            (r#"{"layers": 1, "names": [1]}"#, "names"),
            (r#"{"layers": 1, "extra": {"a": 1, "a": 1}}"#, "a"),
        ] {
            let error = parse(text).expect_err(text);
            let Error::Config { field: found, .. } = &error else { panic!("{text}: {error}") };
            assert_eq!(found, field, "{text}: {error}");
            assert!(error.to_string().contains("config.json"), "{error}");
            assert_eq!(error.exit_code(), 3);
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let nested = "[".repeat(100_000);
        for text in ["", "{", "[1,]", "{\"layers\": NaN}", "{} {}", nested.as_str()] {
            let error = parse(text).expect_err("not JSON");
            assert!(matches!(error, Error::Input { .. } | Error::Config { .. }), "{error}");
        }
    }
}
