//! Which form of a kernel runs, with which tile: pure functions of sizes, and a reason for every answer.
//!
//! What the order of a sum depends on - general or tuned form, splits of its depth - follows from the shape of one
//! image. The batch may choose among tiles alone, which all add in the same order.

pub mod attention;
pub mod conv2d;
pub mod gemm;
pub mod hopper;
mod reason;

pub use reason::{Fact, Fastest, Obstacle, Reason, Rival};

/// Multiprocessors of the devices that a binary is made for.
pub(crate) fn multiprocessors(target: &str) -> usize {
    match target {
        "sm_90a" => 132,
        "sm_100" => 148,
        "sm_120" => 170,
        _ => 108,
    }
}
