//! Attention for sm_90a: `kernels/include/params_sm90.cuh`, and the tensors that it copies in bulk.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::attention::{extents, native_width, tokens, whole_copies};
use super::sm90::SLAB;
use super::{DevicePtr, Params, Rules};
use crate::launch::maps::{Encoded, Map, Swizzle};
use crate::manifest::Kernel;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttentionSm90Params {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub o: DevicePtr,
    pub lse: DevicePtr,
    // elements between two tokens
    pub q_row: i32,
    pub k_row: i32,
    pub v_row: i32,
    pub o_row: i32,
    pub n: i32,
    pub t: i32,
    pub u: i32,
    pub heads: i32,
    pub d: i32,
    // as in AttentionParams
    pub q_images: i32,
    pub pad: [i32; 12],
    pub q_map: Encoded,
    pub k_map: Encoded,
    pub v_map: Encoded,
}
const _: () =
    assert!(size_of::<AttentionSm90Params>() == 512 && offset_of!(AttentionSm90Params, q_map) == 128);

impl AttentionSm90Params {
    /// Slabs of queries, of every head of every image.
    pub fn items(&self) -> i64 {
        let [heads, n] = [self.heads, self.n].map(|extent| i64::from(extent.max(1)));
        Rules::tiles(self.t, SLAB[0].into()).saturating_mul(heads).saturating_mul(n)
    }

    /// Keys of a tile.
    fn keys(kernel: &Kernel) -> u32 {
        kernel.arguments.split(", ").nth(2).and_then(|keys| keys.parse().ok()).unwrap_or(0)
    }
}

impl Params for AttentionSm90Params {
    const NAME: &'static str = "AttentionSm90Params";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        rules.given("lse", self.lse);
        extents(rules, [self.n, self.t, self.u, self.heads], self.d, 0);
        whole_copies(rules, self.q_images, self.n);
        let width = i64::from(self.heads) * i64::from(self.d);
        long_tokens(
            rules,
            width,
            self.t,
            [(["q", "q_row"], self.q, self.q_row), (["o", "o_row"], self.o, self.o_row)],
        );
        long_tokens(
            rules,
            width,
            self.u,
            [(["k", "k_row"], self.k, self.k_row), (["v", "v_row"], self.v, self.v_row)],
        );
        blocks(rules, self.items());
    }

    fn maps(&self, kernel: &Kernel) -> Vec<Map> {
        let heads = Heads { n: self.n, heads: self.heads, d: native_width(kernel).unwrap_or(self.d) };
        let keys = Self::keys(kernel);
        let queries = Heads { n: if self.q_images == 0 { self.n } else { self.q_images }, ..heads };
        vec![
            queries.map(offset_of!(Self, q_map), 0, self.t, self.q_row, SLAB[0] as u32),
            heads.map(offset_of!(Self, k_map), 1, self.u, self.k_row, keys),
            heads.map(offset_of!(Self, v_map), 2, self.u, self.v_row, keys),
        ]
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttentionBwdSm90Params {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub d_o: DevicePtr,
    pub lse: DevicePtr,
    // f32 [n, heads, t] each
    pub delta: DevicePtr,
    pub peak: DevicePtr,
    pub dq: DevicePtr,
    // or 0, where they are not wanted
    pub dk: DevicePtr,
    pub dv: DevicePtr,
    // elements between two tokens
    pub q_row: i32,
    pub k_row: i32,
    pub v_row: i32,
    pub d_o_row: i32,
    pub dq_row: i32,
    pub dk_row: i32,
    pub dv_row: i32,
    pub n: i32,
    pub t: i32,
    pub u: i32,
    pub heads: i32,
    pub d: i32,
    pub q_map: Encoded,
    pub d_o_map: Encoded,
    pub k_map: Encoded,
    pub v_map: Encoded,
}
const _: () =
    assert!(size_of::<AttentionBwdSm90Params>() == 640 && offset_of!(AttentionBwdSm90Params, q_map) == 128);

impl AttentionBwdSm90Params {
    /// Slabs of queries and, if theirs are wanted, of keys, of every head of every image.
    pub fn items(&self) -> i64 {
        let slabs = |tokens: i32| Rules::tiles(tokens, SLAB[0].into());
        let of_keys = if self.dk == DevicePtr::NONE { 0 } else { slabs(self.u) };
        let [heads, n] = [self.heads, self.n].map(|extent| i64::from(extent.max(1)));
        (slabs(self.t) + of_keys).saturating_mul(heads).saturating_mul(n)
    }
}

impl Params for AttentionBwdSm90Params {
    const NAME: &'static str = "AttentionBwdSm90Params";
    const ADDRESSES: usize = 10;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("lse", self.lse), ("delta", self.delta), ("peak", self.peak)] {
            rules.given(field, address);
        }
        extents(rules, [self.n, self.t, self.u, self.heads], self.d, 0);
        let width = i64::from(self.heads) * i64::from(self.d);
        let q = (["q", "q_row"], self.q, self.q_row);
        let d_o = (["d_o", "d_o_row"], self.d_o, self.d_o_row);
        let dq = (["dq", "dq_row"], self.dq, self.dq_row);
        long_tokens(rules, width, self.t, [q, d_o, dq]);
        let k = (["k", "k_row"], self.k, self.k_row);
        let v = (["v", "v_row"], self.v, self.v_row);
        long_tokens(rules, width, self.u, [k, v]);
        rules.both_or_none("dk", self.dk, "dv", self.dv);
        if self.dk != DevicePtr::NONE {
            let dk = (["dk", "dk_row"], self.dk, self.dk_row);
            let dv = (["dv", "dv_row"], self.dv, self.dv_row);
            long_tokens(rules, width, self.u, [dk, dv]);
        }
        blocks(rules, self.items());
    }

    fn maps(&self, kernel: &Kernel) -> Vec<Map> {
        /// Of a copy; slabs take two.
        const ROWS: u32 = 64;
        let heads = Heads { n: self.n, heads: self.heads, d: native_width(kernel).unwrap_or(self.d) };
        vec![
            heads.map(offset_of!(Self, q_map), 0, self.t, self.q_row, ROWS),
            heads.map(offset_of!(Self, d_o_map), 3, self.t, self.d_o_row, ROWS),
            heads.map(offset_of!(Self, k_map), 1, self.u, self.k_row, ROWS),
            heads.map(offset_of!(Self, v_map), 2, self.u, self.v_row, ROWS),
        ]
    }
}

