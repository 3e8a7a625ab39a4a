//! The start noise of `--latents`: one tensor of a safetensors file, read once its size is known to be the run's.

use std::path::Path;

use serde_json::{Value, json};

use crate::backend::Stop;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};
use crate::weights::{Dtype, ModelFiles, SafetensorsFile};

const KEY: &str = "latents";

/// The open file, in which there is noise of some shape.
pub struct GivenLatents(SafetensorsFile);

impl GivenLatents {
    pub fn open(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::new(ModelFiles::open(path)?.blob("")?)?;
        let wrong = |expected: &str, found: String| {
            Err(Error::Tensor { path: path.to_owned(), tensor: KEY.into(), expected: expected.into(), found })
        };
        match file.tensors.get(KEY) {
            None => {
                let keys: Vec<_> = file.tensors.keys().take(5).cloned().collect();
                wrong("[images, 4, h, w] in f32", format!("no such tensor, but {}", keys.join(", ")))
            }
            Some(info) if info.dtype != Dtype::F32 => {
                wrong("values in f32", format!("{} values", info.dtype))
            }
            Some(_) => Ok(Self(file)),
        }
    }

    pub fn shape(&self) -> Shape {
        Shape::from(self.0.tensors[KEY].shape.clone())
    }

    pub fn read(&self) -> Result<Tensor<f32>> {
        Ok(Tensor::new(self.shape(), self.0.read_f32(KEY)?))
    }

    /// Which file it is, for the record of a run.
    pub fn record(&self, stop: &Stop) -> Result<Value> {
        Ok(json!({ "path": self.0.path(), "sha256": self.0.sha256(&|| stop.check())? }))
    }
}
