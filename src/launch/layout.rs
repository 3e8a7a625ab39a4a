//! Copies: every operation that only moves elements, and buffers that change their type, as one launch.
//!
//! A copy is a table of rows ([`Place`]): of every row of the result some columns come from x, the others from y or
//! are zero. With numbers that eight divides it moves 16 bytes at a time; the result is the same.

use super::params::{self as p, DevicePtr};
use super::{Launch, Storage};
use crate::error::Result;
use crate::ir::Op;
use crate::tensor::Shape;

/// What an element is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    Stored(Storage),
    /// f32, and i32 where nothing is converted.
    Word,
}

impl Element {
    const fn name(self) -> &'static str {
        match self {
            Self::Stored(storage) => storage.name(),
            Self::Word => "f32",
        }
    }
}

/// Where the elements of a copy come from; all numbers count elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of the result.
    pub rows: usize,
    pub width: usize,
    /// Columns of the result that x fills; y has the ones behind them.
    pub start: usize,
    pub len: usize,
    /// Where the first row of x starts, and how far it is to the next one.
    pub first: usize,
    pub stride: usize,
    /// From one sample (or step) to the next, where an index chooses one.
    pub x_sample: usize,
    pub out_sample: usize,
}

impl Place {
    /// All of `count` elements.
    pub fn whole(count: usize) -> Self {
        Self { rows: 1, width: count, len: count, ..Self::default() }
    }

    /// `None` where the operation does more than to move elements. `x` is its first operand, `to` its result.
    pub fn of(op: &Op, x: &Shape, to: &Shape) -> Option<Self> {
        let (count, c) = (to.count(), x.last());
        let inner = |shape: &Shape| shape[1..].iter().product::<usize>();
        let per_channel = |start, len, first| Self {
            rows: count / to.last(),
            width: to.last(),
            start,
            len,
            first,
            stride: c,
            ..Self::default()
        };
        let per_image = |start: usize, len: usize, first: usize| Self {
            rows: to[0],
            width: inner(to),
            start,
            len,
            first,
            stride: inner(x),
            ..Self::default()
        };
        Some(match op {
            Op::Concat => per_channel(0, c, 0),
            Op::SliceChannels { start, len } => per_channel(0, *len, *start),
            Op::PadChannels { start, .. } => per_channel(*start, c, 0),
            Op::SliceTokens { start, len } => per_image(0, len * c, start * c),
            Op::PadTokens { start, .. } => per_image(start * c, inner(x), 0),
            Op::SliceBatch { start, .. } => Self { first: start * inner(x), ..Self::whole(count) },
            Op::RepeatBatch { times } => {
                Self { rows: *times, width: count / times, len: count / times, ..Self::default() }
            }
            _ => return None,
        })
    }

    /// Whether eight divides every number.
    fn in_eights(&self) -> bool {
        let Self { rows: _, width, start, len, first, stride, x_sample, out_sample } = *self;
        [width, start, len, first, stride, x_sample, out_sample].iter().all(|n| n.is_multiple_of(8))
    }

    /// The copy over at most `most_blocks` blocks. `index` leads to the number of the sample or step where one
    /// is chosen.
    pub fn launch(
        &self,
        (from, to): (Element, Element),
        most_blocks: u32,
        index: DevicePtr,
        [x, y, out]: [DevicePtr; 3],
    ) -> Result<Launch> {
        let aligned = [x, y, out].iter().all(|at| at.0.is_multiple_of(16));
        let eights = from == to && from != Element::Word && self.in_eights() && aligned;
        let unit = if eights { 8 } else { 1 };
        let kernel = match (from == to, eights) {
            (true, true) => format!("place_{}_v8", from.name()),
            (true, false) => format!("place_{}", from.name()),
            (false, _) => format!("place_{}_{}", from.name(), to.name()),
        };
        let long = |n: usize| (n / unit) as i64;
        let chosen = self.x_sample != 0 || self.out_sample != 0;
        let params = p::PlaceParams {
            state: if chosen { index } else { DevicePtr::NONE },
            x,
            y,
            out,
            rows: self.rows as i64,
            width: long(self.width),
            start: long(self.start),
            len: long(self.len),
            first: long(self.first),
            stride: long(self.stride),
            x_sample: long(self.x_sample),
            out_sample: long(self.out_sample),
        };
        Launch::new(&kernel, strided(self.rows * self.width / unit, most_blocks), &params)
    }
}

/// The grid of a kernel whose threads take one element after the other.
pub(super) fn strided(count: usize, most_blocks: u32) -> [u32; 3] {
    [u32::try_from(count.div_ceil(256)).unwrap_or(u32::MAX).clamp(1, most_blocks), 1, 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const AT: [DevicePtr; 3] = [DevicePtr(4096), DevicePtr(8192), DevicePtr(12288)];
    const F16: Element = Element::Stored(Storage::F16);

    #[test]
    fn a_copy_takes_sixteen_bytes_where_everything_is_a_multiple_of_them() {
        let concat = |a: usize, b: usize| {
            let (x, to) = (Shape::from([2, 3, a]), Shape::from([2, 3, a + b]));
            Place::of(&Op::Concat, &x, &to).expect("a copy")
        };
        let name = |place: Place, from, to, at| {
            place.launch((from, to), 9, DevicePtr::NONE, at).expect("legal").kernel.name
        };
        assert_eq!(name(concat(40, 24), F16, F16, AT), "place_f16_v8");
        assert_eq!(name(concat(40, 25), F16, F16, AT), "place_f16");
        assert_eq!(name(concat(40, 24), F16, F16, [AT[0], DevicePtr(8194), AT[2]]), "place_f16");
        assert_eq!(name(concat(40, 24), F16, Element::Word, AT), "place_f16_f32");
        assert_eq!(name(concat(40, 24), Element::Word, Element::Word, AT), "place_f32");
    }

    #[test]
    fn a_sample_is_chosen_by_a_state_and_columns_stay_inside_of_rows() {
        let sample = Place { x_sample: 16, ..Place::whole(16) };
        assert!(sample.launch((F16, F16), 9, AT[0], AT).is_ok());
        let nobody = sample.launch((F16, F16), 9, DevicePtr::NONE, AT);
        assert!(matches!(nobody, Err(Error::Params { field: "state", .. })), "{nobody:?}");
        let long = Place { start: 9, ..Place::whole(16) };
        let refused = long.launch((F16, F16), 9, DevicePtr::NONE, AT);
        assert!(matches!(refused, Err(Error::Params { field: "len", .. })), "{refused:?}");
    }
}
