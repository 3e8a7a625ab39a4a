pub mod error;
pub mod ir;
pub mod models;
pub mod plan;
pub mod tensor;

pub use error::{Error, Result};
