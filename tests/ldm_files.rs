//! One-file checkpoints with the original names, against diffusers' own conversion
//! (`golden/make_ldm_names.py`): every tensor arrives under our name with the right values.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use unguide::weights::{Component, Layout, ModelFiles, Weights};

/// Our name: shape, stored name, and which part of it (`"whole"`, `"transposed"`, a third).
type Ours = BTreeMap<String, (Vec<usize>, String, Value)>;
type Stored = BTreeMap<String, Vec<usize>>;

fn golden(model: &str) -> (Stored, Ours) {
    let text = include_str!("golden/ldm_names.json");
    let golden: Value = serde_json::from_str(text).expect("the golden file is JSON");
    let part = |name: &str| golden[model][name].clone();
    (
        serde_json::from_value(part("stored")).expect("names and shapes"),
        serde_json::from_value(part("ours")).expect("names, shapes and origins"),
    )
}

/// Values that tell tensors and their elements apart.
fn values(index: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| (index * 131 + i * 7 % 8191) as f32).collect()
}

fn write(path: &Path, stored: &Stored) {
    let data = stored.iter().enumerate().map(|(index, (name, shape))| {
        let values = values(index, shape.iter().product());
        (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    });
    let data: Vec<_> = data.collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("sizes agree"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

fn every_tensor_arrives(model: &str, layout: Layout) {
    let (stored, ours) = golden(model);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.safetensors");
    write(&path, &stored);
    let weights = Weights::open(&ModelFiles::open(&path).expect("a file"), &[]).expect("a checkpoint");
    assert_eq!(weights.layout(), layout);

    let wanted: Vec<_> = ours.iter().map(|(name, (shape, ..))| (name.clone(), shape.clone())).collect();
    weights.verify(&wanted).expect("all names and shapes");
    let index: BTreeMap<&str, usize> =
        stored.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    for (name, (shape, origin, part)) in &ours {
        let all = values(index[origin.as_str()], stored[origin].iter().product());
        let count: usize = shape.iter().product();
        let want = match part {
            Value::Number(third) => {
                let third = third.as_u64().expect("0, 1 or 2") as usize;
                all[third * count..(third + 1) * count].to_vec()
            }
            Value::String(part) if part == "transposed" => {
                let (rows, columns) = (shape[0], shape[1]);
                (0..count).map(|i| all[(i % columns) * rows + i / columns]).collect()
            }
            _ => all,
        };
        assert_eq!(weights.load(name, shape).expect(name), want, "{name}");
    }
    let used: HashSet<String> = ours.into_keys().collect();
    assert_eq!(weights.names().filter(|name| !used.contains(*name)).count(), 0);
    let [summary] = &weights.describe()[..] else { panic!("one file") };
    assert_eq!(summary.components, ["UNet", "VAE", "text encoder"]);
    assert!(summary.ignored >= 4, "{summary:?}");
}

#[test]
fn stable_diffusion_1_arrives_under_our_names() {
    every_tensor_arrives("sd1", Layout::Sd1File);
}

#[test]
fn stable_diffusion_2_arrives_under_our_names() {
    every_tensor_arrives("sd2", Layout::Sd2File);
}

#[test]
fn a_vae_may_come_from_a_checkpoint_or_alone_and_under_any_names() {
    let (stored, ours) = golden("sd1");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name);
    write(&file("model.safetensors"), &stored);
    let alone = |(name, shape): (&String, &Vec<usize>)| {
        Some((name.strip_prefix("first_stage_model.")?.to_owned(), shape.clone()))
    };
    write(&file("original.safetensors"), &stored.iter().filter_map(alone).collect());
    let older = |name: &str| {
        let name = name.strip_prefix("vae.")?.replace("to_out.0", "proj_attn");
        Some(name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value"))
    };
    let renamed = ours.iter().filter_map(|(name, (shape, ..))| Some((older(name)?, shape.clone())));
    std::fs::create_dir(file("vae")).expect("created");
    write(&file("vae/diffusion_pytorch_model.fp16.safetensors"), &renamed.collect());

    let mut weights = Weights::open(&ModelFiles::open(file("model.safetensors")).expect("a file"), &[])
        .expect("a checkpoint");
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    // A whole checkpoint, a lone file, a directory, and a directory with a folder `vae`.
    for from in ["model.safetensors", "original.safetensors", "vae", ""] {
        weights.replace(Component::Vae, &ModelFiles::open(file(from)).expect("there")).expect(from);
        assert_eq!(weights.names().collect::<Vec<_>>(), names, "{from}");
        let path = weights.path_of(Component::Vae).expect("a VAE");
        assert!(path.starts_with(file(from)), "{}", path.display());
        for (name, (shape, ..)) in ours.iter().filter(|(name, _)| name.starts_with("vae.")) {
            weights.load(name, shape).expect(name);
        }
    }
}
