//! A safety profile: everything that was tuned together, and the CLIP it was tuned with.
//!
//! A threshold on a cosine means nothing without the model that computes the cosine, nor without the way the
//! image was normalised for it. So a profile names both, and [`SafetyProfile::fits`] refuses to guide with
//! another CLIP.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::concepts::Concepts;
use super::density::Reduce;
use super::schedule::{GammaSchedule, GuideWindow, is_strength};
use crate::weights::read_user_text;
use crate::{Error, Result};

/// Settings of the methods that look at the image, as one JSON file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafetyProfile {
    pub name: String,
    pub clip: ClipIdentity,
    pub normalisation: Normalisation,
    pub concepts: Vec<String>,
    /// The gate opens where a cosine is not below it.
    pub threshold: f64,
    pub gamma: f64,
    #[serde(default)]
    pub gamma_schedule: GammaSchedule,
    /// Steps that are guided; all of them where missing.
    #[serde(default)]
    pub window: Option<GuideWindow>,
    #[serde(default)]
    pub reduce: Reduce,
    /// How many of the largest cosines p_h is made of; all of them where missing.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Gradients are stored times two to this power; divided out before they act.
    #[serde(default = "default_gradient_scale_log2")]
    pub gradient_scale_log2: u32,
}

/// What tells one CLIP from another without its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipIdentity {
    /// Side of a patch in pixels.
    pub patch: usize,
    pub vision_width: usize,
    /// Not compared where either side does not know.
    #[serde(default)]
    pub vision_layers: Option<usize>,
    pub text_width: usize,
    /// Width of the space that image and text share.
    pub projection: usize,
    /// Side of the square image that the vision tower takes.
    pub image_size: usize,
}

/// What is taken from a pixel in [0, 1], and what it is divided by, per channel (red, green, blue).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Normalisation {
    Imagenet,
    Clip,
    Explicit { mean: [f64; 3], std: [f64; 3] },
}

impl Normalisation {
    /// `(mean, std)`
    pub fn mean_std(&self) -> ([f64; 3], [f64; 3]) {
        match *self {
            Self::Imagenet => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::Clip => ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
            Self::Explicit { mean, std } => (mean, std),
        }
    }
}

pub const BUILT_IN: [&str; 4] = ["thesis-single", "thesis-multi", "thesis-sd-filter", "demo"];
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_GRADIENT_SCALE_LOG2: u32 = 32;

const fn default_gradient_scale_log2() -> u32 {
    16
}

impl SafetyProfile {
    /// The value of `--safety-profile`: the name of a built-in profile, else of a file.
    pub fn resolve(word: &str) -> Result<Self> {
        if let Some(profile) = Self::built_in(word) {
            return Ok(profile);
        }
        let path = Path::new(word);
        if !path.exists() {
            let problem = format!("`{word}` is neither a file nor one of {}", BUILT_IN.join(", "));
            return Err(Error::usage("--safety-profile", problem));
        }
        Self::read(path)
    }

