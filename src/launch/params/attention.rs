//! Attention, and what it is composed of where heads are wide.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};
use crate::manifest::Kernel;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttentionParams {
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
    pub causal: i32,
    // of q: image i of o has the queries of image i modulo that; 0: n
    pub q_images: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<AttentionParams>() == 88);

impl Params for AttentionParams {
    const NAME: &'static str = "AttentionParams";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        rules.given("lse", self.lse);
        extents(rules, [self.n, self.t, self.u, self.heads], self.d, self.causal);
        whole_copies(rules, self.q_images, self.n);
        let width = i64::from(self.heads) * i64::from(self.d);
        for (field, address, row) in [
            (["q", "q_row"], self.q, self.q_row),
            (["k", "k_row"], self.k, self.k_row),
            (["v", "v_row"], self.v, self.v_row),
            (["o", "o_row"], self.o, self.o_row),
        ] {
            tokens(rules, field, address, row, width);
        }
        let queries = match rules.kernel.file {
            "attention.cu" => EIGHT,
            "attention_mma.cu" if self.d <= 64 => 128,
            "attention_mma.cu" => 64,
            _ => return,
        };
        rules.blocks([Rules::tiles(self.t, queries), self.heads.into(), self.n.into()]);
    }
}

/// Rows of a block of the general forms: one a warp.
const EIGHT: i64 = 8;

/// For the kernels that together make the gradient; each looks at its part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttentionBwdParams {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub o: DevicePtr,
    pub d_o: DevicePtr,
    pub lse: DevicePtr,
    // f32 [n, heads, t] each
    pub delta: DevicePtr,
    pub peak: DevicePtr,
    pub dq: DevicePtr,
    pub dk: DevicePtr,
    pub dv: DevicePtr,
    // elements between two tokens
    pub q_row: i32,
    pub k_row: i32,
    pub v_row: i32,
    pub o_row: i32,
    pub d_o_row: i32,
    pub dq_row: i32,
    pub dk_row: i32,
    pub dv_row: i32,
    pub n: i32,
    pub t: i32,
    pub u: i32,
    pub heads: i32,
    pub d: i32,
    pub causal: i32,
}
const _: () = assert!(size_of::<AttentionBwdParams>() == 144);

impl Params for AttentionBwdParams {
    const NAME: &'static str = "AttentionBwdParams";
    const ADDRESSES: usize = 11;

    fn check(&self, rules: &mut Rules) {
        extents(rules, [self.n, self.t, self.u, self.heads], self.d, self.causal);
        let width = i64::from(self.heads) * i64::from(self.d);
        let q = (["q", "q_row"], self.q, self.q_row);
        let k = (["k", "k_row"], self.k, self.k_row);
        let v = (["v", "v_row"], self.v, self.v_row);
        let o = (["o", "o_row"], self.o, self.o_row);
        let d_o = (["d_o", "d_o_row"], self.d_o, self.d_o_row);
        let dq = (["dq", "dq_row"], self.dq, self.dq_row);
        let dk = (["dk", "dk_row"], self.dk, self.dk_row);
        let dv = (["dv", "dv_row"], self.dv, self.dv_row);
        let (rows, sums): (Vec<_>, &[_]) = match (rules.kernel.file, rules.kernel.function) {
            (_, "delta") => (vec![o, d_o], &[("delta", self.delta), ("peak", self.peak)]),
            ("attention_bwd_dq.cu", _) => {
                (vec![q, k, v, d_o, dq], &[("lse", self.lse), ("delta", self.delta), ("peak", self.peak)])
            }
            ("attention_bwd_dkv.cu", _) => {
                (vec![q, k, v, d_o, dk, dv], &[("lse", self.lse), ("delta", self.delta), ("peak", self.peak)])
            }
            _ => {
                // Those of the keys are wanted both or not at all.
                let mut rows = vec![q, k, v, o, d_o, dq];
                let none = self.dk == DevicePtr::NONE && self.dv == DevicePtr::NONE;
                rows.extend(if none { vec![] } else { vec![dk, dv] });
                (rows, &[("lse", self.lse)])
            }
        };
        for &(field, address) in sums {
            rules.given(field, address);
        }
        let queries = |tile| Rules::tiles(self.t, tile);
        let blocks = match (rules.kernel.file, rules.kernel.function) {
            ("attention_bwd.cu", "delta") => queries(EIGHT),
            ("attention_bwd.cu", _) if rows.len() == 6 => queries(EIGHT),
            ("attention_bwd.cu", _) => queries(EIGHT) + Rules::tiles(self.u, EIGHT),
            ("attention_bwd_dq.cu", _) => queries(64),
            // Wide heads' channels are shared out among two blocks.
            ("attention_bwd_dkv.cu", _) => Rules::tiles(self.u, 64) * if self.d <= 80 { 1 } else { 2 },
            _ => rules.grid[0].into(),
        };
        for (field, address, row) in rows {
            tokens(rules, field, address, row, width);
        }
        rules.blocks([blocks, self.heads.into(), self.n.into()]);
    }
}

/// What rows with a width of their own take, besides their own: `attention_f16_d40` is for heads of 40.
pub(super) fn native_width(kernel: &Kernel) -> Option<i32> {
    kernel.arguments.split(", ").nth(1)?.parse().ok()
}

