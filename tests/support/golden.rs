//! The golden directories: where they are, the models in them and the tensors beside those.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use unguide::pipeline::{Model, ModelSource};
use unguide::tensor::Tensor;

/// The directory `tests/golden/NAME`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The directory of the demo model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji-sd")
}

/// Opens the model in a directory.
pub fn open(root: &Path) -> Model {
    open_with_taesd(root, None)
}

/// The same with a TAESD from elsewhere.
pub fn open_with_taesd(root: &Path, taesd: Option<&Path>) -> Model {
    let source = ModelSource {
        model: Some(root.to_owned()),
        demo: &[],
        clip: None,
        vae: None,
        taesd: taesd.map(Path::to_owned),
        tokenizer: None,
        prediction: None,
        mmap: false,
    };
    Model::open(&source).unwrap_or_else(|error| panic!("{error}"))
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a case")).expect("JSON")
}

/// The strings of a list.
pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("texts").iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

/// All tensors of a file. Token ids are small enough to be exact in f32.
pub fn tensors(path: &Path) -> HashMap<String, Tensor<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => {
                let bytes = view.data().as_chunks().0.iter();
                bytes.map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            Dtype::I64 => {
                let bytes = view.data().as_chunks().0.iter();
                bytes.map(|&bytes| i64::from_le_bytes(bytes) as f32).collect()
            }
            other => panic!("{}: {name} is of type {other:?}", path.display()),
        };
        tensors.insert(name, Tensor::new(view.shape().to_vec(), data));
    }
    tensors
}

/// A list of strings in the metadata of a file.
pub fn metadata_texts(path: &Path, key: &str) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let metadata = metadata.metadata().as_ref().expect("metadata");
    texts(&serde_json::from_str(&metadata[key]).expect("JSON"))
}