    pub fn built_in(name: &str) -> Option<Self> {
        let (clip, normalisation, threshold, gamma) = match name {
            // Chosen on one half of the demo's prompts: benches/DEMO_SAFETY.md.
            "demo" => (DEMO_CLIP, Normalisation::Clip, 0.35, 128.0),
            _ => (CLIP_VIT_B_16, Normalisation::Imagenet, 0.23, 75.0),
        };
        // While the prediction is far from any image, its scores are mostly false alarms.
        let window = (name == "demo").then_some(GuideWindow::Percent(20..100));
        let concepts = match name {
            "thesis-single" | "thesis-multi" => Concepts::named(name)?.texts().to_vec(),
            "thesis-sd-filter" => Concepts::named("sd-filter")?.texts().to_vec(),
            "demo" => DEMO_CONCEPTS.map(str::to_owned).to_vec(),
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            clip,
            normalisation,
            concepts,
            threshold,
            gamma,
            gamma_schedule: GammaSchedule::Constant,
            window,
            reduce: Reduce::LogMean,
            top_k: None,
            gradient_scale_log2: default_gradient_scale_log2(),
        })
    }

    /// Reads and checks a profile.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_user_text(path, MAX_FILE_BYTES)?, path)
    }

    /// Parses and checks the text of a profile; `path` is the file that errors name.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let profile: Self = serde_json::from_str(text)
            .map_err(|e| Error::input(path, format!("not a safety profile: {e}")))?;
        profile.validate(path)?;
        Ok(profile)
    }

    /// Checks every value; `path` is the file that the error names.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let refuse = |field: &str, expected: String, found: String| {
            Err(Error::Config { path: path.to_owned(), field: field.to_owned(), expected, found })
        };
        let sizes = [
            ("clip.patch", self.clip.patch),
            ("clip.vision_width", self.clip.vision_width),
            ("clip.vision_layers", self.clip.vision_layers.unwrap_or(1)),
            ("clip.text_width", self.clip.text_width),
            ("clip.projection", self.clip.projection),
            ("clip.image_size", self.clip.image_size),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| !(1..=1 << 16).contains(size)) {
            return refuse(field, "1 to 65536".to_owned(), size.to_string());
        }
        let (mean, std) = self.normalisation.mean_std();
        if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s > 0.0) {
            let expected = "finite means and standard deviations above 0".to_owned();
            return refuse("normalisation", expected, format!("{mean:?}, {std:?}"));
        }
        if let Err(problem) = Concepts::checked(self.concepts.clone()) {
            return refuse("concepts", "1 to 1024 different texts".to_owned(), problem);
        }
        if !(-1.0..=1.0).contains(&self.threshold) {
            return refuse("threshold", "a cosine, -1 to 1".to_owned(), self.threshold.to_string());
        }
        if !is_strength(self.gamma) {
            return refuse("gamma", "a finite number >= 0".to_owned(), self.gamma.to_string());
        }
        if let Some(problem) = self.gamma_schedule.problem() {
            return refuse("gamma_schedule", "usable numbers".to_owned(), problem);
        }
        if let Some(k) = self.top_k.filter(|k| !(1..=self.concepts.len()).contains(k)) {
            return refuse("top_k", format!("1 to {} (the concepts)", self.concepts.len()), k.to_string());
        }
        if self.gradient_scale_log2 > MAX_GRADIENT_SCALE_LOG2 {
            let expected = format!("0 to {MAX_GRADIENT_SCALE_LOG2}");
            return refuse("gradient_scale_log2", expected, self.gradient_scale_log2.to_string());
        }
        Ok(())
    }

    /// Whether the profile was tuned with this CLIP; if not, what differs.
    pub fn fits(&self, clip: &ClipIdentity) -> Result<(), String> {
        let differences = self.clip.differences(clip);
        if differences.is_empty() {
            return Ok(());
        }
        Err(format!(
            "profile `{}` belongs to a CLIP with {}, found {} (different: {})",
            self.name,
            self.clip,
            clip,
            differences.join(", ")
        ))
    }
}

impl ClipIdentity {
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let layers = self.vision_layers.zip(other.vision_layers);
        [
            ("patch", self.patch != other.patch),
            ("vision width", self.vision_width != other.vision_width),
            ("vision layers", layers.is_some_and(|(mine, theirs)| mine != theirs)),
            ("text width", self.text_width != other.text_width),
            ("projection", self.projection != other.projection),
            ("image size", self.image_size != other.image_size),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

impl fmt::Display for ClipIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patch {}, vision width {}", self.patch, self.vision_width)?;
        if let Some(layers) = self.vision_layers {
            write!(f, " and {layers} layers")?;
        }
        let Self { text_width, projection, image_size, .. } = self;
        write!(f, ", text width {text_width}, projection {projection}, image size {image_size}")
    }
}

const CLIP_VIT_B_16: ClipIdentity = ClipIdentity {
    patch: 16,
    vision_width: 768,
    vision_layers: Some(12),
    text_width: 512,
    projection: 512,
    image_size: 224,
};

const DEMO_CLIP: ClipIdentity = ClipIdentity {
    patch: 8,
    vision_width: 128,
    vision_layers: Some(4),
    text_width: 128,
    projection: 128,
    image_size: 48,
};

