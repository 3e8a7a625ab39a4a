//! The networks against the libraries that define them: names and shapes of all weights, operation
//! counts, sizes; and configurations that must be refused.
//!
//! The files in `golden/keys` are written by `golden/make_keys.py` (published models) and
//! `golden/make_variants.py` (the other branches of the formats).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use unguide::ir::{Builder, Cost, Graph, Layout, Op, Row, ValueId, verify};
use unguide::models::{self, ClipConfig, ClipTextConfig, TinyVaeConfig, UnetConfig, VaeConfig, presets};
use unguide::tensor::DType;
use unguide::{Error, Result};

const SD15: &str = include_str!("golden/keys/sd15.json");
const SD21: &str = include_str!("golden/keys/sd21.json");
const CLIP: &str = include_str!("golden/keys/clip.json");
const VARIANTS: &str = include_str!("golden/keys/variants.json");

/// A network of a golden file.
struct Case {
    /// The first word of the network's name in the file.
    component: String,
    config: Value,
    /// Weights that we read, by their names in a graph, with the shapes that files have.
    weights: BTreeMap<String, Vec<usize>>,
}

fn case(file: &str, name: &str) -> Case {
    let mut file: Map<String, Value> = serde_json::from_str(file).expect("a golden file is JSON");
    let mut case = file.remove(name).expect("a network of the file");
    let kind = name.split([' ', '-']).next().expect("a name has a first word");
    let component = if kind == "vit" { "clip" } else { kind }.to_owned();
    let unread = ["encoder.", "quant_conv.", "logit_scale"];
    let mut weights = BTreeMap::new();
    for (pattern, shape) in case["parameters"].as_object().expect("names and shapes") {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        for name in expanded(pattern).into_iter().filter(|name| !unread.iter().any(|u| name.starts_with(u))) {
            weights.insert(format!("{component}.{name}"), shape.clone());
        }
    }
    Case { component, config: case["config"].take(), weights }
}

/// Every combination of the items in braces.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let (items, tail) = rest.split_once('}').expect("braces are closed");
    let tails = expanded(tail);
    let join = |item: &str| tails.iter().map(|tail| format!("{head}{item}{tail}")).collect::<Vec<_>>();
    items.split(',').flat_map(join).collect()
}

