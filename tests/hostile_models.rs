//! Model files that are broken, hostile or something else than they claim: each is one clear error
//! with exit code 3 that names the file and, where there is one, the tensor or field.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use unguide::error::Error;
use unguide::text::Tokenizer;
use unguide::weights::{Component, ModelFiles, Weights, read_model_index};

/// A safetensors file with this header and so many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, range: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#, range[0], range[1])
}

/// A well-formed file of f32 zeros.
fn zeros(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut at = 0;
    let mut entries = Vec::new();
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        entries.push(entry(name, "F32", &format!("{shape:?}"), [at, at + bytes]));
        at += bytes;
    }
    raw(&format!("{{{}}}", entries.join(",")), at as usize)
}

const CROSS: &str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
const UNET: &[(&str, &[usize])] =
    &[("conv_in.weight", &[2, 4, 3, 3]), ("conv_out.weight", &[4, 2, 3, 3]), (CROSS, &[2, 6])];
const UNET_FILE: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE_FILE: &str = "vae/diffusion_pytorch_model.safetensors";
const TOKENS: (&str, &[usize]) = ("text_model.embeddings.token_embedding.weight", &[5, 6]);

fn write(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) {
    let path = directory.path().join(name);
    fs::create_dir_all(path.parent().expect("inside the directory")).expect("created");
    fs::write(path, content).expect("written");
}

/// The smallest diffusers directory.
fn model() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(&directory, UNET_FILE, zeros(UNET));
    write(&directory, VAE_FILE, zeros(&[("decoder.conv_in.weight", &[2, 4, 3, 3])]));
    write(&directory, "text_encoder/model.safetensors", zeros(&[TOKENS]));
    directory
}

fn open(path: &Path) -> Result<Weights, Error> {
    Weights::open(&ModelFiles::open(path)?, &[])
}

/// The error says all of `parts` and is the user's input's fault.
fn assert_told<T>(case: &str, result: Result<T, Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("{case}: accepted") };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{case}: `{part}` is not in: {text}");
    }
    assert!(text.len() < 2000, "{case}: {} bytes of message", text.len());
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{case}: {text:?}");
    let is_input = matches!(error, Error::Input { .. } | Error::Tensor { .. } | Error::Config { .. });
    assert!(is_input, "{case}: {error:?}");
    assert_eq!(error.exit_code(), 3, "{case}");
}

