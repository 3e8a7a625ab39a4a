pub mod error;
pub mod image;
pub mod safety;
pub mod sampler;
pub mod tensor;

pub use error::{Error, Result};