fn all_cases() -> Vec<(&'static str, &'static str)> {
    let of = |file, names: &[&'static str]| names.iter().map(move |&name| (file, name)).collect::<Vec<_>>();
    let components = ["unet", "vae", "text_encoder"];
    let variants = ["unet", "unet of one level", "vae", "taesd", "taesd of two levels"];
    [
        of(SD15, &components),
        of(SD21, &components),
        of(CLIP, &["vit-b-32", "vit-b-16", "vit-l-14", "vit-h-14"]),
        of(VARIANTS, &variants),
    ]
    .concat()
}

/// A component's graph, from its configuration.
fn component(name: &str, config: &Value) -> Result<Graph> {
    let (config, path) = (&config.to_string(), Path::new("config.json"));
    Ok(match name {
        "unet" => unet_graph(&UnetConfig::parse(config, path)?, [16, 16])?,
        "vae" => vae_graph(&VaeConfig::parse(config, path)?, [8, 8])?,
        "taesd" => tiny_vae_graph(&TinyVaeConfig::parse(config, path)?, [8, 8])?,
        "text_encoder" => text_graph(&ClipTextConfig::parse(config, path)?)?,
        "clip" => clip_graph(&ClipConfig::parse(config, path)?)?,
        other => panic!("no component {other}"),
    })
}

fn unet_graph(config: &UnetConfig, [height, width]: [usize; 2]) -> Result<Graph> {
    graph(|b| {
        let z = source(b, &[1, height, width, 4], DType::F32)?;
        let context = source(b, &[1, 77, config.context], DType::F32)?;
        models::unet(b, config, z, context)
    })
}

fn vae_graph(config: &VaeConfig, [height, width]: [usize; 2]) -> Result<Graph> {
    graph(|b| {
        let x0 = source(b, &[1, height, width, 4], DType::F32)?;
        models::vae_decoder(b, config, x0)
    })
}

fn tiny_vae_graph(config: &TinyVaeConfig, [height, width]: [usize; 2]) -> Result<Graph> {
    graph(|b| {
        let x0 = source(b, &[1, height, width, 4], DType::F32)?;
        models::tiny_vae_decoder(b, config, x0)
    })
}

fn text_graph(config: &ClipTextConfig) -> Result<Graph> {
    graph(|b| {
        let ids = source(b, &[1, config.positions], DType::I32)?;
        models::text_states(b, config, "text_encoder", ids)
    })
}

fn vision_graph(config: &models::ClipVisionConfig) -> Result<Graph> {
    graph(|b| {
        let pixels = source(b, &[1, config.image, config.image, 3], DType::F32)?;
        models::image_features(b, config, "clip", pixels)
    })
}

/// Both towers, two texts and one image.
fn clip_graph(config: &ClipConfig) -> Result<Graph> {
    graph(|b| {
        let ids = source(b, &[2, config.text.positions], DType::I32)?;
        let ends = source(b, &[2], DType::I32)?;
        let text = models::text_features(b, &config.text, "clip", ids, ends)?;
        assert_eq!(b.shape(text)[..], [2, config.text.projection]);
        let pixels = source(b, &[1, config.vision.image, config.vision.image, 3], DType::F32)?;
        models::image_features(b, &config.vision, "clip", pixels)
    })
}

/// A verified graph whose result is stored.
fn graph(build: impl FnOnce(&mut Builder) -> Result<ValueId>) -> Result<Graph> {
    let mut b = Builder::new();
    let result = build(&mut b)?;
    let shape = b.shape(result).clone();
    let buffer = b.buffer("result", shape, DType::F32);
    b.store(result, buffer, Row::All)?;
    let graph = b.finish();
    verify(&graph)?;
    Ok(graph)
}

fn source(b: &mut Builder, shape: &[usize], dtype: DType) -> Result<ValueId> {
    let buffer = b.buffer("source", shape, dtype);
    b.load(buffer, Row::All)
}

fn result_shape(graph: &Graph) -> &[usize] {
    &graph.buffers.last().expect("the stored result").shape
}

/// Weights by name, with the shapes that files have.
fn stored_weights(graph: &Graph) -> BTreeMap<String, Vec<usize>> {
    let weights = |node: &unguide::ir::Node| -> Vec<(String, Vec<usize>)> {
        let Op::Param { name, parts, layout } = &node.op else { return vec![] };
        let seen = graph.shape(node.outputs[0]);
        let rows = seen[0] / parts.len();
        assert_eq!(rows * parts.len(), seen[0], "{name} has equally many rows of each part");
        let stored = match (layout, &seen[1..]) {
            (Layout::Plain, rest) => [&[rows], rest].concat(),
            (Layout::Filter, &[r, s, c]) => vec![rows, c, r, s],
            (Layout::Filter, _) => panic!("{name} is no filter: {seen:?}"),
        };
        parts.iter().map(|part| (part.clone(), stored.clone())).collect()
    };
    graph.nodes.iter().flat_map(weights).collect()
}

fn config(file: &str, name: &str) -> String {
    case(file, name).config.to_string()
}

#[test]
fn weights_are_exactly_those_of_the_libraries() {
    for (file, name) in all_cases() {
        let case = case(file, name);
        let graph = component(&case.component, &case.config).expect("a supported configuration");
        let found = stored_weights(&graph);
        assert!(!case.weights.is_empty());
        for (weight, shape) in &case.weights {
            assert_eq!(found.get(weight), Some(shape), "{name}: {weight}");
        }
        let extra: Vec<_> = found.keys().filter(|weight| !case.weights.contains_key(*weight)).collect();
        assert!(extra.is_empty(), "{name}: {extra:?}");
    }
}

#[test]
fn presets_are_the_published_configurations() {
    let path = Path::new("config.json");
    let (sd15, sd21) = (presets::sd15(), presets::sd21());
    for (preset, file) in [(&sd15, SD15), (&sd21, SD21)] {
        assert_eq!(preset.unet, UnetConfig::parse(&config(file, "unet"), path).unwrap());
        assert_eq!(preset.vae, VaeConfig::parse(&config(file, "vae"), path).unwrap());
        assert_eq!(preset.text, ClipTextConfig::parse(&config(file, "text_encoder"), path).unwrap());
    }
    let base = UnetConfig { sample: Some([64, 64]), ..sd21.unet };
    assert_eq!(presets::sd21_base(), presets::StableDiffusion { unet: base, ..presets::sd21() });
    let clip = |name: &str| ClipConfig::parse(&config(CLIP, name), path).unwrap();
    assert_eq!(presets::clip_vit_b_32(), clip("vit-b-32"));
    assert_eq!(presets::clip_vit_b_16(), clip("vit-b-16"));
    assert_eq!(presets::clip_vit_l_14(), clip("vit-l-14"));
    assert_eq!(presets::clip_vit_h_14(), clip("vit-h-14"));
    assert_eq!(TinyVaeConfig::default(), TinyVaeConfig::parse(&config(VARIANTS, "taesd"), path).unwrap());
}

#[test]
fn operations_and_weights_are_counted_as_published() {
    let (sd15, sd21) = (presets::sd15(), presets::sd21());
    let vit = presets::clip_vit_l_14();
    // Network, 10^9 operations of one forward pass, weights.
    let cases = [
        (unet_graph(&sd15.unet, [64, 64]), 803.27, 859_520_964),
        (unet_graph(&presets::sd21_base().unet, [64, 64]), 804.26, 865_910_724),
        (unet_graph(&sd21.unet, [96, 96]), 2149.11, 865_910_724),
        (vae_graph(&sd15.vae, [64, 64]), 2514.52, 49_490_199),
        (vae_graph(&sd15.vae, [96, 96]), 5754.30, 49_490_199),
        (tiny_vae_graph(&TinyVaeConfig::default(), [64, 64]), 141.35, 1_222_531),
        (text_graph(&sd15.text), 13.30, 123_060_480),
        (text_graph(&sd21.text), 45.13, 340_387_840),
        (vision_graph(&vit.vision), 162.03, 303_966_208),
    ];
    for (graph, giga, weights) in cases {
        let graph = graph.unwrap();
        let flops: u64 = graph.order().iter().map(|&id| Cost::of(&graph, graph.node(id), 4).flops).sum();
        let found = flops as f64 / 1e9;
        assert!((found / giga - 1.0).abs() <= 0.01, "expected {giga}, found {found}");
        let found: usize = stored_weights(&graph).values().map(|shape| shape.iter().product::<usize>()).sum();
        assert_eq!(found, weights);
    }
}

#[test]
fn latents_of_any_size_fit() {
    let uneven = UnetConfig::parse(&config(VARIANTS, "unet"), Path::new("config.json")).unwrap();
    let (sd15, tiny) = (presets::sd15(), TinyVaeConfig::default());
    for size in [[9, 13], [5, 7], [1, 1], [64, 48], [2, 31]] {
        let [height, width] = size;
        for config in [&sd15.unet, &uneven] {
            assert_eq!(result_shape(&unet_graph(config, size).unwrap()), [1, height, width, 4]);
        }
        let pixels = [1, 8 * height, 8 * width, 3];
        assert_eq!((sd15.vae.factor(), tiny.factor()), (8, 8));
        assert_eq!(result_shape(&vae_graph(&sd15.vae, size).unwrap()), pixels);
        assert_eq!(result_shape(&tiny_vae_graph(&tiny, size).unwrap()), pixels);
    }
}

#[test]
fn inputs_of_the_wrong_shape_are_refused() {
    let config = presets::sd15();
    let unet = |z: &[usize], context: &[usize]| {
        graph(|b| {
            let z = source(b, z, DType::F32)?;
            let context = source(b, context, DType::F32)?;
            models::unet(b, &config.unet, z, context)
        })
    };
    assert!(unet(&[2, 8, 8, 4], &[2, 77, 768]).is_ok());
    assert!(matches!(unet(&[2, 8, 8, 9], &[2, 77, 768]), Err(Error::Shape { .. })));
    assert!(matches!(unet(&[8, 8, 4], &[2, 77, 768]), Err(Error::Shape { .. })));
    // The prompt encoder of another model; prompts of another batch.
    assert!(matches!(unet(&[2, 8, 8, 4], &[2, 77, 1024]), Err(Error::Shape { .. })));
    assert!(matches!(unet(&[2, 8, 8, 4], &[1, 77, 768]), Err(Error::Shape { .. })));

    let text = ClipTextConfig { positions: 76, ..config.text.clone() };
    let long = graph(|b| {
        let ids = source(b, &[1, 77], DType::I32)?;
        models::text_states(b, &text, "text_encoder", ids)
    });
    assert!(matches!(long, Err(Error::Shape { .. })));

    let vision = presets::clip_vit_b_32().vision;
    let large = graph(|b| {
        let pixels = source(b, &[1, 256, 256, 3], DType::F32)?;
        models::image_features(b, &vision, "clip", pixels)
    });
    assert!(matches!(large, Err(Error::Shape { .. })));
}

/// Sets `field` (dots go inside) of a published configuration and expects an error that names it.
fn refused(network: &str, field: &str, value: Value) -> String {
    let file = match network {
        "vit-l-14" => CLIP,
        "taesd" => VARIANTS,
        _ => SD15,
    };
    let Case { component: name, mut config, .. } = case(file, network);
    let pointer = format!("/{}", field.replace('.', "/"));
    match config.pointer_mut(&pointer) {
        Some(place) => *place = value.clone(),
        None => config[field] = value.clone(),
    }
    match component(&name, &config) {
        Err(error @ Error::Config { .. }) => {
            assert_eq!(error.exit_code(), 3);
            let text = error.to_string();
            assert!(text.starts_with(&format!("config.json: `{field}`: expected ")), "{text}");
            text
        }
        other => panic!("`{field}` = {value} should be refused, not {other:?}"),
    }
}

#[test]
fn counts_out_of_range_are_refused() {
    for (case, field) in [("unet", "block_out_channels"), ("vae", "block_out_channels")] {
        for value in [json!([]), json!(0), json!(null), json!("320"), json!(vec![32; 100])] {
            refused(case, field, value);
        }
        for entry in [json!(0), json!(-1), json!(1e9), json!(1_000_000_000), json!(32.5), json!(null)] {
            refused(case, field, json!([32, 64, 64, entry]));
        }
    }
    let bad = [json!(0), json!(-1), json!(1e9), json!(1_000_000_000), json!("8"), json!(i64::MIN)];
    let fields = [
        ("unet", "layers_per_block"),
        ("unet", "attention_head_dim"),
        ("unet", "transformer_layers_per_block"),
        ("unet", "cross_attention_dim"),
        ("unet", "norm_num_groups"),
        ("unet", "time_embedding_dim"),
        ("unet", "sample_size"),
        ("vae", "layers_per_block"),
        ("vae", "norm_num_groups"),
        ("text_encoder", "hidden_size"),
        ("text_encoder", "intermediate_size"),
        ("text_encoder", "num_hidden_layers"),
        ("text_encoder", "num_attention_heads"),
        ("text_encoder", "vocab_size"),
        ("text_encoder", "max_position_embeddings"),
        ("vit-l-14", "projection_dim"),
        ("vit-l-14", "vision_config.image_size"),
        ("vit-l-14", "vision_config.patch_size"),
        ("vit-l-14", "vision_config.hidden_size"),
    ];
    for (case, field) in fields {
        for value in &bad {
            refused(case, field, value.clone());
        }
    }
    refused("unet", "attention_head_dim", json!([5, 10, 20]));
    refused("unet", "layers_per_block", json!([2, 2, 2, 2, 2]));
    refused("unet", "transformer_layers_per_block", json!([1, 1, [1, 1], 1]));
    refused("unet", "norm_num_groups", json!(null));
    refused("unet", "norm_eps", json!(-1e-5));
    refused("unet", "freq_shift", json!(160));
    refused("vae", "scaling_factor", json!(0));
    refused("vae", "scaling_factor", json!("0.18"));
    refused("taesd", "decoder_block_out_channels", json!([64, 64, 64]));
    refused("taesd", "decoder_block_out_channels", json!([64, 64, 64, 32]));
    refused("taesd", "num_decoder_blocks", json!([]));
    refused("text_encoder", "eos_token_id", json!([49_407]));
}

#[test]
fn counts_that_do_not_divide_are_refused() {
    refused("unet", "attention_head_dim", json!(7));
    refused("unet", "norm_num_groups", json!(33));
    refused("unet", "block_out_channels", json!([33, 66, 99, 99]));
    refused("vae", "norm_num_groups", json!(48));
    refused("text_encoder", "num_attention_heads", json!(7));
    refused("vit-l-14", "vision_config.num_attention_heads", json!(7));
    refused("vit-l-14", "vision_config.patch_size", json!(225));
}

#[test]
fn blocks_that_we_do_not_build_are_refused() {
    refused("unet", "down_block_types", json!(["DownBlock2D"]));
    refused("unet", "up_block_types", json!([]));
    refused(
        "unet",
        "down_block_types",
        json!(["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]),
    );
    refused("unet", "down_block_types", json!("DownBlock2D"));
    refused("unet", "only_cross_attention", json!([true, true, true, false]));
    refused("unet", "cross_attention_dim", json!([768, 768, 1024, 768]));
    refused("vae", "up_block_types", json!(["UpDecoderBlock2D"]));
    refused("vae", "latent_channels", json!(16));
    refused("vae", "shift_factor", json!(0.1159));
    refused("vae", "latents_mean", json!([0.0, 0.0, 0.0, 0.0]));
    refused("vae", "_class_name", json!("AsymmetricAutoencoderKL"));
    refused("taesd", "upsampling_scaling_factor", json!(4));
    refused("taesd", "act_fn", json!("silu"));
    refused("text_encoder", "hidden_act", json!("gelu_new"));
    refused("text_encoder", "model_type", json!("t5"));
    refused("vit-l-14", "text_config", json!(null));
    refused("vit-l-14", "vision_config", json!([]));
    refused("vit-l-14", "vision_config.num_channels", json!(1));
}

#[test]
fn every_switch_of_the_unet_that_we_do_not_build_is_refused_by_name() {
    let switches = [
        ("_class_name", json!("UNet3DConditionModel")),
        ("act_fn", json!("mish")),
        ("addition_embed_type", json!("text_image")),
        ("attention_type", json!("gated")),
        ("center_input_sample", json!(true)),
        ("class_embed_type", json!("timestep")),
        ("class_embeddings_concat", json!(true)),
        ("conv_in_kernel", json!(5)),
        ("conv_out_kernel", json!(1)),
        ("cross_attention_norm", json!("layer_norm")),
        ("downsample_padding", json!(0)),
        ("dual_cross_attention", json!(true)),
        ("encoder_hid_dim", json!(768)),
        ("encoder_hid_dim_type", json!("text_proj")),
        ("in_channels", json!(9)),
        ("mid_block_only_cross_attention", json!(true)),
        ("mid_block_scale_factor", json!(1.5)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("mid_block_type", json!(null)),
        ("num_attention_heads", json!(8)),
        ("num_class_embeds", json!(1000)),
        ("only_cross_attention", json!(true)),
        ("out_channels", json!(8)),
        ("resnet_out_scale_factor", json!(2)),
        ("resnet_skip_time_act", json!(true)),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("reverse_transformer_layers_per_block", json!([[1]])),
        ("time_cond_proj_dim", json!(256)),
        ("time_embedding_act_fn", json!("silu")),
        ("time_embedding_type", json!("fourier")),
        ("timestep_post_act", json!("silu")),
    ];
    for (field, value) in switches {
        refused("unet", field, value);
    }
    assert!(refused("unet", "addition_embed_type", json!("text_time")).contains("Stable Diffusion XL"));
    assert!(refused("unet", "in_channels", json!(9)).contains("inpainting"));
}

#[test]
fn absent_fields_have_the_defaults_of_the_libraries() {
    let path = Path::new("config.json");
    let unet = UnetConfig::parse("{}", path).unwrap();
    let sd15 = presets::sd15().unet;
    assert_eq!(unet, UnetConfig { context: 1280, sample: None, ..sd15 });
    let vae = VaeConfig::parse("{}", path).unwrap();
    let sd = presets::sd15().vae;
    assert_eq!(vae, VaeConfig { channels: vec![64], layers: 1, ..sd });
    let clip = ClipConfig::parse(r#"{"text_config": {}, "vision_config": {}}"#, path).unwrap();
    let b32 = presets::clip_vit_b_32();
    let text = ClipTextConfig { end: 49_407, ..b32.text };
    assert_eq!(clip, ClipConfig { text: text.clone(), vision: b32.vision.clone() });
    assert_eq!(ClipTextConfig::parse("{}", path).unwrap(), text);
    assert_eq!(models::ClipVisionConfig::parse("{}", path).unwrap(), b32.vision);
}

#[test]
fn harmless_variations_of_a_configuration_are_accepted() {
    let path = Path::new("config.json");
    let parse = |config: Value| UnetConfig::parse(&config.to_string(), path).unwrap();
    let base = presets::sd15().unet;
    let change = |field: &str, value: Value| {
        let mut config = case(SD15, "unet").config;
        config[field] = value;
        parse(config)
    };
    assert_eq!(change("only_cross_attention", json!([false, false, false, false])), base);
    assert_eq!(change("attention_head_dim", json!([8, 8, 8, 8])), base);
    assert_eq!(change("cross_attention_dim", json!([768, 768, 768, 768])), base);
    assert_eq!(change("resnet_out_scale_factor", json!(1)), base);
    assert_eq!(change("upcast_attention", json!(true)), base);
    assert_eq!(change("a_field_of_tomorrow", json!({"x": 1})), base);
    assert_eq!(change("sample_size", json!([64, 96])).sample, Some([64, 96]));
    assert_eq!(change("freq_shift", json!(1)).freq_shift, 1.0);

    let deep = json!({"block_out_channels": vec![32; 8], "up_block_types": vec!["UpDecoderBlock2D"; 8]});
    assert_eq!(VaeConfig::parse(&deep.to_string(), path).unwrap().factor(), 128);

    // The width of embeddings is the model's; a tower written a second time counts.
    let mut config = case(CLIP, "vit-l-14").config;
    config["text_config"]["projection_dim"] = json!(512);
    config["vision_config_dict"] = config["vision_config"].take();
    config["vision_config"] = json!({"hidden_size": 7});
    assert_eq!(ClipConfig::parse(&config.to_string(), path).unwrap(), presets::clip_vit_l_14());
}
