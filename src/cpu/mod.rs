//! The CPU backend: the executable specification of every operation.
//!
//! [`eval`] runs one operation, generic over f32 (to run) and f64 (to check gradients). Its bits depend
//! neither on the number of threads nor on the batch: every sum is split by the shape of one image.

mod attention;
mod conv;
mod cosine;
mod embed;
mod eval;
mod gemm;
mod layout;
mod linear;
mod loops;
mod norm;
mod pointwise;
mod product;
mod program;
mod resample;
mod sampler_ops;
mod scratch;

pub use eval::{Operand, Target, eval};
pub use program::{Cpu, CpuProgram};

/// The vector instructions that point-wise loops use on this machine.
pub fn simd() -> &'static str {
    match format!("{:?}", pulp::Arch::new()) {
        name if name.starts_with("V4") => "AVX-512",
        name if name.starts_with("V3") => "AVX2",
        name if name.starts_with("Neon") => "NEON",
        _ => "baseline instructions",
    }
}
