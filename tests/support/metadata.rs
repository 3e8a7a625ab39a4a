//! The texts that a picture carries, as a reader of PNG files finds them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::Value;

/// The two texts as far as a file has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoundMetadata {
    pub parameters: Option<String>,
    pub record: Option<Value>,
}

#[track_caller]
pub fn read_metadata(path: &Path) -> FoundMetadata {
    let file = BufReader::new(File::open(path).expect("a file"));
    let reader = png::Decoder::new(file).read_info().expect("a PNG");
    let info = reader.info();
    let latin1 = |keyword: &str| {
        info.uncompressed_latin1_text.iter().find(|c| c.keyword == keyword).map(|c| c.text.clone())
    };
    let utf8 = |keyword: &str| {
        let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword)?;
        Some(chunk.get_text().expect("text"))
    };
    FoundMetadata {
        parameters: latin1("parameters").or_else(|| utf8("parameters")),
        record: utf8("unguide").map(|text| serde_json::from_str(&text).expect("JSON")),
    }
}
