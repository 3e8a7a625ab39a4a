//! A model as it lies on disk (or in the binary), opened, checked and ready to build graphs from.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::programs::{self, Decoder, Steering, StepSpec};
use crate::backend::{Backend, InPlace, Program, Stop, WeightSource};
use crate::error::{Error, Result};
use crate::ir::{Graph, Op};
use crate::models::{
    ClipConfig, ClipTextConfig, ClipVisionConfig, IMAGE_MEAN, IMAGE_STD, TinyVaeConfig, UnetConfig,
    VaeConfig, pool_position, presets,
};
use crate::passes;
use crate::plan::{Param, StepProgram};
use crate::safety::ClipIdentity;
use crate::sampler::{Prediction, SchedulerConfig};
use crate::tensor::Shape;
use crate::text::Tokenizer;
use crate::weights::{CONFIG_CAP, Component, EmbeddedFiles, Layout, ModelFiles, Weights, read_json};

/// Where a model comes from, and what of it is replaced.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// A directory or file; the embedded demo model, if absent.
    pub model: Option<PathBuf>,
    pub demo: EmbeddedFiles,
    pub clip: Option<PathBuf>,
    pub vae: Option<PathBuf>,
    pub taesd: Option<PathBuf>,
    /// A directory with a tokenizer, for models that bring none.
    pub tokenizer: Option<PathBuf>,
    /// What a single file of Stable Diffusion 2 predicts: nothing in it says so.
    pub prediction: Option<Prediction>,
    /// Use weights where they lie in the files, through memory maps, as far as nothing has to be converted.
    pub mmap: bool,
    /// Whether a guard will look: without one the CLIP that the model brings is left alone.
    pub guard: bool,
}

/// An opened model. Weights are read when a program is loaded.
pub struct Model {
    /// What to call it in metadata: its path, or `demo`.
    pub name: String,
    pub text: ClipTextConfig,
    pub unet: UnetConfig,
    /// What the finished latents are decoded by.
    pub decoder: Decoder,
    pub scheduler: SchedulerConfig,
    pub tokenizer: Tokenizer,
    /// What the guard looks through, if not `decoder`.
    tiny: Option<Decoder>,
    clip: Option<Clip>,
    weights: Weights,
    loading: Mutex<Loading>,
}

/// Time that loading programs took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    /// Weights out of their files.
    pub read: Duration,
    /// Everything else: packing and sending them, and the memory for them.
    pub upload: Duration,
}

/// The guard's CLIP.
pub struct Clip {
    pub text: ClipTextConfig,
    pub vision: ClipVisionConfig,
    pub tokenizer: Option<Tokenizer>,
    /// Normalisation of its images, as its files say.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Model {
    /// Opens a model and checks that every weight its architecture asks for is there, before reading any.
    pub fn open(source: &ModelSource) -> Result<Self> {
        let open = |path: &Path| {
            ModelFiles::open(path).map(|files| if source.mmap { files.mapped() } else { files })
        };
        let files = match &source.model {
            Some(path) => open(path)?,
            None => ModelFiles::embedded("demo", source.demo),
        };
        let elsewhere = [
            (Component::Vae, source.vae.is_some()),
            (Component::Clip, source.clip.is_some() || !source.guard),
        ];
        let elsewhere: Vec<_> = elsewhere.into_iter().filter_map(|(part, is)| is.then_some(part)).collect();
        let mut weights = Weights::open(&files, &elsewhere)?;
        let mut vae = None;
        if let Some(path) = &source.vae {
            let files = open(path)?;
            let folder = weights.replace(Component::Vae, &files)?;
            let config = config_in(&files, folder)?;
            vae = config.map(|(json, path)| VaeConfig::parse(&json, &path)).transpose()?;
        }
        let parts = Parts::read(&files, &weights, source, vae)?;
        let mut tiny = None;
        if let Some(path) = &source.taesd {
            let files = open(path)?;
            let folder = weights.replace(Component::Taesd, &files)?;
            let config = config_in(&files, folder)?;
            let config = config.map(|(json, path)| TinyVaeConfig::parse(&json, &path)).transpose()?;
            tiny = Some(Decoder::Tiny(config.unwrap_or_default()));
        }
        let clip = match &source.clip {
            Some(path) => {
                let files = open(path)?;
                let folder = weights.replace(Component::Clip, &files)?;
                Some(Clip::read(&files, folder, &weights)?)
            }
            None if weights.contains(CLIP_PATCHES) => {
                Some(Clip::read(&files, Component::Clip.folder(), &weights)?)
            }
            None => None,
        };
        let model = Self {
            name: source.model.as_ref().map_or("demo".into(), |path| path.display().to_string()),
            tokenizer: tokenizer(&files, source, &parts.text)?,
            text: parts.text,
            unet: parts.unet,
            decoder: Decoder::Vae(parts.vae),
            scheduler: parts.scheduler,
            tiny,
            clip,
            weights,
            loading: Mutex::default(),
        };
        if let Some(clip) = &model.clip {
            let tokenizer = clip.tokenizer.as_ref().unwrap_or(&model.tokenizer);
            fit_vocabulary(tokenizer, &clip.text, source.clip.as_deref().unwrap_or(&files.path("clip")))?;
        }
        model.verify_weights()?;
        Ok(model)
    }

