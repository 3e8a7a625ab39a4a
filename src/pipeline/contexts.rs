//! Texts as the networks see them: prompts as states for the UNet, concepts as unit embeddings for the guard.

use std::collections::HashMap;
use std::ops::Range;

use super::model::Model;
use super::programs::{StepSpec, names};
use super::request::{Guidance, Method, Request};
use crate::backend::{Backend, Stop};
use crate::error::{Error, Result};
use crate::plan::{StepProgram, StepState};

/// Text states of the UNet's rows, by text.
pub(super) struct Contexts {
    states: HashMap<String, Vec<f32>>,
    negative: String,
    safety: Option<String>,
}

impl Contexts {
    /// `plan` is that of [`super::programs::encode_text`].
    pub fn encode(
        model: &Model,
        backend: &dyn Backend,
        plan: &StepProgram,
        request: &Request,
        stop: &Stop,
    ) -> Result<Self> {
        let negative = match &request.method {
            Method::NegativePrompt { concept } if request.negative_prompt.is_empty() => concept.clone(),
            Method::NegativePrompt { concept } => format!("{}, {concept}", request.negative_prompt),
            _ => request.negative_prompt.clone(),
        };
        let safety = match &request.method {
            Method::Sld { concept, .. } => Some(concept.clone()),
            _ => None,
        };
        let mut program = model.load(backend, plan.clone(), stop)?;
        let mut states = HashMap::new();
        let mut texts: Vec<&String> = request.prompts.iter().chain(&safety).collect();
        if request.guidance_scale > 1.0 {
            texts.push(&negative);
        }
        for text in texts {
            if !states.contains_key(text) {
                program.write_indices(names::TOKENS, &model.tokenize(text)?)?;
                program.run(&StepState::default(), stop)?;
                states.insert(text.clone(), program.read(names::STATES)?);
            }
        }
        Ok(Self { states, negative, safety })
    }

    /// The context buffer of a batch: see [`StepSpec`].
    pub fn rows(&self, request: &Request, spec: &StepSpec, images: Range<usize>) -> Vec<f32> {
        let text = |row: usize, image: usize| match (spec.rows, row) {
            (1, _) | (_, 1) => request.image_prompt(image),
            (_, 0) => &self.negative,
            _ => self.safety.as_deref().expect("three rows have a safety text"),
        };
        let state = |row, image| self.states[text(row, image)].iter().copied();
        if spec.by_sample() {
            images.flat_map(|image| (0..spec.rows).flat_map(move |row| state(row, image))).collect()
        } else {
            (0..spec.rows).flat_map(|row| images.clone().flat_map(move |image| state(row, image))).collect()
        }
    }
}

/// Unit embeddings of the concepts, `[k, d]`; `plan` is that of [`super::programs::embed_text`].
pub(super) fn embed(
    model: &Model,
    backend: &dyn Backend,
    plan: &StepProgram,
    guidance: &Guidance,
    stop: &Stop,
) -> Result<Vec<f32>> {
    let mut program = model.load(backend, plan.clone(), stop)?;
    let mut features = Vec::new();
    for concept in &guidance.concepts {
        let (ids, end) = model.tokenize_concept(concept)?;
        program.write_indices(names::POOL, &[end as i32])?;
        program.write_indices(names::TOKENS, &ids)?;
        program.run(&StepState::default(), stop)?;
        let feature = program.read(names::FEATURES)?;
        if !feature.iter().all(|value| value.is_finite()) {
            return Err(Error::NonFinite { what: "a concept's embedding", step: 0, image: 0 });
        }
        features.extend(feature);
    }
    Ok(features)
}
