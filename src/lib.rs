pub mod cpu;
pub mod error;
pub mod ir;
pub mod plan;
pub mod tensor;

pub use error::{Error, Result};