    /// Pixels a latent pixel becomes, along each side.
    pub fn factor(&self) -> usize {
        self.decoder.factor()
    }

    /// Width and height of the images that the model was trained on, in pixels.
    pub fn default_size(&self) -> (usize, usize) {
        let [height, width] = self.unet.sample.unwrap_or([64, 64]);
        (width * self.factor(), height * self.factor())
    }

    /// What the guard looks through.
    pub fn guard_decoder(&self) -> &Decoder {
        self.tiny.as_ref().unwrap_or(&self.decoder)
    }

    /// The guard's CLIP, or why there is none.
    pub fn clip(&self) -> Result<&Clip> {
        let problem = "the guard needs a CLIP model with both towers and this model brings none: give a \
                       transformers CLIPModel directory with --clip, or --safety none to go without a guard";
        self.clip.as_ref().ok_or_else(|| Error::usage("--clip", problem))
    }

    /// Hands a program of this model to a backend, with the weights that it reads: none after somebody asked to stop.
    pub fn load(&self, backend: &dyn Backend, program: StepProgram, stop: &Stop) -> Result<Box<dyn Program>> {
        let (start, before) = (Instant::now(), self.weights.reading());
        let loaded = backend.load(program, &Stoppable { weights: &self.weights, stop });
        let read = self.weights.reading() - before;
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.read += read;
        loading.upload += start.elapsed().saturating_sub(read);
        loaded
    }

    /// Time that all of [`Model::load`] took so far.
    pub fn loading(&self) -> Loading {
        *self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a backend uses a weight where it lies, in the pages of a mapped file.
    pub fn maps(&self, backend: &dyn Backend, param: &Param) -> bool {
        let mapped = |(name, shape): (&str, Shape)| self.weights.maps(name, &shape);
        backend.reads_in_place(param) && param.alone().is_some_and(mapped)
    }

    /// The opened files.
    pub fn files(&self) -> &Weights {
        &self.weights
    }

    /// Ids of a prompt, as many as the text encoder takes; says what was cut off.
    pub fn tokenize(&self, text: &str) -> Result<Vec<i32>> {
        tokenize(&self.tokenizer, text, self.text.positions)
    }

    /// Ids of a concept as the guard's CLIP wants them, and the position of the token that stands for it.
    pub fn tokenize_concept(&self, concept: &str) -> Result<(Vec<i32>, usize)> {
        let clip = self.clip()?;
        let tokenizer = clip.tokenizer.as_ref().unwrap_or(&self.tokenizer);
        let ids = tokenize(tokenizer, concept, clip.text.positions)?;
        let end = pool_position(&clip.text, &ids);
        Ok((ids, end))
    }

    /// Holds the graphs against the files: names the first missing, misshapen and superfluous tensors.
    fn verify_weights(&self) -> Result<()> {
        let side = 1 << self.unet.levels.len();
        let spec = StepSpec {
            batch: 1,
            height: side,
            width: side,
            tokens: self.text.positions,
            context_width: self.text.encoder.width,
            rows: 1,
            steps: 1,
            steering: Steering::None,
        };
        let mut graphs = vec![
            programs::encode_text(&self.text, self.text.positions)?,
            programs::step(&self.unet, &spec)?,
            programs::decode(&self.decoder, side, side)?,
        ];
        if let Some(tiny) = &self.tiny {
            graphs.push(programs::decode(tiny, side, side)?);
        }
        if let Some(clip) = &self.clip {
            graphs.push(programs::embed_text(&clip.text)?);
            graphs.push(programs::embed_image(&clip.vision)?);
        }
        let mut wanted = Vec::new();
        for graph in graphs {
            wanted.extend(stored_params(passes::run_all(graph)?));
        }
        self.weights.verify(&wanted)
    }
}

/// A model's weights, as long as nobody asked to stop: gigabytes take a while to read.
struct Stoppable<'a> {
    weights: &'a Weights,
    stop: &'a Stop,
}

