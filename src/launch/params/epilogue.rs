//! What becomes of the sums of a product before they are stored.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Rules};

/// v = act(sum + bias + channels) + residual, over pairs of columns where it is [`Epilogue::GEGLU`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Epilogue {
    // f32 [n], or 0
    pub bias: DevicePtr,
    // storage type [images, n], or 0
    pub channels: DevicePtr,
    // storage type, as the result, or 0
    pub residual: DevicePtr,
    // f32 [images, tiles of an image, n, 2], or 0
    pub stats: DevicePtr,
    // of an image; matters where channels or stats are given
    pub rows: i32,
    // `activation()`, or GEGLU
    pub activation: i32,
}
const _: () = assert!(size_of::<Epilogue>() == 40);

impl Epilogue {
    /// u[2j] gelu(u[2j + 1]): the columns of the result are half as many.
    pub const GEGLU: i32 = 6;

    /// It leaves the sums as they are.
    pub fn is_bare(&self) -> bool {
        *self == Self::default()
    }

    /// The columns of the result, where the sums have `n`.
    pub fn columns(&self, n: i32) -> i32 {
        if self.activation == Self::GEGLU { n / 2 } else { n }
    }

    /// What kernels rely on for sums [m, n]; `tuned` forms take several columns in one access.
    pub fn check(&self, rules: &mut Rules, m: i32, n: i32, tuned: bool) {
        let known = (0..=Self::GEGLU).contains(&self.activation);
        rules.holds("activation", self.activation, known, "an activation, 0 to 5, or GEGLU, 6");
        if self.activation == Self::GEGLU {
            rules.multiple_of("n", n, 2);
            rules.absent("stats", self.stats, "GEGLU");
        }
        if self.channels != DevicePtr::NONE || self.stats != DevicePtr::NONE {
            rules.at_least("rows", self.rows, 1);
            rules.holds("m", m, m % self.rows.max(1) == 0, "whole images");
        }
        if tuned {
            for (field, address) in [("channels", self.channels), ("residual", self.residual)] {
                rules.aligned(field, address, 16);
            }
            rules.aligned("stats", self.stats, 8);
        } else {
            rules.absent("stats", self.stats, "a general form");
        }
    }
}
