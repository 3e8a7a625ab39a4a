//! Weights in the layouts that kernels want. Numbers in, numbers out: files and devices are elsewhere.

use crate::tensor::Tensor;

/// The taps of a line of three that meet at the two lines that are really there, for each kind of line of an
/// image that was enlarged twofold: even, odd, and the last one of an odd number, below which there is nothing.
const MEETING: [[&[usize]; 2]; 3] = [[&[0], &[1, 2]], [&[0, 1], &[2]], [&[0], &[1]]];

/// The filters of a 3 x 3 convolution with one pixel of padding that follows nearest-neighbour enlargement, seen
/// from the small image: for every kind of output pixel a filter of 2 x 2 with the taps summed that read the same
/// pixel. 16/36 of the work, and the same result but for the rounding of the sums: they are taken in f32, from the
/// first tap to the last, and rounded once when they are stored.
///
/// `filter [o, 3, 3, c] -> [kinds of lines * kinds of columns, o, 2, 2, c]`: two kinds of lines, three where the
/// enlarged image is one line short of twofold (`cropped[0]`), and the same for columns.
pub fn sub_pixel(filter: &Tensor<f32>, cropped: [bool; 2]) -> Tensor<f32> {
    let (o, c) = (filter.shape()[0], filter.shape()[3]);
    assert_eq!(filter.shape()[1..3], [3, 3], "a filter of 3 x 3");
    let tap = |o, r, s, channel| filter.data()[((o * 3 + r) * 3 + s) * c + channel];
    let packed = sub_pixel_elements([o, c], tap, cropped).collect();
    Tensor::new([sub_pixel_kinds(cropped), o, 2, 2, c], packed)
}

/// How many filters [`sub_pixel`] makes of one.
pub fn sub_pixel_kinds(cropped: [bool; 2]) -> usize {
    cropped.map(kinds).iter().product()
}

fn kinds(cropped: bool) -> usize {
    if cropped { 3 } else { 2 }
}

/// The elements of [`sub_pixel`] one after the other, for `o` filters of `c` channels; `tap(o, r, s, c)` has those of
/// the filter.
pub fn sub_pixel_elements(
    [o, c]: [usize; 2],
    tap: impl Fn(usize, usize, usize, usize) -> f32 + Copy,
    cropped: [bool; 2],
) -> impl Iterator<Item = f32> {
    let [lines, columns] = cropped.map(kinds);
    let filters = (0..lines * columns).flat_map(move |kind| (0..o).map(move |o| (kind, o)));
    let taps = filters.flat_map(move |(kind, o)| (0..4).map(move |at| (kind, o, at)));
    taps.flat_map(move |(kind, o, at)| {
        let (lines, columns) = (MEETING[kind / columns][at / 2], MEETING[kind % columns][at % 2]);
        (0..c).map(move |channel| {
            lines.iter().flat_map(|&r| columns.iter().map(move |&s| tap(o, r, s, channel))).sum()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Powers of two: every sum tells which taps are in it.
    fn taps() -> Tensor<f32> {
        Tensor::new([1, 3, 3, 1], (0..9).map(|i| (1 << i) as f32).collect())
    }

    #[test]
    fn taps_that_read_one_pixel_become_one() {
        let packed = sub_pixel(&taps(), [false, false]);
        assert_eq!(packed.shape()[..], [4, 1, 2, 2, 1]);
        let even_even = [1, 2 + 4, 8 + 64, 16 + 32 + 128 + 256];
        let odd_odd = [1 + 2 + 8 + 16, 4 + 32, 64 + 128, 256];
        assert_eq!(packed.data()[..4], even_even.map(|x| x as f32));
        assert_eq!(packed.data()[12..], odd_odd.map(|x| x as f32));
    }

    #[test]
    fn the_last_of_an_odd_number_of_lines_reads_nothing_below() {
        let packed = sub_pixel(&taps(), [true, false]);
        assert_eq!(packed.shape()[..], [6, 1, 2, 2, 1]);
        assert_eq!(packed.data()[16..20], [1, 2 + 4, 8, 16 + 32].map(|x| x as f32));
        assert_eq!(sub_pixel(&taps(), [true, true]).shape()[0], 9);
    }

    #[test]
    fn channels_and_filters_keep_their_places() {
        let filter = Tensor::new([2, 3, 3, 5], (0..90).map(|i| i as f32).collect());
        let packed = sub_pixel(&filter, [false, false]);
        // Even lines, even columns: the first tap of 2 x 2 is the first of 3 x 3.
        assert_eq!(packed.data()[..5], [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(packed.data()[20..25], [45.0, 46.0, 47.0, 48.0, 49.0]);
    }
}
