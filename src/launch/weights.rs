//! Weights as kernels want them, each tensor in the type that its kernels read. Gradients read the same bytes as the
//! forward pass.
//!
//! Where everything goes is known before anything is read; a tensor is then packed piece by piece, so that beside
//! the tensor as it was read there is one piece in memory.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::ir::Layout;
use crate::plan::{ALIGN, Param};
use crate::tensor::DType;
use crate::weights::pack;

/// How the elements of a weight lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Filters `[o, r, s, c]`, everything else as it is stored.
    Plain,
    /// The rows of the two halves of a gated linear layer in turn: 0, n, 1, n + 1 and so on.
    Pairs,
    /// Filters for the small image in place of the enlarged one, see [`pack::sub_pixel`]; which extents are cropped.
    SubPixel([bool; 2]),
}

impl Packing {
    /// Elements that `count` of a checkpoint become.
    fn count(self, count: usize) -> usize {
        match self {
            Self::SubPixel(cropped) => count / 9 * 4 * pack::sub_pixel_kinds(cropped),
            Self::Plain | Self::Pairs => count,
        }
    }
}

/// A weight on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    pub param: Param,
    pub dtype: DType,
    pub packing: Packing,
    /// In one piece of memory that holds all weights of the program.
    pub offset: usize,
    pub bytes: usize,
}

/// What tells the weights of a device apart.
pub type WeightKey = (String, DType, Packing);

/// One place after the other.
pub(super) fn place(weights: impl IntoIterator<Item = (Param, DType, Packing)>) -> Vec<Weight> {
    let mut offset = 0;
    let weights = weights.into_iter().map(|(param, dtype, packing)| {
        let bytes = packing.count(param.shape.count()) * dtype.bytes();
        let weight = Weight { param, dtype, packing, offset, bytes };
        offset += bytes.next_multiple_of(ALIGN);
        weight
    });
    weights.collect()
}

/// Elements that are converted at a time.
const PIECE: usize = 1 << 18;
/// [`Weight::pack`] hands out pieces of so many bytes at most.
pub const PIECE_BYTES: usize = PIECE * size_of::<f32>();

impl Weight {
    /// [`Weight::pack`] of one part after the other as `read` gives them, so that one of them is in memory at a time.
    pub fn pack_parts(
        &self,
        read: &dyn Fn(&Param) -> Result<Vec<f32>>,
        write: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.param.parts.len() > 1 && self.packing != Packing::Plain {
            let problem = format!("`{}` is stacked and does not go into {:?}", self.param.name, self.packing);
            return Err(Error::Bug(problem));
        }
        let mut first = 0;
        for param in self.param.apart() {
            let stored = read(&param)?;
            let part = Self { param, ..self.clone() };
            part.pack(&stored, &mut |at, piece| write(first + at, piece))?;
            first += self.bytes / self.param.parts.len();
        }
        Ok(())
    }

    /// Converts the elements of a checkpoint and hands them to `write` in pieces, with the byte at which each
    /// begins.
    ///
    /// # Errors
    /// [`Error::Overflow`] where an element is too large for the type; and those of `write`.
    pub fn pack(&self, stored: &[f32], write: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let shape = &self.param.shape[..];
        match (self.packing, self.param.layout, shape) {
            (Packing::SubPixel(cropped), Layout::Filter, &[o, 3, 3, c]) => {
                let tap = |o, r, s, channel| stored[((o * c + channel) * 3 + r) * 3 + s];
                self.convert(&mut pack::sub_pixel_elements([o, c], tap, cropped), write)
            }
            (Packing::Pairs, Layout::Plain, &[rows, ..]) if rows % 2 == 0 => {
                let row = |i: usize| {
                    let len = stored.len() / rows;
                    &stored[(i / 2 + i % 2 * (rows / 2)) * len..][..len]
                };
                self.convert(&mut (0..rows).flat_map(row).copied(), write)
            }
            (Packing::Plain, Layout::Filter, &[_, r, s, c]) if r * s > 1 => {
                let taps = r * s;
                let mut channels_last = stored.chunks_exact(c * taps).flat_map(|filter| {
                    (0..taps).flat_map(move |tap| (0..c).map(move |channel| filter[channel * taps + tap]))
                });
                self.convert(&mut channels_last, write)
            }
            (Packing::Plain, ..) => self.convert(&mut stored.iter().copied(), write),
            (packing, ..) => {
                let problem =
                    format!("`{}` {} does not go into {packing:?}", self.param.name, self.param.shape);
                Err(Error::Bug(problem))
            }
        }
    }