pub(super) fn extents(rules: &mut Rules, [n, t, u, heads]: [i32; 4], d: i32, causal: i32) {
    for (field, extent) in [("n", n), ("t", t), ("u", u), ("heads", heads)] {
        rules.at_least(field, extent, 1);
    }
    match native_width(rules.kernel) {
        Some(width) => rules.holds("d", d, d == width, &format!("{width}")),
        None if rules.kernel.function == "delta" => rules.at_least("d", d, 1),
        None => rules.holds("d", d, (1..=256).contains(&d), "1 to 256"),
    }
    rules.holds("causal", causal, matches!(causal, 0 | 1), "0 or 1");
}

/// Images of queries that stand for all n.
pub(super) fn whole_copies(rules: &mut Rules, q_images: i32, n: i32) {
    let whole = q_images == 0 || (q_images > 0 && n % q_images == 0);
    rules.holds("q_images", q_images, whole, "images that divide n, or 0");
}

/// Elements between two tokens: those of a tile are counted in 32 bits.
const MOST_ROW: i32 = 1 << 24;

/// Tokens of that width, `row` elements apart. Tiles take them 16 bytes at a time.
pub(super) fn tokens(
    rules: &mut Rules,
    [name, row_name]: [&'static str; 2],
    at: DevicePtr,
    row: i32,
    width: i64,
) {
    rules.given(name, at);
    rules.at_least(row_name, row, width);
    rules.holds(row_name, row, row <= MOST_ROW, "2^24 or less");
    if native_width(rules.kernel).is_some() {
        rules.aligned(name, at, 16);
        rules.multiple_of(row_name, row, 8);
    }
}

/// c = alpha a b (+ c), a and b as the kernel's function says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ProductParams {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub c: DevicePtr,
    // none, or f32 [peaks]: the result is divided by the power of two that belongs to the largest of them
    pub peak: DevicePtr,
    // elements between two rows as they are stored
    pub a_row: i64,
    pub b_row: i64,
    pub c_row: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub peaks: i32,
    pub alpha: f32,
    // c is added to
    pub adds: i32,
}
const _: () = assert!(size_of::<ProductParams>() == 80);

impl Params for ProductParams {
    const NAME: &'static str = "ProductParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("a", self.a), ("b", self.b), ("c", self.c)] {
            rules.given(field, address);
        }
        for (field, extent) in [("m", self.m), ("n", self.n), ("k", self.k)] {
            rules.at_least(field, extent, 1);
        }
        // Which of the extents runs along a row, by the orientation.
        let lie = rules.kernel.arguments.rsplit("::").next();
        let a_width = if lie == Some("TN") { self.m } else { self.k };
        let b_width = if lie == Some("NT") { self.k } else { self.n };
        for (field, row, width) in
            [("a_row", self.a_row, a_width), ("b_row", self.b_row, b_width), ("c_row", self.c_row, self.n)]
        {
            rules.at_least(field, row, i64::from(width));
        }
        rules.holds("peaks", self.peaks, self.peak == DevicePtr::NONE || self.peaks >= 1, "at least 1");
        rules.holds("alpha", self.alpha, self.alpha.is_finite(), "finite");
        rules.holds("adds", self.adds, matches!(self.adds, 0 | 1), "0 or 1");
        if rules.kernel.shared_bytes > 0 {
            rules.aligned("a", self.a, 16);
            rules.aligned("b", self.b, 16);
            rules.multiple_of("a_row", self.a_row, 8);
            rules.multiple_of("b_row", self.b_row, 8);
        }
        let tile = match rules.kernel.file {
            "attention_product.cu" => 32,
            "attention_product_tile.cu" => 128,
            _ => return,
        };
        rules.blocks([Rules::tiles(self.m, tile), Rules::tiles(self.n, tile), 1]);
    }
}

/// Rows of scores, and what becomes of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SoftmaxParams {
    pub s: DevicePtr,
    pub dp: DevicePtr,
    pub p: DevicePtr,
    pub ds: DevicePtr,
    // f32 [t] each
    pub lse: DevicePtr,
    pub delta: DevicePtr,
    pub peak: DevicePtr,
    // elements between two rows of s and dp, and of p and ds
    pub score_row: i64,
    pub weight_row: i64,
    pub rows: i32,
    pub u: i32,
    // of the first row among the t queries
    pub first: i32,
    pub t: i32,
    pub causal: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<SoftmaxParams>() == 96);

impl Params for SoftmaxParams {
    const NAME: &'static str = "SoftmaxParams";
    const ADDRESSES: usize = 7;

    fn check(&self, rules: &mut Rules) {
        rules.given("s", self.s);
        rules.given("p", self.p);
        if rules.kernel.function != "round_rows" {
            rules.given("lse", self.lse);
        }
        if rules.kernel.function == "backward" {
            for (field, address) in
                [("dp", self.dp), ("ds", self.ds), ("delta", self.delta), ("peak", self.peak)]
            {
                rules.given(field, address);
            }
        }
        for (field, extent) in [("rows", self.rows), ("u", self.u)] {
            rules.at_least(field, extent, 1);
        }
        rules.at_least("first", self.first, 0);
        rules.at_least("t", self.t, i64::from(self.first) + i64::from(self.rows));
        rules.at_least("score_row", self.score_row, i64::from(self.u));
        rules.at_least("weight_row", self.weight_row, i64::from(self.u));
        rules.holds("causal", self.causal, matches!(self.causal, 0 | 1), "0 or 1");
        if rules.kernel.file == "softmax.cu" {
            rules.blocks([self.rows.into(), 1, 1]);
        }
    }
}
