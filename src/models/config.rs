//! Reads a `config.json` field by field, so that an error can name the field.
//!
//! Numbers are read as the widest type and checked against a range before they become extents: a
//! negative, huge or fractional count never reaches an allocation. An absent field has the default of
//! the library that wrote the file; a field that nobody asks for is ignored.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Widths of images and sequences. The widest published CLIP has 1664, so this is no limit in practice.
pub const CHANNELS: RangeInclusive<usize> = 1..=16_384;

/// Blocks of one kind in a row.
pub const LAYERS: RangeInclusive<usize> = 1..=128;

/// Resolutions of a UNet or a decoder; each halves the image, so eight need 128 pixels of latents.
pub const LEVELS: RangeInclusive<usize> = 1..=8;

/// Longest excerpt of a file that an error repeats, in characters.
const SHOWN: usize = 80;

/// The fields of one JSON object.
pub struct Fields<'p> {
    path: &'p Path,
    /// Path of the object inside the file, with a dot behind it; empty at the top.
    within: String,
    map: Map<String, Value>,
}

impl<'p> Fields<'p> {
    /// `path` is only for errors: the text was read by the caller.
    pub fn parse(json: &str, path: &'p Path) -> Result<Self> {
        let value = serde_json::from_str(json)
            .map_err(|error| Error::input(path, format!("expected a JSON object: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self { path, within: String::new(), map }),
            other => Err(Error::input(path, format!("expected a JSON object, found {}", shown(&other)))),
        }
    }

    /// The object in `field`; `None` where it is absent or null.
    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                let within = format!("{}{field}.", self.within);
                Ok(Some(Self { path: self.path, within, map: map.clone() }))
            }
            Some(other) => Err(self.wrong(field, "an object", shown(other))),
        }
    }

    pub fn wrong(&self, field: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.within),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// `field` as it stands in the file, for errors about how fields fit together.
    pub fn found(&self, field: &str) -> String {
        self.map.get(field).map_or_else(|| "nothing (its default)".to_owned(), shown)
    }

    pub fn is_list(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_array)
    }

    /// Refuses every value but those in `allowed`, given as JSON. `why` stands behind what is expected.
    pub fn only(&self, field: &str, allowed: &[&str], why: &str) -> Result<()> {
        match self.map.get(field) {
            Some(value) if !allowed.contains(&value.to_string().as_str()) => {
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                Err(self.wrong(field, format!("{}{why}", allowed.join(" or ")), shown(value)))
            }
            _ => Ok(()),
        }
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.map.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(field, "true or false", shown(other))),
        }
    }

    /// A finite number in `range`.
    pub fn number(&self, field: &str, default: f32, range: RangeInclusive<f32>) -> Result<f32> {
        let Some(value) = self.map.get(field) else { return Ok(default) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let expected = format!("a number from {} to {}", range.start(), range.end());
            self.wrong(field, expected, shown(value))
        })
    }

    pub fn count(&self, field: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        self.map.get(field).map_or(Ok(default), |value| self.as_count(field, value, &range))
    }

    /// `None` where the field is absent or null.
    pub fn optional_count(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.as_count(field, value, &range).map(Some),
        }
    }

    pub fn counts(
        &self,
        field: &str,
        default: &[usize],
        length: RangeInclusive<usize>,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        let Some(value) = self.map.get(field) else { return Ok(default.to_vec()) };
        let list = value.as_array().filter(|list| length.contains(&list.len())).ok_or_else(|| {
            let expected = format!("a list of {} to {} integers", length.start(), length.end());
            self.wrong(field, expected, shown(value))
        })?;
        list.iter().map(|value| self.as_count(field, value, &range)).collect()
    }

    /// One count for all `levels`, or a list of one for each.
    pub fn count_per_level(
        &self,
        field: &str,
        default: usize,
        levels: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        if self.is_list(field) {
            return self.counts(field, &[], levels..=levels, range);
        }
        Ok(vec![self.count(field, default, range)?; levels])
    }

    /// For each level, which of the two `kinds` it is: true for the first one.
    pub fn kind_per_level(&self, field: &str, default: &[&str], kinds: [&str; 2]) -> Result<Vec<bool>> {
        let expected = || format!("a list of \"{}\" and \"{}\"", kinds[0], kinds[1]);
        let kind = |name: &str| kinds.iter().position(|&kind| kind == name).map(|position| position == 0);
        let list = match self.map.get(field) {
            None => default.iter().map(|name| kind(name)).collect::<Option<Vec<_>>>(),
            Some(Value::Array(list)) => list.iter().map(|value| value.as_str().and_then(kind)).collect(),
            Some(_) => None,
        };
        list.ok_or_else(|| self.wrong(field, expected(), self.found(field)))
    }

    fn as_count(&self, field: &str, value: &Value, range: &RangeInclusive<usize>) -> Result<usize> {
        let count = value.as_i64().and_then(|number| usize::try_from(number).ok());
        count.filter(|count| range.contains(count)).ok_or_else(|| {
            let expected = format!("an integer from {} to {}", range.start(), range.end());
            self.wrong(field, expected, shown(value))
        })
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields<'static> {
        Fields::parse(json, Path::new("config.json")).expect("an object")
    }

    #[test]
    fn an_error_names_the_file_the_field_and_both_values() {
        let inner = fields(r#"{"outer": {"width": -1}}"#).object("outer").unwrap().expect("present");
        let error = inner.count("width", 8, 1..=64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: `outer.width`: expected an integer from 1 to 64, found -1"
        );
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn counts_are_whole_and_in_range() {
        for value in ["0", "-1", "65", "1e9", "1.5", "4.0", "18446744073709551616", "null", "\"8\"", "[8]"] {
            let fields = fields(&format!(r#"{{"width": {value}}}"#));
            assert!(fields.count("width", 8, 1..=64).is_err(), "{value}");
        }
        assert_eq!(fields("{}").count("width", 8, 1..=64).unwrap(), 8);
        assert_eq!(fields(r#"{"width": 64}"#).count("width", 8, 1..=64).unwrap(), 64);
    }

    #[test]
    fn numbers_are_finite() {
        for value in ["1e39", "-1e-3", "null", "\"nan\"", "true"] {
            assert!(
                fields(&format!(r#"{{"eps": {value}}}"#)).number("eps", 0.0, 0.0..=1e30).is_err(),
                "{value}"
            );
        }
        assert_eq!(fields(r#"{"eps": 1e-05}"#).number("eps", 0.0, 0.0..=1.0).unwrap(), 1e-5);
    }

    #[test]
    fn what_is_not_an_object_is_refused_without_repeating_all_of_it() {
        let long = format!("[{}1]", "1,".repeat(1 << 16));
        for json in ["", "{", "null", "{\"a\": 1} {", long.as_str()] {
            let error = Fields::parse(json, Path::new("config.json")).err().expect("refused");
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().len() < 200, "{error}");
        }
    }
}
