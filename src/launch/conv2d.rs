//! Convolutions and their data gradients as launches: what is folded in, which form runs, and its workspace.
//!
//! A [`Conv2d`] is numbers alone: what is convolved, not where it lies. From them follow the form of the kernel
//! ([`tune::conv2d`]) and the bytes that a sum in parts needs; addresses come last.
//!
//! [`tune::conv2d`]: super::tune::conv2d

use super::params::{self as p, DevicePtr, Epilogue};
use super::tune::conv2d::{Form, Problem};
use super::{Launch, Storage};
use crate::error::{Error, Result};
use crate::ir::Padding;

/// A convolution of one image or of two side by side, perhaps enlarged first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    pub images: usize,
    /// Lines and columns of the input.
    pub size: [usize; 2],
    /// Channels of the two sources; the second may have none.
    pub channels: [usize; 2],
    /// Nearest-neighbour enlargement to this size, twofold or one short of it, comes first.
    pub enlarged: Option<[usize; 2]>,
    /// Output channels, lines and columns of taps.
    pub filter: [usize; 3],
    pub stride: usize,
    pub padding: Padding,
    /// The filter is packed for the small image ([`Conv2d::has_sub_pixel_form`]).
    pub sub_pixel: bool,
}

/// Where a convolution's operands lie. What is not there has no address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operands {
    pub x: DevicePtr,
    pub x2: DevicePtr,
    pub filter: DevicePtr,
    pub y: DevicePtr,
    pub epilogue: Epilogue,
    /// Of [`Conv2d::workspace_bytes`].
    pub workspace: DevicePtr,
}

/// Where the operands of a data gradient lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct BwdOperands {
    pub dy: DevicePtr,
    pub filter: DevicePtr,
    pub dx: DevicePtr,
    pub epilogue: Epilogue,
    /// Of [`Conv2d::bwd_workspace_bytes`].
    pub workspace: DevicePtr,
}

/// Kernels take extents below this; larger images are nobody's.
const MOST: usize = 1 << 20;

impl Conv2d {
    /// Lines and columns of what the filter slides over.
    pub fn seen(&self) -> [usize; 2] {
        self.enlarged.unwrap_or(self.size)
    }

    /// Lines and columns of the output.
    pub fn out(&self) -> [usize; 2] {
        let Padding { top, left, bottom, right } = self.padding;
        let [_, r, s] = self.filter;
        let [h, w] = self.seen();
        [(h + top + bottom - r) / self.stride + 1, (w + left + right - s) / self.stride + 1]
    }

    /// Whether the convolution may be computed from the small image with filters packed by
    /// [`sub_pixel`](crate::weights::pack::sub_pixel); `cropped` is its second argument.
    pub fn has_sub_pixel_form(&self) -> bool {
        let [o, r, s] = self.filter;
        let whole = self.channels.iter().all(|c| c.is_multiple_of(8)) && o.is_multiple_of(8);
        let plain = (r, s, self.stride, self.padding) == (3, 3, 1, Padding::all(1));
        self.enlarged.is_some() && whole && plain
    }

    /// Which extents of the enlarged image are one short of twofold.
    pub fn cropped(&self) -> [bool; 2] {
        let [h, w] = self.seen();
        [h % 2 == 1, w % 2 == 1]
    }
}

/// A convolution as the tiled kernels see it; of two numbers the first is that of lines.
struct Geometry {
    /// What the filter slides over, and what it makes.
    seen: [usize; 2],
    out: [usize; 2],
    channels: [usize; 2],
    taps: [usize; 2],
    stride: [usize; 2],
    before: [usize; 2],
    /// Kinds of output lines and columns with filters of their own.
    kinds: [usize; 2],
    up: bool,
}

impl Conv2d {
    fn geometry(&self) -> Geometry {
        let [_, r, s] = self.filter;
        let plain = Geometry {
            seen: self.seen(),
            out: self.out(),
            channels: self.channels,
            taps: [r, s],
            stride: [self.stride; 2],
            before: [self.padding.top, self.padding.left],
            kinds: [1, 1],
            up: self.enlarged.is_some(),
        };
        if self.sub_pixel {
            let kinds = self.cropped().map(|cropped| if cropped { 3 } else { 2 });
            return Geometry { seen: self.size, taps: [2, 2], before: [0, 0], kinds, up: false, ..plain };
        }
        // Patches that meet: the pixels of a line of a patch lie together like channels of one.
        let meet = s == self.stride && self.padding == Padding::NONE && self.size[1] % s == 0;
        if s > 1 && meet && !plain.up && self.channels[1] == 0 {
            return Geometry {
                seen: [self.size[0], self.size[1] / s],
                channels: [self.channels[0] * s, 0],
                taps: [r, 1],
                stride: [self.stride, 1],
                ..plain
            };
        }
        plain
    }
}
