pub mod error;
pub mod sampler;
pub mod tensor;

pub use error::{Error, Result};