impl WeightSource for Stoppable<'_> {
    fn identity(&self) -> u64 {
        self.weights.identity()
    }

    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        self.stop.check()?;
        self.weights.load(name, shape)
    }

    fn map(&self, name: &str, shape: &Shape) -> Result<Option<InPlace>> {
        self.stop.check()?;
        self.weights.map(name, shape)
    }

    fn maps(&self, name: &str, shape: &Shape) -> bool {
        self.weights.maps(name, shape)
    }
}

impl Clip {
    /// From a folder of `files`; `""` is their root.
    fn read(files: &ModelFiles, folder: &str, weights: &Weights) -> Result<Self> {
        let config = match config_in(files, folder)? {
            Some((json, path)) => ClipConfig::parse(&json, &path)?,
            None => clip_by_shape(weights, &files.path(folder))?,
        };
        let preprocessor = inside(folder, "preprocessor_config.json");
        let (mean, std) = if exists(files, &preprocessor) {
            let pixels: Preprocessor = read_json(files, &preprocessor)?;
            (pixels.image_mean, pixels.image_std)
        } else {
            (IMAGE_MEAN, IMAGE_STD)
        };
        if !mean.iter().chain(&std).all(|v| v.is_finite()) || std.iter().any(|&v| v <= 0.0) {
            let path = files.path(&preprocessor);
            return Err(Error::input(path, "image_mean and image_std are to be finite, std above zero"));
        }
        let tokenizer =
            has_tokenizer(files, folder).then(|| Tokenizer::from_files(files, folder)).transpose()?;
        Ok(Self { text: config.text, vision: config.vision, tokenizer, mean, std })
    }

