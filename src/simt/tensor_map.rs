//! What a bulk copy takes a box of: a tensor in global memory, as the SIMT layer encodes it.
//!
//! The struct has the size and alignment of the driver's, and is refused for the same reasons; a few things that the
//! driver allows and no kernel of ours needs are refused too.

use bytemuck::{Pod, Zeroable};

use crate::launch::maps::{ELEMENT_BYTES, Encoded, Map, Swizzle};
use crate::launch::params::DevicePtr;

/// Stands in params, aligned. Words: address; rank, bytes of an element, swizzle and a mark; 5 extents; 4 strides;
/// 5 extents of the box in 32 bits each. Innermost dimensions are first.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TensorMap([u64; 16]);

const MARK: u64 = 0x756e_6775;

impl TensorMap {
    /// What a launch says of one of its tensors.
    pub fn encode(address: DevicePtr, map: &Map) -> Result<Encoded, &'static str> {
        let Map { extents, strides, tile, swizzle, .. } = map;
        Self::tiled(address, ELEMENT_BYTES, extents, strides, tile, *swizzle).map(|map| Encoded(map.0))
    }

    /// A tensor of `element_bytes` at `address`, its `strides` in bytes from the second dimension on, of which a copy
    /// takes `tile`. The error is the rule that is broken.
    pub fn tiled(
        address: DevicePtr,
        element_bytes: u32,
        extents: &[u64],
        strides: &[u64],
        tile: &[u32],
        swizzle: Swizzle,
    ) -> Result<Self, &'static str> {
        let rank = extents.len();
        let row = u64::from(*tile.first().unwrap_or(&0)) * u64::from(element_bytes);
        let rules = [
            ((1..=5).contains(&rank), "1 to 5 dimensions"),
            (strides.len() + 1 == rank && tile.len() == rank, "a stride less than extents, a tile as many"),
            (matches!(element_bytes, 1 | 2 | 4 | 8), "elements of 1, 2, 4 or 8 bytes"),
            (address.0.is_multiple_of(16), "an address that is a multiple of 16"),
            (extents.iter().all(|n| (1..=1 << 32).contains(n)), "extents from 1 to 2^32"),
            (
                strides.iter().all(|s| s.is_multiple_of(16) && (1..1 << 40).contains(s)),
                "strides that are multiples of 16",
            ),
            (tile.iter().all(|n| (1..=256).contains(n)), "a tile of 1 to 256 elements each way"),
            (row.is_multiple_of(16), "rows of a tile that are multiples of 16 bytes"),
            (swizzle == Swizzle::None || row == swizzle as u64, "rows of a tile as long as the swizzle's"),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(rule);
        }
        let mut words = [0; 16];
        words[0] = address.0;
        words[1] = rank as u64 | u64::from(element_bytes) << 8 | (swizzle as u64) << 16 | MARK << 32;
        words[2..7].fill(1);
        words[2..2 + rank].copy_from_slice(extents);
        words[7..7 + strides.len()].copy_from_slice(strides);
        for i in 0..5 {
            words[11 + i / 2] |= u64::from(*tile.get(i).unwrap_or(&1)) << (i % 2 * 32);
        }
        Ok(Self(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_no_driver_takes_is_refused_with_the_rule() {
        let tiled = |address, extents: &[u64], strides: &[u64], tile: &[u32], swizzle| {
            TensorMap::tiled(DevicePtr(address), 2, extents, strides, tile, swizzle)
        };
        assert!(tiled(32, &[100, 3], &[208], &[64, 8], Swizzle::B128).is_ok());
        for (map, rule) in [
            (tiled(8, &[100, 3], &[208], &[64, 8], Swizzle::B128), "address"),
            (tiled(32, &[100, 3], &[200], &[64, 8], Swizzle::B128), "strides"),
            (tiled(32, &[100, 3], &[208], &[32, 8], Swizzle::B128), "as long as"),
            (tiled(32, &[100, 3], &[208], &[64, 257], Swizzle::B128), "256"),
            (tiled(32, &[100, 3], &[208], &[4, 8], Swizzle::None), "16 bytes"),
            (tiled(32, &[100, 3], &[], &[64, 8], Swizzle::B128), "a stride less"),
            (tiled(32, &[], &[], &[], Swizzle::None), "dimensions"),
        ] {
            assert!(map.is_err_and(|error| error.contains(rule)), "{rule}");
        }
    }
}
