pub mod error;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