const DEMO_CONCEPTS: [&str; 5] =
    ["a weapon", "violence", "blood and death", "drugs and alcohol", "a harmful object"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn changed(field: &str, value: serde_json::Value) -> Result<SafetyProfile> {
        let demo = SafetyProfile::built_in("demo").expect("built in");
        let mut json = serde_json::to_value(demo).expect("plain data");
        *json.pointer_mut(field).expect("a field") = value;
        SafetyProfile::parse(&json.to_string(), Path::new("p.json"))
    }

    #[test]
    fn every_built_in_profile_survives_a_file() {
        for name in BUILT_IN {
            let profile = SafetyProfile::resolve(name).expect("built in");
            let text = serde_json::to_string(&profile).expect("plain data");
            assert_eq!(SafetyProfile::parse(&text, Path::new("p.json")).expect("valid"), profile);
        }
        assert_eq!(SafetyProfile::resolve("thesis").expect_err("no such name").exit_code(), 2);
    }

    #[test]
    fn the_least_a_profile_says_gets_the_rest_by_default() {
        let text = r#"{"name": "mine", "normalisation": "clip", "concepts": ["a gun"], "threshold": 0.2, "gamma": 5,
            "clip": {"patch": 32, "vision_width": 768, "text_width": 512, "projection": 512, "image_size": 224}}"#;
        let profile = SafetyProfile::parse(text, Path::new("p.json")).expect("valid");
        assert_eq!((profile.reduce, profile.top_k, profile.gradient_scale_log2), (Reduce::LogMean, None, 16));
        assert_eq!((profile.gamma_schedule, profile.window), (GammaSchedule::Constant, None));
    }

    #[test]
    fn all_forms_of_a_field_are_read() {
        let window = changed("/window", json!("3..20")).expect("valid").window.expect("set");
        assert_eq!(window, GuideWindow::Steps(3..20));
        let share = changed("/window", json!("20%..100%")).expect("valid").window.expect("set");
        assert_eq!((share.of(50), share.of(1)), (10..50, 0..1));
        let table = changed("/gamma_schedule", json!({"table": [1, 0.5]})).expect("valid").gamma_schedule;
        assert_eq!(table, GammaSchedule::Table(vec![1.0, 0.5]));
        let explicit = json!({"explicit": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}});
        let normalisation = changed("/normalisation", explicit).expect("valid").normalisation;
        assert_eq!(normalisation.mean_std(), ([0.5; 3], [0.5; 3]));
        assert_eq!(changed("/reduce", json!("sum-log")).expect("valid").reduce, Reduce::SumLog);
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_the_name_of_its_field() {
        for (field, value) in [
            ("/threshold", json!(1.5)),
            ("/gamma", json!(-1)),
            ("/gamma_schedule", json!({"table": [1, -1]})),
            ("/gamma_schedule", json!({"table": []})),
            ("/top_k", json!(0)),
            ("/top_k", json!(6)),
            ("/gradient_scale_log2", json!(33)),
            ("/concepts", json!([])),
            ("/concepts", json!(["a", " "])),
            ("/clip/patch", json!(0)),
            ("/clip/image_size", json!(1_000_000)),
            ("/normalisation", json!({"explicit": {"mean": [0, 0, 0], "std": [1, 0, 1]}})),
        ] {
            let error = changed(field, value.clone()).expect_err("out of range");
            let name = format!("p.json: `{}`: ", field[1..].replace('/', "."));
            assert!(error.to_string().starts_with(&name) && error.exit_code() == 3, "{value}: {error}");
        }
        for (field, value) in [
            ("/window", json!("5..5")),
            ("/reduce", json!("mean")),
            ("/gamma", json!("32")),
            ("/top_k", json!(-1)),
            ("/clip/patch", json!(8.5)),
        ] {
            assert_eq!(changed(field, value).expect_err("malformed").exit_code(), 3);
        }
        let nan = SafetyProfile { threshold: f64::NAN, ..SafetyProfile::built_in("demo").expect("built in") };
        assert!(nan.validate(Path::new("p.json")).is_err());
        let infinite = SafetyProfile { gamma: f64::INFINITY, ..nan };
        assert!(SafetyProfile { threshold: 0.3, ..infinite }.validate(Path::new("p.json")).is_err());
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused() {
        for place in ["", "/clip"] {
            let mut json = serde_json::to_value(SafetyProfile::built_in("demo")).expect("plain data");
            json.pointer_mut(place).expect("an object")["thresold"] = json!(0.2);
            let error = SafetyProfile::parse(&json.to_string(), Path::new("p.json")).expect_err("a typo");
            assert!(error.to_string().contains("unknown field `thresold`"), "{error}");
        }
    }

    #[test]
    fn a_profile_fits_its_own_clip_only() {
        let thesis = SafetyProfile::built_in("thesis-multi").expect("built in");
        let unknown_depth = ClipIdentity { vision_layers: None, ..CLIP_VIT_B_16 };
        assert!(thesis.fits(&CLIP_VIT_B_16).is_ok() && thesis.fits(&unknown_depth).is_ok());
        let difference = thesis.fits(&ClipIdentity { patch: 32, ..CLIP_VIT_B_16 }).expect_err("ViT-B/32");
        assert!(
            difference.contains("`thesis-multi`") && difference.contains("different: patch)"),
            "{difference}"
        );
        assert!(thesis.fits(&DEMO_CLIP).is_err());
    }
}
