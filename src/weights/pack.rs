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
    let [lines, columns] = cropped.map(|cropped| if cropped { 3 } else { 2 });
    let mut packed = Vec::with_capacity(lines * columns * o * 4 * c);
    for (line, column) in (0..lines).flat_map(|line| (0..columns).map(move |column| (line, column))) {
        for taps in filter.data().chunks_exact(9 * c) {
            for (r, s) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let at = packed.len();
                packed.resize(at + c, 0.0f32);
                for (r, s) in
                    MEETING[line][r].iter().flat_map(|r| MEETING[column][s].iter().map(move |s| (r, s)))
                {
                    let tap = &taps[(r * 3 + s) * c..][..c];
                    packed[at..].iter_mut().zip(tap).for_each(|(sum, w)| *sum += w);
                }
            }
        }
    }
    Tensor::new([lines * columns, o, 2, 2, c], packed)
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