#[test]
fn broken_headers_are_refused_by_name() {
    let a = |shape: &str, range| format!("{{{}}}", entry("a.weight", "F32", shape, range));
    let one = || a("[1]", [0, 4]);
    let named = |name: &str| raw(&one().replace("a.weight", name), 4);
    let two = |first: [u64; 2], second: [u64; 2]| {
        format!("{{{},{}}}", entry("a", "F32", "[1]", first), entry("b", "F32", "[1]", second))
    };
    let long = "n".repeat(300);
    let many: Vec<String> = (0..20_000).map(|i| entry(&format!("t{i}"), "U8", "[1]", [i, i + 1])).collect();
    let deep = format!("{{\"__metadata__\":{}}}", "[".repeat(100_000));
    let metadata = one().replacen('{', r#"{"__metadata__":{"a":1},"#, 1);
    let pickle = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("an empty file", vec![], &["0 bytes"]),
        ("seven bytes", vec![0; 7], &["7 bytes"]),
        ("header of length 0", raw("", 100), &["does not begin with `{`"]),
        ("header longer than the file", b"\x40\0\0\0\0\0\0\0{}".to_vec(), &["cut short", "64 bytes"]),
        (
            "header of 2^64 - 1 bytes",
            [vec![255; 8], b"{}".to_vec()].concat(),
            &["18446744073709551615", "8 MiB"],
        ),
        ("header of 9 MiB of spaces", raw(&format!("{{}}{}", " ".repeat(9 << 20)), 0), &["8 MiB"]),
        ("two objects", raw("{}{}", 0), &["header is not valid"]),
        ("header not UTF-8", b"\x02\0\0\0\0\0\0\0{\xff".to_vec(), &["UTF-8"]),
        ("header not JSON", raw("{nonsense", 0), &["header is not valid"]),
        ("an array", raw("[]", 0), &["does not begin with `{`"]),
        ("space before the brace", raw(&format!(" {}", one()), 4), &["does not begin with `{`"]),
        ("deep nesting", raw(&deep, 0), &["header is not valid"]),
        ("no tensors", raw("{}", 0), &["no tensors"]),
        ("only metadata", raw(r#"{"__metadata__":{"format":"pt"}}"#, 0), &["no tensors"]),
        ("metadata not text", raw(&metadata, 4), &["header is not valid"]),
        ("20 000 tensors", raw(&format!("{{{}}}", many.join(",")), 20_000), &["20000 tensors", "16384"]),
        ("overlap", raw(&two([0, 4], [0, 4]), 4), &["header is not valid"]),
        ("a hole", raw(&two([0, 4], [8, 12]), 12), &["header is not valid", "`b`"]),
        ("a name twice", raw(&two([0, 4], [0, 4]).replace("\"b\"", "\"a\""), 4), &["`a` occurs twice"]),
        ("trailing bytes", raw(&one(), 5), &["no tensor owns"]),
        ("data cut short", raw(&a("[2]", [0, 8]), 7), &["cut short", "downloaded"]),
        ("reversed offsets", raw(&a("[1]", [4, 0]), 4), &["a.weight", "4 to 0"]),
        ("offsets near 2^64", raw(&a("[1]", [u64::MAX - 4, u64::MAX]), 4), &["a.weight"]),
        ("shape overflow", raw(&a("[4294967296,4294967296,4]", [0, 4]), 4), &["a.weight", "4294967296"]),
        ("size mismatch", raw(&a("[3]", [0, 4]), 4), &["a.weight", "12 bytes"]),
        ("negative extent", raw(&a("[-1]", [0, 4]), 4), &["a.weight"]),
        ("fractional offset", raw(&one().replace(",4]", ",4.5]"), 4), &["a.weight"]),
        ("three offsets", raw(&one().replace(",4]", ",4,5]"), 4), &["a.weight"]),
        ("unknown dtype", raw(&one().replace("F32", "F31"), 4), &["a.weight", "F31"]),
        ("rank 9", raw(&a("[1,1,1,1,1,1,1,1,1]", [0, 4]), 4), &["a.weight", "8 dimensions"]),
        (
            "no elements",
            raw(&a("[0,18446744073709551615]", [0, 0]), 0),
            &["a.weight", "at least one element"],
        ),
        ("empty name", named(""), &["printable"]),
        ("NUL in a name", named("a\\u0000b"), &["a\\u{0}b", "printable"]),
        ("escape in a name", named("\\u001b[31m"), &["\\u{1b}[31m"]),
        ("long name", named(&long), &["nnn...", "300 bytes"]),
        ("web page", b"<!DOCTYPE html><html><body>404</body></html>".to_vec(), &["web page"]),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(), &["Git LFS"]),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc".to_vec(), &["gzip"]),
        ("GGUF", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), &["GGUF"]),
        ("zip", b"PK\x03\x04archive/data.pkl".to_vec(), &["pickled", "torch.load", "weights_only=True"]),
        ("pickle", pickle, &["pickled", "torch.load"]),
    ];
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (case, bytes, parts) in cases {
        write(&directory, "x.safetensors", bytes);
        let start = Instant::now();
        let result = open(&directory.path().join("x.safetensors"));
        assert_told(case, result, &[&["x.safetensors"], parts].concat());
        assert!(start.elapsed() < Duration::from_secs(2), "{case} took {:?}", start.elapsed());
    }
}

type NamedShape<'a> = (&'a str, &'a [usize]);

