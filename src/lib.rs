pub mod autodiff;
pub mod backend;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod image;
pub mod ir;
pub mod models;
pub mod passes;
pub mod pipeline;
pub mod plan;
pub mod safety;
pub mod sampler;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