    pub fn key(&self) -> WeightKey {
        (self.param.name.clone(), self.dtype, self.packing)
    }

    fn convert(
        &self,
        values: &mut dyn Iterator<Item = f32>,
        write: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut piece = Vec::with_capacity(PIECE.min(self.param.shape.count()) * self.dtype.bytes());
        let mut written = 0;
        for value in values {
            if !push(self.dtype, value, &mut piece) {
                let tensor = self.param.name.clone();
                return Err(Error::Overflow { tensor, value, dtype: self.dtype.name() });
            }
            if piece.len() == PIECE * self.dtype.bytes() {
                write(written, &piece)?;
                written += piece.len();
                piece.clear();
            }
        }
        if piece.is_empty() { Ok(()) } else { write(written, &piece) }
    }
}

/// Appends a number in a type; false if it is finite but too large for it.
fn push(dtype: DType, value: f32, bytes: &mut Vec<u8>) -> bool {
    match dtype {
        DType::F16 => {
            let stored = f16::from_f32(value);
            bytes.extend(stored.to_le_bytes());
            stored.is_finite() || !value.is_finite()
        }
        DType::BF16 => {
            let stored = bf16::from_f32(value);
            bytes.extend(stored.to_le_bytes());
            stored.is_finite() || !value.is_finite()
        }
        _ => {
            bytes.extend(value.to_le_bytes());
            true
        }
    }
}

/// Numbers in a type, rounded to nearest; too large ones become infinite.
pub fn to_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.bytes());
    for &value in values {
        push(dtype, value, &mut bytes);
    }
    bytes
}

