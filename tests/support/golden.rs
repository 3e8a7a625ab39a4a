//! The golden directories: where they are, the models in them and the tensors beside those.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use unguide::pipeline::{Guidance, Method, Model, ModelSource, Request};
use unguide::safety::{GammaSchedule, SldConfig};
use unguide::sampler::Rng;
use unguide::tensor::Tensor;
use unguide::weights::{ModelFiles, SafetensorsFile, TensorInfo, to_safetensors};

/// The directory `tests/golden/NAME`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The directory of the demo model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji-sd")
}

/// Copies a model and stores its weights in f32.
pub fn widen(root: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(root).expect("readable") {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("readable");
        if from.is_dir() {
            widen(&from, &to);
        } else if from.extension().is_some_and(|extension| extension == "safetensors") {
            let blob = ModelFiles::open(&from).and_then(|files| files.blob("")).expect("opened");
            let file = SafetensorsFile::new(blob).expect("weights");
            let tensor = |(name, info): (&String, &TensorInfo)| {
                let values = file.read_f32(name).expect("finite values");
                (name.clone(), Tensor::new(info.shape.clone(), values))
            };
            let tensors: Vec<_> = file.tensors.iter().map(tensor).collect();
            let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
            std::fs::write(&to, to_safetensors(named).expect("serialised")).expect("written");
        } else {
            std::fs::copy(&from, &to).expect("copied");
        }
    }
}

/// Opens the model in a directory.
pub fn open(root: &Path) -> Model {
    open_with_taesd(root, None)
}

/// The same with a TAESD from elsewhere.
pub fn open_with_taesd(root: &Path, taesd: Option<&Path>) -> Model {
    Model::open(&source(root, taesd)).unwrap_or_else(|error| panic!("{error}"))
}

/// The model in a directory with its weights left in their files.
pub fn open_mapped(root: &Path) -> Model {
    Model::open(&ModelSource { mmap: true, ..source(root, None) }).unwrap_or_else(|error| panic!("{error}"))
}

fn source(root: &Path, taesd: Option<&Path>) -> ModelSource {
    ModelSource {
        model: Some(root.to_owned()),
        demo: &[],
        clip: None,
        vae: None,
        taesd: taesd.map(Path::to_owned),
        tokenizer: None,
        prediction: None,
        mmap: false,
        guard: true,
    }
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

/// The run that `settings` of a case say.
pub fn request(model: &Model, case: &Value, settings: &Value) -> Request {
    let number = |key: &str| settings[key].as_f64().unwrap_or_else(|| panic!("a number `{key}`"));
    let seeds = case["seeds"].as_array().expect("seeds");
    let (width, height) = match case.get("image_size") {
        Some(size) => (size[1].as_u64().expect("w") as usize, size[0].as_u64().expect("h") as usize),
        None => model.default_size(),
    };
    let method = settings["method"].as_str().expect("a method");
    let guidance = |model: &Model| {
        let clip = model.clip().expect("a guard");
        Guidance {
            concepts: texts(&case["concepts"]),
            threshold: settings["threshold"].as_f64().unwrap_or(0.0),
            above_threshold: false,
            gamma: number("gamma"),
            gamma_schedule: GammaSchedule::Constant,
            window: None,
            reduce: settings["reduce"].as_str().expect("a word").parse().expect("log-mean or sum-log"),
            top_k: settings.get("top_k").and_then(Value::as_u64).map(|k| k as usize),
            mean: clip.mean,
            std: clip.std,
            gradient_scale_log2: 16,
        }
    };
    let method = match method {
        "none" => Method::None,
        "safe-sampling" => Method::SafeSampling(guidance(model)),
        "sld" => {
            let sld = &settings["sld"];
            let number = |key: &str| sld[key].as_f64().unwrap_or_else(|| panic!("a number `{key}`"));
            let config = SldConfig {
                name: "golden",
                warmup: number("warmup") as usize,
                scale: number("scale"),
                threshold: number("threshold"),
                momentum_scale: number("momentum_scale"),
                momentum_beta: number("momentum_beta"),
            };
            Method::Sld { config, concept: sld["concept"].as_str().expect("a text").to_owned() }
        }
        "classifier-guidance" | "classifier-guidance:frozen-unet" => Method::ClassifierGuidance {
            guidance: guidance(model),
            frozen_unet: method.ends_with("frozen-unet"),
            gated: !settings["threshold"].is_null(),
        },
        other => panic!("a golden run of method {other}"),
    };
    Request {
        prompts: texts(&case["prompts"]),
        negative_prompt: case["negative"].as_str().expect("a text").to_owned(),
        images_per_prompt: 1,
        batch_size: seeds.len(),
        steps: number("steps") as usize,
        guidance_scale: number("guidance"),
        seed: seeds[0].as_u64().expect("a seed"),
        width,
        height,
        eta: number("eta"),
        rng: Rng::Cpu,
        latents: None,
        method,
    }
}