#[test]
fn a_file_of_another_kind_is_named_as_what_it_is() {
    let unet: (&str, &[usize]) = ("model.diffusion_model.out.2.bias", &[4]);
    let cases: &[(&[NamedShape<'_>], &[&str])] = &[
        (&[unet], &["only a UNet", "Stable Diffusion 1.x"]),
        (&[unet, ("first_stage_model.decoder.conv_in.bias", &[1])], &["without its text encoder"]),
        (&[("lora_unet_mid_block.lora_down.weight", &[1, 1])], &["a LoRA"]),
        (&[unet, ("conditioner.embedders.0.x", &[1])], &["Stable Diffusion XL"]),
        (&[("double_blocks.0.x", &[1])], &["FLUX"]),
        (&[("something", &[1])], &["nothing we know", "something"]),
    ];
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (tensors, parts) in cases {
        write(&directory, "x.safetensors", zeros(tensors));
        let result = open(&directory.path().join("x.safetensors"));
        assert_told(tensors[0].0, result, &[&["x.safetensors"], *parts].concat());
    }
}

#[test]
fn a_unet_for_another_job_or_another_text_encoder_is_refused() {
    let with = |name: &'static str, shape: &'static [usize]| {
        let mut tensors = UNET.to_vec();
        tensors.retain(|(other, _)| *other != name);
        tensors.push((name, shape));
        let directory = model();
        write(&directory, UNET_FILE, zeros(&tensors));
        open(directory.path())
    };
    let inpainting = with("conv_in.weight", &[2, 9, 3, 3]);
    assert_told("inpainting", inpainting, &["conv_in.weight", "9: an inpainting UNet"]);
    let wide = with(CROSS, &[2, 1024]);
    assert_told("SD2 beside SD1", wide, &[CROSS, "1024", "Stable Diffusion 2.x", "6 channels"]);
    assert_told("SDXL", with("add_embedding.linear_1.weight", &[2, 2]), &["Stable Diffusion XL"]);
    assert!(with("conv_in.bias", &[2]).is_ok());
}

#[test]
fn missing_misshapen_and_unexpected_tensors_are_listed_with_the_nearest_name() {
    let directory = model();
    let mut tensors = UNET.to_vec();
    tensors.extend([
        ("conv_on.bias", [2].as_slice()),
        ("a", &[3, 2]),
        ("b", &[2, 3, 1, 1]),
        ("c", &[2, 3, 3, 3]),
    ]);
    write(&directory, UNET_FILE, zeros(&tensors));
    let weights = open(directory.path()).expect("a model");

    let mut wanted: Vec<(String, Vec<usize>)> =
        UNET.iter().map(|(name, shape)| (format!("unet.{name}"), shape.to_vec())).collect();
    wanted.push(("unet.b".into(), vec![2, 3])); // as a matrix: the same numbers
    wanted.push(("unet.conv_in.bias".into(), vec![2]));
    wanted.push(("unet.a".into(), vec![2, 3]));
    let parts = [
        UNET_FILE,
        "1 missing, 1 of another shape, 2 unexpected",
        "missing: `unet.conv_in.bias` [2] (the nearest unexpected one is `unet.conv_on.bias`)",
        "`unet.a` expected [2, 3], found [3, 2] (transposed?)",
        "unexpected: `unet.c`",
    ];
    assert_told("verify", weights.verify(&wanted), &parts);

    let missing = weights.load("unet.conv_in.bias", &[2]);
    assert_told("missing", missing, &[UNET_FILE, "unet.conv_in.bias", "unet.conv_on.bias"]);
    let reversed = weights.load("unet.a", &[2, 3]);
    assert_told("reversed", reversed, &[UNET_FILE, "`a`", "[2, 3]", "[3, 2] (transposed?)"]);
    assert_told("a window of 3x3", weights.load("unet.c", &[2, 3]), &["`c`", "[2, 3, 3, 3]"]);
    assert_eq!(weights.load("unet.b", &[2, 3]).expect("the same numbers"), [0.0; 6]);
}

#[test]
fn values_that_are_no_weights_are_refused() {
    let directory = model();
    for (dtype, bytes) in [("I64", 8), ("F8_E4M3", 1), ("U8", 1), ("BOOL", 1)] {
        let header = format!("{{{}}}", entry("decoder.conv_in.weight", dtype, "[1]", [0, bytes]));
        write(&directory, VAE_FILE, raw(&header, bytes as usize));
        let weights = open(directory.path()).expect("headers are fine");
        let values = format!("{dtype} values");
        let parts = [VAE_FILE, "decoder.conv_in.weight", &values];
        assert_told(dtype, weights.load("vae.decoder.conv_in.weight", &[1]), &parts);
    }
    let mut file = zeros(&[("decoder.conv_in.weight", &[3])]);
    let at = file.len() - 8;
    file[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&directory, VAE_FILE, file);
    let weights = open(directory.path()).expect("headers are fine");
    let parts = [VAE_FILE, "decoder.conv_in.weight", "NaN at element 1"];
    assert_told("NaN", weights.load("vae.decoder.conv_in.weight", &[3]), &parts);
}

#[test]
fn values_at_odd_offsets_are_read() {
    let odd = entry("odd", "U8", "[1]", [0, 1]);
    let header = format!("{{{odd},{}}}", entry("decoder.conv_in.weight", "F32", "[2]", [1, 9]));
    let mut file = raw(&header, 9);
    let at = file.len() - 4;
    file[at..].copy_from_slice(&1.5f32.to_le_bytes());
    let directory = model();
    write(&directory, VAE_FILE, file);
    let files = ModelFiles::open(directory.path()).expect("a directory");
    for files in [files.clone(), files.mapped()] {
        let weights = Weights::open(&files, &[]).expect("a model");
        assert_eq!(weights.load("vae.decoder.conv_in.weight", &[2]).expect("read"), [0.0, 1.5]);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let directory = model();
    let weights = open(directory.path()).expect("a model");
    let load = || weights.load("unet.conv_out.weight", &[4, 2, 3, 3]);
    let path = directory.path().join(UNET_FILE);
    let whole = fs::read(&path).expect("read");
    fs::write(&path, &whole[..whole.len() - 300]).expect("truncated");
    assert_told("shrunk", load(), &[UNET_FILE, "truncated"]);
    fs::write(&path, [whole.as_slice(), &[0; 9]].concat()).expect("grown");
    assert_told("grown", load(), &[UNET_FILE, "downloaded"]);
    fs::write(&path, &whole).expect("restored");
    load().expect("as before");
}

#[test]
fn only_regular_files_are_opened_and_nothing_blocks() {
    let directory = model();
    let path = directory.path().join(UNET_FILE);
    let replace = |how: &dyn Fn(&Path)| {
        let is_folder = path.is_dir() && !path.is_symlink();
        if is_folder { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("removed");
        how(&path);
        open(directory.path())
    };
    let result = replace(&|path| fs::create_dir(path).expect("created"));
    assert_told("directory", result, &[UNET_FILE, "a directory"]);
    let result = replace(&|path| {
        assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
    });
    assert_told("FIFO", result, &[UNET_FILE, "pipe"]);
    for device in ["/dev/zero", "/dev/null"] {
        let result = replace(&|path| symlink(device, path).expect("linked"));
        assert_told(device, result, &[UNET_FILE, "device"]);
    }
    let result = replace(&|path| symlink(path, path).expect("linked"));
    assert_told("loop", result, &[UNET_FILE, "symbolic link"]);
    let result = replace(&|path| symlink("/nowhere/at/all", path).expect("linked"));
    assert_told("broken link", result, &[UNET_FILE, "symbolic link"]);

    // A link to a regular file elsewhere is how download caches are made.
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    write(&elsewhere, "blob", zeros(UNET));
    replace(&|path| symlink(elsewhere.path().join("blob"), path).expect("linked")).expect("a model");

    assert_told("no such model", open(&directory.path().join("none")), &["none", "no such file"]);
    assert_told("device as model", open(Path::new("/dev/zero")), &["/dev/zero", "regular file"]);
    assert_told("empty directory", open(elsewhere.path()), &["unet", "holds no UNet"]);
}

#[test]
fn pickles_are_refused_with_the_conversion_command() {
    let directory = model();
    fs::remove_file(directory.path().join(UNET_FILE)).expect("removed");
    write(&directory, "unet/diffusion_pytorch_model.bin", b"PK\x03\x04");
    let target = "unet/diffusion_pytorch_model.safetensors'";
    let parts = ["diffusion_pytorch_model.bin", "never opened", "python3 -c", "weights_only=True", target];
    assert_told(".bin", open(directory.path()), &parts);
    write(&directory, "model.ckpt", b"PK\x03\x04../../x");
    assert_told(".ckpt", open(&directory.path().join("model.ckpt")), &["model.ckpt", "torch.load"]);
}

#[test]
fn shards_are_plain_names_all_there_and_disjoint() {
    let directory = model();
    fs::remove_file(directory.path().join(UNET_FILE)).expect("removed");
    let index_file = "unet/diffusion_pytorch_model.safetensors.index.json";
    let shard = |i: usize| format!("diffusion_pytorch_model-0000{i}-of-00002.safetensors");
    let (first, second) = (shard(1), shard(2));
    write(&directory, &format!("unet/{first}"), zeros(&UNET[..1]));
    write(&directory, &format!("unet/{second}"), zeros(&UNET[1..]));
    let index = |shards: [&str; 3]| {
        let map: serde_json::Map<_, _> =
            UNET.iter().zip(shards).map(|((name, _), shard)| ((*name).to_owned(), shard.into())).collect();
        serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()
    };
    write(&directory, index_file, index([&first, &second, &second]));
    let weights = open(directory.path()).expect("two shards");
    weights.load("unet.conv_out.weight", &[4, 2, 3, 3]).expect("in the second shard");

    for bad in ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", "", ".x.safetensors", "x.bin"] {
        write(&directory, index_file, index([&first, bad, &second]));
        assert_told(bad, open(directory.path()), &[index_file, "conv_out.weight", "beside the index"]);
    }
    write(&directory, index_file, index([&first, "gone.safetensors", &second]));
    assert_told("missing shard", open(directory.path()), &["gone.safetensors", "missing", "conv_out.weight"]);
    write(&directory, index_file, index([&first, &first, &second]));
    assert_told(
        "wrong shard",
        open(directory.path()),
        &[index_file, "conv_out.weight", "no such tensor there"],
    );
    write(&directory, index_file, index([&first, &second, &second]));
    write(&directory, &format!("unet/{second}"), zeros(UNET));
    assert_told("in two shards", open(directory.path()), &[&second, "conv_in.weight", &first]);
    write(&directory, index_file, r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#);
    assert_told("twice", open(directory.path()), &[index_file, "`a`", "two of them"]);
}

#[test]
fn two_names_for_one_tensor_are_refused() {
    let directory = model();
    let attention = "decoder.mid_block.attentions.0";
    let (old, new) = (format!("{attention}.query.weight"), format!("{attention}.to_q.weight"));
    let tensors: [(&str, &[usize]); 3] = [("decoder.conv_in.weight", &[1]), (&old, &[1]), (&new, &[1])];
    write(&directory, VAE_FILE, zeros(&tensors));
    assert_told("twice", open(directory.path()), &[VAE_FILE, "to_q.weight", "two of them"]);
}

#[test]
fn a_component_of_another_kind_does_not_take_its_place() {
    let directory = model();
    let mut weights = open(directory.path()).expect("a model");
    let file = |name: &str| ModelFiles::open(directory.path().join(name)).expect("a file");
    let text_encoder = file("text_encoder/model.safetensors");
    for component in [Component::Clip, Component::Vae, Component::Taesd] {
        let parts = ["text_encoder/model.safetensors", "only a text encoder"];
        assert_told("replace", weights.replace(component, &text_encoder), &parts);
    }
    write(&directory, "enc.safetensors", zeros(&[("0.weight", &[1]), ("1.conv.0.weight", &[1])]));
    let result = weights.replace(Component::Taesd, &file("enc.safetensors"));
    assert_told("TAESD", result, &["enc.safetensors", "the encoder half of TAESD"]);
}

#[test]
fn a_pipeline_of_another_kind_is_refused_by_field() {
    let directory = model();
    let read = |text: &str| {
        write(&directory, "model_index.json", text);
        read_model_index(&ModelFiles::open(directory.path()).expect("a directory"))
    };
    let good = r#"{"_class_name": "StableDiffusionPipeline", "safety_checker": [null, null],
        "requires_safety_checker": false, "unet": ["diffusers", "UNet2DConditionModel"]}"#;
    let index = read(good).expect("good").expect("there");
    assert_eq!(index.components["safety_checker"], None);
    assert_eq!(index.components["unet"], Some(("diffusers".into(), "UNet2DConditionModel".into())));
    open(directory.path()).expect("a model");

    let xl = good.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline");
    let big = format!("{{\"a\": \"{}\"}}", " ".repeat(2 << 20));
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    for (case, text, parts) in [
        ("SDXL", xl.as_str(), &["`_class_name`", "StableDiffusionXLPipeline"] as &[_]),
        ("class of another type", r#"{"_class_name": 5}"#, &["`_class_name`", "5"]),
        ("null UNet", r#"{"unet": [null, null]}"#, &["`unet`", "null"]),
        ("another UNet", r#"{"unet": ["diffusers", "UNet3D"]}"#, &["`unet`", "UNet3D"]),
        ("odd component", r#"{"vae": [1, 2, 3]}"#, &["`vae`"]),
        ("second text encoder", r#"{"text_encoder_2": ["transformers", "X"]}"#, &["`text_encoder_2`"]),
        ("duplicate", r#"{"unet": [null, null], "unet": ["a", "b"]}"#, &["`unet`", "two of them"]),
        ("not an object", "[]", &["map"]),
        ("not JSON", "{", &["not valid JSON"]),
        ("deep", &deep, &["not valid JSON"]),
        ("large", &big, &["1048576"]),
    ] {
        assert_told(case, read(text), &[&["model_index.json"], parts].concat());
        assert_told(case, open(directory.path()), &["model_index.json"]);
    }
}

#[test]
fn broken_vocabularies_and_merges_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let good = r#"{"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}"#;
    let read = |vocab: &[u8], merges: &[u8]| {
        write(&directory, "vocab.json", vocab);
        write(&directory, "merges.txt", merges);
        let files = ModelFiles::open(directory.path()).expect("a directory");
        Tokenizer::from_files(&files, "").map(|tokenizer| tokenizer.encode("AB", 4).expect("encoded").ids)
    };
    assert_eq!(read(good.as_bytes(), b"#version: 0.2\na b</w>\n").expect("good"), [3, 2, 4, 4]);
    let windows = read(good.as_bytes(), b"\xef\xbb\xbf#version: 0.2\r\na b</w>\r\n");
    assert_eq!(windows.expect("a byte order mark and CRLF do no harm"), [3, 2, 4, 4]);

    let vocab = |from: &str, to: &str| good.replace(from, to).into_bytes();
    for (case, bytes, parts) in [
        ("empty", vec![], &["not valid JSON"] as &[_]),
        ("BOM", [b"\xef\xbb\xbf", good.as_bytes()].concat(), &["not valid JSON"]),
        ("not UTF-8", b"{\"\xff\": 0}".to_vec(), &["UTF-8"]),
        ("id too large", vocab("2,", "49408,"), &["`ab</w>`", "49408"]),
        ("id twice", vocab("2,", "1,"), &["1 twice"]),
        ("negative id", vocab("2,", "-2,"), &["`ab</w>`", "-2"]),
        ("id no number", vocab("2,", "\"2\","), &["`ab</w>`"]),
        ("token twice", vocab("\"b</w>\"", "\"a\""), &["`a`", "two of them"]),
        ("no end token", vocab("<|endoftext|>", "<|end|>"), &["<|endoftext|>"]),
        ("no start token", vocab("<|startoftext|>", "<|start|>"), &["<|startoftext|>"]),
        ("an array", b"[]".to_vec(), &["map"]),
    ] {
        assert_told(case, read(&bytes, b"a b</w>"), &[&["vocab.json"], parts].concat());
    }
    for (case, bytes, parts) in [
        ("empty", b"".as_slice(), &["no merges"] as &[_]),
        ("only a version", b"#version: 0.2\n", &["no merges"]),
        ("not UTF-8", b"a \xff", &["UTF-8"]),
        ("unknown token", b"a b</w>\na z", &["merge 2", "`z`"]),
        ("unknown result", b"b</w> a", &["merge 1", "`b</w>a`"]),
        ("one token", b"a", &["line 1", "`a`"]),
        ("three tokens", b"a b c", &["line 1", "two tokens"]),
    ] {
        assert_told(case, read(good.as_bytes(), bytes), &[&["merges.txt"], parts].concat());
    }
    write(&directory, "vocab.json", good);
    let file = fs::File::create(directory.path().join("merges.txt")).expect("created");
    file.set_len(17 << 20).expect("a sparse file");
    let files = ModelFiles::open(directory.path()).expect("a directory");
    assert_told("17 MiB", Tokenizer::from_files(&files, "").map(drop), &["merges.txt", "16777216"]);
}

#[test]
fn a_tokenizer_that_is_not_clips_is_refused() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/emoji-sd/tokenizer/tokenizer.json");
    let good: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(source).expect("the demo's tokenizer")).expect("JSON");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let read = |pointer: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).expect("there") = value;
        write(&directory, "tokenizer.json", changed.to_string());
        let files = ModelFiles::open(directory.path()).expect("a directory");
        Tokenizer::from_files(&files, "").map(drop)
    };
    read("/version", "1.0".into()).expect("unchanged");
    for (pointer, value, part) in [
        ("/model/type", "Unigram".into(), "model.type"),
        ("/model/end_of_word_suffix", "".into(), "model.end_of_word_suffix"),
        ("/model/vocab", serde_json::json!({}), "<|endoftext|>"),
        ("/model/merges/0", serde_json::json!(["n", "nowhere"]), "merge 1"),
        ("/model/merges/0", "n".into(), "model.merges[0]"),
        ("/normalizer", serde_json::Value::Null, "`normalizer`"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(a+)+$".into(), "`pre_tokenizer`"),
        ("/added_tokens/0/content", "<|nowhere|>".into(), "<|nowhere|>"),
    ] {
        assert_told(pointer, read(pointer, value), &["tokenizer.json", part]);
    }
}