/// Names, address and distance of tokens.
type Field = ([&'static str; 2], DevicePtr, i32);

/// Tokens of that width, so many of an image. Tiles reach beyond the end, and a map's strides count an image.
fn long_tokens<const N: usize>(rules: &mut Rules, width: i64, of_image: i32, fields: [Field; N]) {
    for ([name, row_name], at, row) in fields {
        tokens(rules, [name, row_name], at, row, width);
        let bytes = 2 * i64::from(of_image) * i64::from(row);
        let fits = of_image <= i32::MAX - 512 && bytes < 1 << 40;
        rules.holds(row_name, row, fits, "so short that an image is below 2^40 bytes");
    }
}

/// A few blocks that take all items.
fn blocks(rules: &mut Rules, items: i64) {
    rules.holds("grid", items, items <= i64::from(i32::MAX) - 1024, "less than 2^31 - 1024 slabs of tokens");
    let grid @ [blocks, y, z] = rules.grid;
    let fits = (1..=items).contains(&i64::from(blocks)) && [y, z] == [1, 1];
    rules.holds("grid", format_args!("{grid:?}"), fits, "at most a block a slab of tokens");
}

/// Tokens as heads of their own, whose channels end where the head does.
struct Heads {
    n: i32,
    heads: i32,
    d: i32,
}

impl Heads {
    /// What a copy takes: so many rows of one head, a span of channels wide. As in the kernels, heads of up to 64
    /// channels are one span, and wider ones come 32 at a time.
    fn map(&self, space: usize, address: usize, tokens: i32, row: i32, rows: u32) -> Map {
        let [n, heads, d] = [self.n, self.heads, self.d].map(|extent| extent as u64);
        let (span, swizzle) = if d <= 64 { (64, Swizzle::B128) } else { (32, Swizzle::B64) };
        let (tokens, row) = (tokens as u64, 2 * row as u64);
        Map {
            space,
            address,
            offset: 0,
            extents: vec![d, heads, tokens, n],
            strides: vec![2 * d, row, row * tokens],
            tile: vec![span, 1, rows, 1],
            swizzle,
        }
    }
}
