//! What becomes of the sums of a product before they are stored.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Rules};

/// v = act(sum + bias + channels) + residual, over pairs of columns where it is [`Epilogue::GEGLU`]. The residual may
/// have a part of the rows, which repeats itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Epilogue {
    // f32 [n], or 0
    pub bias: DevicePtr,
    // storage type [rows of the result / channel_rows, n], or 0
    pub channels: DevicePtr,
    // storage type, as the result or `residual_rows` rows of it, or 0
    pub residual: DevicePtr,
    // f32 [images, tiles of an image, n, 2], or 0
    pub stats: DevicePtr,
    // of the result, for a row of channels
    pub channel_rows: i32,
    // of an image, where statistics are wanted
    pub stat_rows: i32,
    // `activation()`, or GEGLU
    pub activation: i32,
    // 0: as many as the result
    pub residual_rows: i32,
}
const _: () = assert!(size_of::<Epilogue>() == 48);

impl Epilogue {
    /// u[2j] gelu(u[2j + 1]): the columns of the result are half as many.
    pub const GEGLU: i32 = 6;

    /// The columns of the result, where the sums have `n`.
    pub fn columns(&self, n: i32) -> i32 {
        if self.activation == Self::GEGLU { n / 2 } else { n }
    }

    /// What kernels rely on for sums [m, n]; only `tuned` forms take statistics.
    pub fn check(&self, rules: &mut Rules, m: i32, n: i32, tuned: bool) {
        let known = (0..=Self::GEGLU).contains(&self.activation);
        rules.holds("activation", self.activation, known, "an activation, 0 to 5, or GEGLU, 6");
        if self.activation == Self::GEGLU {
            rules.multiple_of("n", n, 2);
            rules.absent("stats", self.stats, "GEGLU");
        }
        if self.channels != DevicePtr::NONE {
            rules.at_least("channel_rows", self.channel_rows, 1);
        }
        if self.stats != DevicePtr::NONE {
            rules.at_least("stat_rows", self.stat_rows, 1);
            rules.holds("m", m, m % self.stat_rows.max(1) == 0, "whole images");
            rules.aligned("stats", self.stats, 8);
        }
        if self.residual_rows != 0 {
            rules.given("residual", self.residual);
            let whole = self.residual_rows > 0 && m % self.residual_rows == 0;
            rules.holds(
                "residual_rows",
                self.residual_rows,
                whole,
                "rows that divide those of the result, or 0",
            );
        }
        if !tuned {
            rules.absent("stats", self.stats, "a general form");
        }
    }
}
