//! The normal numbers that `torch.randn` draws for a seed, bit-stable on every machine.
//!
//! Torch has two generators. The CPU's is a Mersenne Twister with two ways from words to normal numbers: an
//! array of 16 or more goes through float32 Box-Muller in blocks of 16 whose tail is drawn again, a smaller
//! one through float64 Box-Muller in pairs whose second half waits for the next small array. The CUDA one is
//! Philox, where element `i` of draw `k` depends on `(seed, k, i)` alone.
//!
//! Torch's own digits differ in the last place between instruction sets. Ours do not: logarithm, sine and
//! cosine come from `libm` (pure Rust) in f64 and are rounded to f32 where torch rounds. Against torch they
//! stay within 2e-6.
//!
//! A stream belongs to one image. Torch's CUDA kernel lets elements beyond (multiprocessors x resident
//! threads) of one draw depend on the device; an image's latent is below that, a batch may not be.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mt19937::Mt19937;
use super::philox::philox;
use crate::{Error, Result};

/// Whose generator to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// `torch.Generator("cpu")`
    #[default]
    Cpu,
    /// `torch.Generator("cuda")`
    Cuda,
}

impl Rng {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for Rng {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err(Error::usage("--rng", format!("expected `cpu` or `cuda`, found `{word}`"))),
        }
    }
}

/// All noise of one image: its start latent, then the noise of each step that asks for some.
#[derive(Clone, Debug)]
pub struct NoiseStream(Generator);

#[derive(Clone, Debug)]
enum Generator {
    Cpu { engine: Box<Mt19937>, waiting: Option<f64> },
    Cuda { key: [u32; 2], draws: u64 },
}

impl NoiseStream {
    /// Torch's CPU generator uses the lower 32 bits of the seed only, its CUDA generator all 64.
    pub fn new(rng: Rng, seed: u64) -> Self {
        Self(match rng {
            Rng::Cpu => Generator::Cpu { engine: Box::new(Mt19937::new(seed as u32)), waiting: None },
            Rng::Cuda => Generator::Cuda { key: [seed as u32, (seed >> 32) as u32], draws: 0 },
        })
    }

    /// The next array of `count` standard normal numbers, as one call of `torch.randn`, float32.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        match &mut self.0 {
            Generator::Cpu { engine, .. } if count >= BLOCK => normal_blocks(engine, count),
            Generator::Cpu { engine, waiting } => {
                (0..count).map(|_| normal_of_a_pair(engine, waiting) as f32).collect()
            }
            Generator::Cuda { key, draws } => {
                let offset = *draws;
                *draws += 1;
                (0..count).map(|i| philox_normal(*key, offset, i as u64)).collect()
            }
        }
    }
}

/// Torch's vector width: a block's first half are radii, its second half angles.
const BLOCK: usize = 16;

fn normal_blocks(engine: &mut Mt19937, count: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..count).map(|_| uniform24(engine)).collect();
    values.chunks_exact_mut(BLOCK).for_each(box_muller_block);
    if !count.is_multiple_of(BLOCK) {
        let tail = &mut values[count - BLOCK..];
        tail.fill_with(|| uniform24(engine));
        box_muller_block(tail);
    }
    values
}

fn box_muller_block(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = radius(1.0 - *a);
        let theta = f64::from(2.0 * PI as f32 * *b);
        *a = radius * libm::cos(theta) as f32;
        *b = radius * libm::sin(theta) as f32;
    }
}

/// sqrt(-2 ln u), each operation rounded to f32.
fn radius(u: f32) -> f32 {
    (-2.0 * libm::log(f64::from(u)) as f32).sqrt()
}

/// Uniform in [0, 1) with 24 bits.
fn uniform24(engine: &mut Mt19937) -> f32 {
    (engine.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
}

/// Uniform in [0, 1) with 53 bits.
fn uniform53(engine: &mut Mt19937) -> f64 {
    (engine.next_u64() & 0x001f_ffff_ffff_ffff) as f64 / 9_007_199_254_740_992.0
}

fn normal_of_a_pair(engine: &mut Mt19937, waiting: &mut Option<f64>) -> f64 {
    if let Some(value) = waiting.take() {
        return value;
    }
    let theta = 2.0 * PI * uniform53(engine);
    let radius = (-2.0 * libm::log1p(-uniform53(engine))).sqrt();
    *waiting = Some(radius * libm::sin(theta));
    radius * libm::cos(theta)
}

/// Element `index` of the `draw`-th array. Torch counts its offset in fours per draw and the engine counts
/// four words as one, so a draw is one step of the counter.
fn philox_normal(key: [u32; 2], draw: u64, index: u64) -> f32 {
    const TWO_POW_MINUS_32: f32 = 1.0 / 4_294_967_296.0;
    const ANGLE: f32 = TWO_POW_MINUS_32 * 2.0 * PI as f32;
    let counter = [draw as u32, (draw >> 32) as u32, index as u32, (index >> 32) as u32];
    let [a, b, ..] = philox(counter, key);
    let u = a as f32 * TWO_POW_MINUS_32 + TWO_POW_MINUS_32 / 2.0;
    // The device fuses this multiply-add; in f64 it is exact before the one rounding.
    let theta = (f64::from(b as f32) * f64::from(ANGLE) + f64::from(ANGLE / 2.0)) as f32;
    radius(u) * libm::sin(f64::from(theta)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_draw_between_large_ones_keeps_its_waiting_half() {
        let mut one = NoiseStream::new(Rng::Cpu, 9);
        let first = one.normal(1);
        one.normal(16);
        let second = one.normal(1);
        assert_eq!([first[0], second[0]], NoiseStream::new(Rng::Cpu, 9).normal(2)[..]);
    }

    #[test]
    fn an_element_of_the_cuda_generator_does_not_depend_on_the_count() {
        let long = NoiseStream::new(Rng::Cuda, 3).normal(100);
        assert_eq!(NoiseStream::new(Rng::Cuda, 3).normal(7), long[..7]);
    }

    #[test]
    fn draws_and_the_upper_half_of_a_seed_matter_to_the_cuda_generator() {
        let mut stream = NoiseStream::new(Rng::Cuda, 3);
        assert_ne!(stream.normal(8), stream.normal(8));
        assert_ne!(
            NoiseStream::new(Rng::Cuda, 3).normal(8),
            NoiseStream::new(Rng::Cuda, 3 | 1 << 40).normal(8)
        );
    }

    #[test]
    fn the_extreme_words_give_finite_numbers() {
        assert!(radius(TWO_POW_MINUS_33).is_finite());
        assert_eq!(radius(1.0), 0.0);
    }
    const TWO_POW_MINUS_33: f32 = 1.0 / 8_589_934_592.0;
}
