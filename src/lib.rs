pub mod autodiff;
pub mod backend;
pub mod error;
pub mod ir;
pub mod passes;
pub mod plan;
pub mod tensor;

pub use error::{Error, Result};
