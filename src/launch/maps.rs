//! Tensors as bulk copies of sm_90 see them: what a driver encodes once it knows the addresses.
//!
//! A [`Map`] is numbers alone and says which of the params' addresses its tensor begins at, so that relocating a
//! launch moves its maps too. A device encodes them right before the launch: [`Launch::encoded`].

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::params::DevicePtr;

/// How 16-byte chunks of a box's rows are permuted in shared memory; the value is a row's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None = 0,
    B32 = 32,
    B64 = 64,
    B128 = 128,
}

/// Bytes of an element: both storage types have as many.
pub const ELEMENT_BYTES: u32 = 2;

/// A tensor of 16-bit elements and the box that a copy takes of it. Innermost dimensions are first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Where it stands in the params, in bytes.
    pub space: usize,
    /// The number of the address that the tensor begins at, and so many bytes behind it.
    pub address: usize,
    pub offset: u64,
    pub extents: Vec<u64>,
    /// In bytes, from the second dimension on.
    pub strides: Vec<u64>,
    pub tile: Vec<u32>,
    pub swizzle: Swizzle,
}

/// A place for an encoded map in params.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Encoded(pub [u64; 16]);

impl Launch {
    /// The params with every map encoded; `encode` gets the address of a map's tensor.
    pub fn encoded<E>(
        &self,
        mut encode: impl FnMut(DevicePtr, &Map) -> Result<Encoded, E>,
    ) -> Result<Cow<'_, [u8]>, E> {
        let mut params = Cow::Borrowed(&self.params[..]);
        for map in &self.maps {
            let base: u64 = bytemuck::pod_read_unaligned(&self.params[8 * map.address..][..8]);
            let encoded = encode(DevicePtr(base + map.offset), map)?;
            params.to_mut()[map.space..][..size_of::<Encoded>()]
                .copy_from_slice(bytemuck::bytes_of(&encoded));
        }
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::params::{GemmSm90Params, Params};
    use crate::launch::{Location, Space, relocate};

    #[test]
    fn a_map_follows_its_address_and_stands_in_its_place() {
        let symbol = |offset| Location { space: Space::Arena, offset }.symbol();
        let (a, b, d) = (symbol(0), symbol(4096), symbol(8192));
        let params = GemmSm90Params {
            a,
            b,
            d,
            a_row: 72,
            b_row: 72,
            d_row: 8,
            m: 70,
            n: 8,
            k: 72,
            ..Default::default()
        };
        let launch = Launch::new("gemm_f16_m128n64k64s4_sm90", [1; 3], &params).expect("right params");
        let launch = relocate(&launch, |location| DevicePtr(1 << 20 | location.offset));
        let mut seen = Vec::new();
        let encoded = launch.encoded(|at, map| {
            seen.push((at.0, map.extents.clone(), map.tile.clone()));
            Ok::<_, ()>(Encoded([seen.len() as u64; 16]))
        });
        let encoded: GemmSm90Params = bytemuck::pod_read_unaligned(&encoded.expect("nothing fails"));
        assert_eq!((encoded.a_map, encoded.b_map), (Encoded([1; 16]), Encoded([2; 16])));
        let want = [
            (1 << 20, vec![72, 70], vec![64, 128]),
            ((1 << 20) + 4096, vec![72, 8], vec![64, 64]),
            ((1 << 20) + 8192, vec![8, 70, 1], vec![64, 128, 1]),
        ];
        assert_eq!(seen, want);
        assert_eq!(launch.addresses, GemmSm90Params::ADDRESSES);
    }
}
