//! Numbers in memory: element types, shapes, host tensors and how two of them are compared.

mod compare;
mod dtype;
mod host;
mod real;
mod shape;

pub use compare::{Difference, compare};
pub use dtype::DType;
pub use host::Tensor;
pub use real::Real;
pub use shape::Shape;