/// The numbers behind bytes of a type.
pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter().copied();
    match dtype {
        DType::F16 => halves().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        DType::BF16 => halves().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn weight(shape: &[usize], layout: Layout, dtype: DType) -> Weight {
        let param = param(&["unet.x.weight"], shape, layout);
        place([(param, dtype, Packing::Plain)]).remove(0)
    }

    fn param(parts: &[&str], shape: &[usize], layout: Layout) -> Param {
        let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
        Param { name: parts.join(" and "), parts, shape: shape.into(), layout }
    }

    fn packed(weight: &Weight, stored: &[f32]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; weight.bytes];
        weight.pack(stored, &mut |at, piece| {
            bytes[at..at + piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    #[test]
    fn filters_get_their_channels_last_and_nothing_else_moves() {
        // [o, c, r, s] = [1, 2, 1, 3] seen as [o, r, s, c].
        let filter = weight(&[1, 1, 3, 2], Layout::Filter, DType::F32);
        let bytes = packed(&filter, &[0.0, 1.0, 2.0, 10.0, 11.0, 12.0]).expect("small numbers");
        assert_eq!(from_bytes(DType::F32, &bytes), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        let matrix = weight(&[2, 3], Layout::Plain, DType::BF16);
        let bytes = packed(&matrix, &[1.0, -2.0, 3.0, 0.5, 0.25, -0.125]).expect("small numbers");
        assert_eq!(from_bytes(DType::BF16, &bytes), [1.0, -2.0, 3.0, 0.5, 0.25, -0.125]);
    }

    #[test]
    fn the_halves_of_a_gated_layer_lie_side_by_side() {
        let matrix = Weight { packing: Packing::Pairs, ..weight(&[4, 2], Layout::Plain, DType::F32) };
        let bytes = packed(&matrix, &[0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]).expect("small numbers");
        assert_eq!(from_bytes(DType::F32, &bytes), [0.0, 1.0, 20.0, 21.0, 10.0, 11.0, 30.0, 31.0]);
        let bias = Weight { packing: Packing::Pairs, ..weight(&[4], Layout::Plain, DType::F32) };
        let bytes = packed(&bias, &[0.0, 1.0, 2.0, 3.0]).expect("small numbers");
        assert_eq!(from_bytes(DType::F32, &bytes), [0.0, 2.0, 1.0, 3.0]);
        let odd = Weight { packing: Packing::Pairs, ..weight(&[3], Layout::Plain, DType::F32) };
        assert!(matches!(packed(&odd, &[0.0; 3]), Err(Error::Bug(_))));
    }

    #[test]
    fn filters_for_the_small_image_are_packed_from_the_checkpoint_as_from_the_graphs_filter() {
        let (o, c) = (2, 3);
        let filter = weight(&[o, 3, 3, c], Layout::Filter, DType::F32);
        let stored: Vec<f32> = (0..o * c * 9).map(|i| (i * i % 31) as f32).collect();
        let plain = from_bytes(DType::F32, &packed(&filter, &stored).expect("small numbers"));
        for cropped in [[false, false], [true, false], [true, true]] {
            let small = place([(filter.param.clone(), DType::F32, Packing::SubPixel(cropped))]).remove(0);
            let bytes = packed(&small, &stored).expect("small numbers");
            let want = pack::sub_pixel(&Tensor::new([o, 3, 3, c], plain.clone()), cropped);
            assert_eq!(from_bytes(DType::F32, &bytes), want.data());
        }
    }

    #[test]
    fn pieces_join_to_the_whole() {
        let count = 2 * PIECE + 5;
        let long = weight(&[count], Layout::Plain, DType::F16);
        let stored: Vec<f32> = (0..count).map(|i| (i % 1000) as f32).collect();
        let bytes = packed(&long, &stored).expect("small numbers");
        assert_eq!(from_bytes(DType::F16, &bytes), stored);
    }

    #[test]
    fn a_number_that_is_too_large_names_its_tensor() {
        let matrix = weight(&[1, 2], Layout::Plain, DType::F16);
        assert!(packed(&matrix, &[65504.0, -65519.0]).is_ok());
        let error = packed(&matrix, &[1.0, 65520.0]).expect_err("beyond f16");
        let text = error.to_string();
        assert!(text.contains("`unet.x.weight`") && text.contains("65520") && text.contains("f16"), "{text}");
        assert!(packed(&weight(&[1, 2], Layout::Plain, DType::BF16), &[1.0, 65520.0]).is_ok());
    }

    #[test]
    fn parts_are_packed_one_below_the_other_and_read_one_at_a_time() {
        let names = ["q.weight", "k.weight", "v.weight"];
        let read = |part: &Param| {
            assert_eq!(part.stored_shape()[..], [2, 2]);
            let index = names.iter().position(|name| *name == part.name).expect("one of the parts");
            Ok((0..4).map(|i| (10 * index + i) as f32).collect())
        };
        let stack = param(&names, &[6, 2], Layout::Plain);
        let weight = place([(stack, DType::F16, Packing::Plain)]).remove(0);
        let mut bytes = vec![0; weight.bytes];
        let mut write = |at: usize, piece: &[u8]| {
            bytes[at..at + piece.len()].copy_from_slice(piece);
            Ok(())
        };
        weight.pack_parts(&read, &mut write).expect("small numbers");
        let rows = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0, 20.0, 21.0, 22.0, 23.0];
        assert_eq!(from_bytes(DType::F16, &bytes), rows);
        let large = |part: &Param| Ok(vec![if part.name == "k.weight" { 1e6 } else { 0.0 }; 4]);
        let error = weight.pack_parts(&large, &mut |_, _| Ok(())).expect_err("beyond f16").to_string();
        assert!(error.contains("`k.weight`"), "{error}");
    }

    #[test]
    fn places_are_aligned_and_apart() {
        let shapes = [([3, 5], DType::F16), ([1, 1], DType::F32), ([128, 1], DType::F16)];
        let weights =
            place(shapes.map(|(shape, dtype)| (param(&["x"], &shape, Layout::Plain), dtype, Packing::Plain)));
        let places: Vec<_> = weights.iter().map(|w| (w.offset, w.bytes)).collect();
        assert_eq!(places, [(0, 30), (256, 4), (512, 256)]);
    }
}