    /// What a safety profile must have been tuned with.
    pub fn identity(&self) -> ClipIdentity {
        ClipIdentity {
            patch: self.vision.patch,
            vision_width: self.vision.encoder.width,
            vision_layers: Some(self.vision.encoder.layers),
            text_width: self.text.encoder.width,
            projection: self.vision.projection,
            image_size: self.vision.image,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Preprocessor {
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self { image_mean: IMAGE_MEAN, image_std: IMAGE_STD }
    }
}

/// The configurations of a model's own components.
struct Parts {
    text: ClipTextConfig,
    unet: UnetConfig,
    vae: VaeConfig,
    scheduler: SchedulerConfig,
}

impl Parts {
    /// `vae` is the configuration of one that takes the place of the model's own.
    fn read(
        files: &ModelFiles,
        weights: &Weights,
        source: &ModelSource,
        vae: Option<VaeConfig>,
    ) -> Result<Self> {
        let preset = match weights.layout() {
            Layout::Diffusers => return Self::read_diffusers(files, source, vae),
            Layout::Sd1File => (presets::sd15(), Prediction::Epsilon),
            Layout::Sd2File => {
                let problem = "a single file of Stable Diffusion 2 does not say what it predicts: give \
                               --prediction-type v_prediction (the 768-pixel models) or epsilon (the base models)";
                let prediction =
                    source.prediction.ok_or_else(|| Error::usage("--prediction-type", problem))?;
                let by_prediction = match prediction {
                    Prediction::VPrediction => presets::sd21(),
                    _ => presets::sd21_base(),
                };
                (by_prediction, prediction)
            }
        };
        let (preset, prediction) = preset;
        let scheduler = SchedulerConfig::stable_diffusion(source.prediction.unwrap_or(prediction));
        Ok(Self { text: preset.text, unet: preset.unet, vae: vae.unwrap_or(preset.vae), scheduler })
    }

    fn read_diffusers(files: &ModelFiles, source: &ModelSource, vae: Option<VaeConfig>) -> Result<Self> {
        let config = |folder: &str| -> Result<(String, PathBuf)> {
            let relative = format!("{folder}/config.json");
            Ok((files.read_text(&relative, CONFIG_CAP)?, files.path(&relative)))
        };
        let (text, text_path) = config("text_encoder")?;
        let (unet, unet_path) = config("unet")?;
        let vae = match vae {
            Some(vae) => vae,
            None => config("vae").and_then(|(vae, path)| VaeConfig::parse(&vae, &path))?,
        };
        let relative = "scheduler/scheduler_config.json";
        let mut scheduler: SchedulerConfig = read_json(files, relative)?;
        scheduler.validate(&files.path(relative))?;
        if let Some(prediction) = source.prediction {
            scheduler.prediction_type = prediction;
        }
        let parts = Self {
            text: ClipTextConfig::parse(&text, &text_path)?,
            unet: UnetConfig::parse(&unet, &unet_path)?,
            vae,
            scheduler,
        };
        if parts.unet.context != parts.text.encoder.width {
            return Err(Error::Config {
                path: unet_path,
                field: "cross_attention_dim".into(),
                expected: format!("{}, the text encoder's hidden_size", parts.text.encoder.width),
                found: parts.unet.context.to_string(),
            });
        }
        Ok(parts)
    }
}

const CLIP_PATCHES: &str = "clip.vision_model.embeddings.patch_embedding.weight";

/// A known CLIP with the towers' widths and patches, for weights without a configuration.
fn clip_by_shape(weights: &Weights, path: &Path) -> Result<ClipConfig> {
    let known = [
        presets::clip_vit_b_32(),
        presets::clip_vit_b_16(),
        presets::clip_vit_l_14(),
        presets::clip_vit_h_14(),
    ];
    let found = weights.shape_of(CLIP_PATCHES).unwrap_or_default();
    let fits = |clip: &ClipConfig| {
        found == [clip.vision.encoder.width, 3, clip.vision.patch, clip.vision.patch].as_slice()
    };
    known.into_iter().find(fits).ok_or_else(|| {
        let problem = format!(
            "there is no config.json, and patches of shape {found:?} are not those of ViT-B/32, B/16, L/14 or H/14"
        );
        Error::input(path, problem)
    })
}

/// The configuration file of a folder with its path, if there is one.
fn config_in(files: &ModelFiles, folder: &str) -> Result<Option<(String, PathBuf)>> {
    let name = inside(folder, "config.json");
    if !exists(files, &name) {
        return Ok(None);
    }
    Ok(Some((files.read_text(&name, CONFIG_CAP)?, files.path(&name))))
}

/// A name in a folder; `""` is the root.
fn inside(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn exists(files: &ModelFiles, name: &str) -> bool {
    !files.is_single_file() && files.exists(name)
}

fn has_tokenizer(files: &ModelFiles, folder: &str) -> bool {
    ["tokenizer.json", "vocab.json"].iter().any(|name| exists(files, &inside(folder, name)))
}

/// The model's tokenizer, or the one that the user points to.
fn tokenizer(files: &ModelFiles, source: &ModelSource, text: &ClipTextConfig) -> Result<Tokenizer> {
    let (tokenizer, path) = match &source.tokenizer {
        Some(path) => {
            let given = ModelFiles::open(path)?;
            let folder = if has_tokenizer(&given, "tokenizer") { "tokenizer" } else { "" };
            (Tokenizer::from_files(&given, folder)?, path.clone())
        }
        None if has_tokenizer(files, "tokenizer") => {
            (Tokenizer::from_files(files, "tokenizer")?, files.path("tokenizer"))
        }
        None => {
            let problem = "this model brings no tokenizer: give a directory with tokenizer.json, or vocab.json \
                           and merges.txt (such as the tokenizer/ of a diffusers model)";
            return Err(Error::usage("--tokenizer", problem));
        }
    };
    fit_vocabulary(&tokenizer, text, &path)?;
    Ok(tokenizer)
}

/// Every id that the tokenizer may give needs an embedding.
fn fit_vocabulary(tokenizer: &Tokenizer, text: &ClipTextConfig, path: &Path) -> Result<()> {
    let (ids, embeddings) = (tokenizer.vocabulary(), text.vocabulary);
    if ids <= embeddings {
        return Ok(());
    }
    let problem = format!("the tokenizer's {ids} ids do not fit the text tower's {embeddings} embeddings");
    Err(Error::input(path, problem))
}

/// Ids of a text, `limit` of them.
fn tokenize(tokenizer: &Tokenizer, text: &str, limit: usize) -> Result<Vec<i32>> {
    let encoded = tokenizer.encode(text, limit)?;
    if let Some(dropped) = &encoded.dropped {
        tracing::warn!("the text is longer than {limit} tokens; left out: {dropped:?}");
    }
    Ok(encoded.ids)
}

/// Names and checkpoint shapes of the weights that a graph reads.
fn stored_params(graph: Graph) -> Vec<(String, Vec<usize>)> {
    let params = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Param { name, parts, layout } => {
            let shape = graph.shape(node.outputs[0]).clone();
            Some(Param { name: name.clone(), parts: parts.clone(), shape, layout: *layout })
        }
        _ => None,
    });
    let stored = |param: Param| -> Vec<_> {
        param.apart().map(|part| (part.name.clone(), part.stored_shape().to_vec())).collect()
    };
    params.flat_map(stored).collect()
}
