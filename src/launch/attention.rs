//! Attention and its gradient: which kernels, in which order, over which grids.
//!
//! Four forms. *Tiled* kernels exist for the head widths of the models and want whole chunks of 16 bytes; on sm_90a
//! those of [`super::hopper`] take their place where nothing is masked. The *general* kernels take any width up to 256
//! and any alignment. Wider heads go in *pieces*: scores of some queries are a matrix in memory, its softmax is another,
//! and products of matrices do the rest.
//!
//! The choice is a function of extents, strides and addresses alone, and says its reason. In pieces, how many
//! queries a piece has depends on one image's extents alone, since the sums of dk and dv go on from piece to piece.

use std::fmt;

use super::params::{AttentionBwdParams, AttentionParams, DevicePtr, ProductParams, SoftmaxParams};
use super::{Launch, Storage, hopper, tune};
use crate::error::{Error, Result};
use crate::ir::{WIDEST_WHOLE, queries_of_piece, score_row};

/// Head widths with kernels of their own.
pub const WIDTHS: [usize; 4] = [40, 64, 80, 160];
/// The widest head of the general kernels.
const MOST_GENERAL: usize = 256;
/// Weights in memory are so many powers of two larger; as in softmax.cu.
const BOOST: i32 = 10;
/// Of what begins in a workspace.
const ALIGN: usize = 256;

/// Extents. Queries are `[n, t, heads d]`, keys and values `[n, u, heads d]`, sums over a row `[n, heads, t]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub n: usize,
    pub t: usize,
    pub u: usize,
    pub heads: usize,
    pub d: usize,
    pub causal: bool,
}

/// Tokens, `row` elements apart: q, k and v may be slices of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub at: DevicePtr,
    pub row: usize,
}

/// `o` and `lse` from `q`, `k` and `v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub sizes: Sizes,
    /// Images of q, where they are fewer than n: image i of the result has the queries of image i modulo that. 0: n.
    pub q_images: usize,
    pub q: Tokens,
    pub k: Tokens,
    pub v: Tokens,
    pub o: Tokens,
    pub lse: DevicePtr,
}

/// `dq`, and `dk` and `dv` where they are wanted, from `d_o` and what the forward pass had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub sizes: Sizes,
    pub q: Tokens,
    pub k: Tokens,
    pub v: Tokens,
    pub o: Tokens,
    pub d_o: Tokens,
    pub lse: DevicePtr,
    pub dq: Tokens,
    /// `dk` and `dv`.
    pub of_keys: Option<(Tokens, Tokens)>,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Tiled,
    /// On the matrix units of sm_90a, so many keys at a time; so many blocks take the tiles, at most.
    Hopper {
        keys: usize,
        blocks: u32,
    },
    General,
    /// So many queries at a time; `tiled` where rows allow matrix instructions.
    Pieces {
        queries: usize,
        tiled: bool,
    },
}

/// A form and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub form: Form,
    pub reason: &'static str,
}

impl Choice {
    /// The same on a device of `target`, where tiles of sm_90a take so many keys, or why they do not.
    fn on(self, target: &str, keys: std::result::Result<usize, &'static str>) -> Self {
        if target != hopper::TARGET || self.form != Form::Tiled {
            return self;
        }
        match keys {
            Ok(keys) => {
                let blocks = tune::hopper::blocks(target, i64::MAX);
                Self { form: Form::Hopper { keys, blocks }, ..self }
            }
            Err(reason) => Self { reason, ..self },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::Tiled => write!(f, "tiled: {}", self.reason),
            Form::Hopper { keys, .. } => write!(f, "sm_90a, {keys} keys at a time: {}", self.reason),
            Form::General => write!(f, "general: {}", self.reason),
            Form::Pieces { queries, tiled } => {
                let kernels = if tiled { "tiled" } else { "general" };
                write!(f, "pieces of {queries} queries, {kernels} products: {}", self.reason)
            }
        }
    }
}

impl Tokens {
    /// Rows begin at multiples of 16 bytes.
    fn whole_chunks(&self) -> bool {
        self.at.0.is_multiple_of(16) && self.row.is_multiple_of(8)
    }

    /// That token of an image of `tokens`, from that head on.
    fn from(&self, sizes: &Sizes, (image, tokens): (usize, usize), token: usize, head: usize) -> DevicePtr {
        elements(self.at, (image * tokens + token) * self.row + head * sizes.d, 2)
    }
}

impl Sizes {
    fn choose(&self, tokens: &[Tokens]) -> Choice {
        let aligned = self.d.is_multiple_of(8) && tokens.iter().all(Tokens::whole_chunks);
        if self.d > WIDEST_WHOLE && (aligned || self.d > MOST_GENERAL) {
            let reason = "one head's sums are more than a block's registers";
            let queries = queries_of_piece(self.t, self.u);
            return Choice { form: Form::Pieces { queries, tiled: aligned }, reason };
        }
        let (form, reason) = match (WIDTHS.contains(&self.d), aligned) {
            (true, true) => (Form::Tiled, "a width with kernels of its own, in whole chunks of 16 bytes"),
            (true, false) => (Form::General, "rows do not begin at multiples of 16 bytes"),
            (false, _) => (Form::General, "no kernel has this head width"),
        };
        Choice { form, reason }
    }

    /// 1 / sqrt(d), as the kernels have it.
    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Numbers in lse and its like.
    fn sums(&self) -> usize {
        self.n * self.heads * self.t
    }

    fn grid(&self, blocks: usize) -> Result<[u32; 3]> {
        Ok([int(blocks)? as u32, int(self.heads)? as u32, int(self.n)? as u32])
    }

    /// Every piece of every head: image, head, first query, queries.
    fn pieces(&self, queries: usize) -> impl Iterator<Item = [usize; 4]> + use<> {
        let Self { n, t, heads, .. } = *self;
        (0..n * heads).flat_map(move |i| {
            let firsts = (0..t).step_by(queries.max(1));
            firsts.map(move |first| [i / heads, i % heads, first, queries.min(t - first)])
        })
    }
}

/// Takes parts of a workspace, one after the other.
struct Workspace {
    base: DevicePtr,
    used: usize,
}

impl Workspace {
    fn new(base: DevicePtr) -> Self {
        Self { base, used: 0 }
    }

    fn take(&mut self, count: usize, bytes: usize) -> DevicePtr {
        let at = elements(self.base, self.used, 1);
        self.used += (count * bytes).next_multiple_of(ALIGN);
        at
    }
}

impl Forward {
    /// The form that is best here on a device of `target`. A function of one image, so that a batch changes no bit.
    pub fn choose(&self, target: &str) -> Choice {
        let Sizes { t, u, causal, .. } = self.sizes;
        let choice = self.sizes.choose(&[self.q, self.k, self.v, self.o]);
        choice.on(target, tune::attention::keys(t, u, causal))
    }

    /// Bytes that [`Self::launches`] wants besides its operands.
    pub fn workspace(&self, form: Form) -> usize {
        match form {
            Form::Pieces { queries, .. } => {
                let mut workspace = Workspace::new(DevicePtr::NONE);
                Scores::forward(&mut workspace, &self.sizes, queries);
                workspace.used
            }
            _ => 0,
        }
    }

    pub fn launches(&self, form: Form, storage: Storage, workspace: DevicePtr) -> Result<Vec<Launch>> {
        match form {
            Form::General => Ok(vec![self.general(storage)?]),
            Form::Tiled => {
                let kernel = format!("attention_{}_d{}", storage.name(), self.sizes.d);
                let queries = if self.sizes.d <= 64 { 128 } else { 64 };
                let grid = self.sizes.grid(self.sizes.t.div_ceil(queries))?;
                Ok(vec![Launch::new(&kernel, grid, &self.params()?)?])
            }
            Form::Hopper { keys, blocks } => Ok(vec![hopper::attention(self, keys, blocks, storage)?]),
            Form::Pieces { queries, tiled } => self.pieces(queries, tiled, storage, workspace),
        }
    }

    /// One launch of the general kernel.
    pub fn general(&self, storage: Storage) -> Result<Launch> {
        let grid = self.sizes.grid(self.sizes.t.div_ceil(8))?;
        Launch::new(&format!("attention_{}", storage.name()), grid, &self.params()?)
    }

    pub(super) fn params(&self) -> Result<AttentionParams> {
        let Sizes { n, t, u, heads, d, causal } = self.sizes;
        Ok(AttentionParams {
            q: self.q.at,
            k: self.k.at,
            v: self.v.at,
            o: self.o.at,
            lse: self.lse,
            q_row: int(self.q.row)?,
            k_row: int(self.k.row)?,
            v_row: int(self.v.row)?,
            o_row: int(self.o.row)?,
            n: int(n)?,
            t: int(t)?,
            u: int(u)?,
            heads: int(heads)?,
            d: int(d)?,
            causal: i32::from(causal),
            q_images: int(self.q_images)?,
            pad: 0,
        })
    }

    fn pieces(
        &self,
        queries: usize,
        tiled: bool,
        storage: Storage,
        workspace: DevicePtr,
    ) -> Result<Vec<Launch>> {
        let (sizes, make) = (&self.sizes, Make { storage, tiled });
        let Sizes { t, u, d, .. } = *sizes;
        let q_images = if self.q_images == 0 { sizes.n } else { self.q_images };
        let scores = Scores::forward(&mut Workspace::new(workspace), sizes, queries);
        let mut launches = Vec::new();
        for [image, head, first, count] in sizes.pieces(queries) {
            let q = Matrix(self.q.from(sizes, (image % q_images, t), first, head), self.q.row);
            let k = Matrix(self.k.from(sizes, (image, u), 0, head), self.k.row);
            let v = Matrix(self.v.from(sizes, (image, u), 0, head), self.v.row);
            let o = Matrix(self.o.from(sizes, (image, t), first, head), self.o.row);
            launches.push(make.product("nt", q, k, scores.s, [count, u, d], sizes.scale().into())?);
            let params = scores.softmax(sizes, (image, head), first, count, self.lse)?;
            launches.push(make.rows("softmax", &params)?);
            launches.push(make.product("nn", scores.p, v, o, [count, d, u], unboosted())?);
        }
        Ok(launches)
    }
}

impl Backward {
    /// The form that is best here on a device of `target`, as for the forward pass.
    pub fn choose(&self, target: &str) -> Choice {
        let mut tokens = vec![self.q, self.k, self.v, self.o, self.d_o, self.dq];
        tokens.extend(self.of_keys.into_iter().flat_map(|(dk, dv)| [dk, dv]));
        let Sizes { d, causal, .. } = self.sizes;
        self.sizes.choose(&tokens).on(target, tune::attention::rows_of_gradient(d, causal))
    }

    /// Bytes that [`Self::launches`] wants besides its operands.
    pub fn workspace(&self, form: Form) -> usize {
        let mut workspace = Workspace::new(DevicePtr::NONE);
        match form {
            Form::General => {}
            Form::Tiled | Form::Hopper { .. } => {
                self.sums(&mut workspace);
            }
            Form::Pieces { queries, .. } => {
                self.sums(&mut workspace);
                Scores::backward(&mut workspace, &self.sizes, queries);
                self.totals(&mut workspace);
            }
        }
        workspace.used
    }

    pub fn launches(&self, form: Form, storage: Storage, workspace: DevicePtr) -> Result<Vec<Launch>> {
        match form {
            Form::General => Ok(vec![self.general(storage)?]),
            Form::Hopper { keys, blocks } => {
                let params = self.params(self.sums(&mut Workspace::new(workspace)))?;
                let both = hopper::attention_bwd(&params, keys, blocks, storage)?;
                Ok(vec![self.delta(storage, &params)?, both])
            }
            Form::Tiled => {
                let Sizes { t, u, d, .. } = self.sizes;
                let params = self.params(self.sums(&mut Workspace::new(workspace)))?;
                let kernel = |part: &str| format!("attention_bwd_{part}_{}_d{d}", storage.name());
                let mut launches = vec![self.delta(storage, &params)?];
                let grid = self.sizes.grid(t.div_ceil(64))?;
                launches.push(Launch::new(&kernel("dq"), grid, &params)?);
                if self.of_keys.is_some() {
                    let parts = if d <= 80 { 1 } else { 2 };
                    let grid = self.sizes.grid(u.div_ceil(64) * parts)?;
                    launches.push(Launch::new(&kernel("dkv"), grid, &params)?);
                }
                Ok(launches)
            }
            Form::Pieces { queries, tiled } => self.pieces(queries, tiled, storage, workspace),
        }
    }

    /// One launch of the general kernel.
    pub fn general(&self, storage: Storage) -> Result<Launch> {
        let Sizes { t, u, .. } = self.sizes;
        let of_keys = if self.of_keys.is_some() { u.div_ceil(8) } else { 0 };
        let grid = self.sizes.grid(t.div_ceil(8) + of_keys)?;
        let params = self.params((DevicePtr::NONE, DevicePtr::NONE))?;
        Launch::new(&format!("attention_bwd_{}", storage.name()), grid, &params)
    }

    /// delta and peak.
    fn sums(&self, workspace: &mut Workspace) -> (DevicePtr, DevicePtr) {
        (workspace.take(self.sizes.sums(), 4), workspace.take(self.sizes.sums(), 4))
    }

    /// dk and dv of one head in f32.
    fn totals(&self, workspace: &mut Workspace) -> (Matrix, Matrix) {
        let Sizes { u, d, .. } = self.sizes;
        let mut total = || Matrix(workspace.take(u * d, 4), d);
        (total(), total())
    }

    fn delta(&self, storage: Storage, params: &AttentionBwdParams) -> Result<Launch> {
        let grid = self.sizes.grid(self.sizes.t.div_ceil(8))?;
        Launch::new(&format!("attention_bwd_delta_{}", storage.name()), grid, params)
    }

    fn params(&self, (delta, peak): (DevicePtr, DevicePtr)) -> Result<AttentionBwdParams> {
        let Sizes { n, t, u, heads, d, causal } = self.sizes;
        let none = Tokens { at: DevicePtr::NONE, row: 0 };
        let (dk, dv) = self.of_keys.unwrap_or((none, none));
        Ok(AttentionBwdParams {
            q: self.q.at,
            k: self.k.at,
            v: self.v.at,
            o: self.o.at,
            d_o: self.d_o.at,
            lse: self.lse,
            delta,
            peak,
            dq: self.dq.at,
            dk: dk.at,
            dv: dv.at,
            q_row: int(self.q.row)?,
            k_row: int(self.k.row)?,
            v_row: int(self.v.row)?,
            o_row: int(self.o.row)?,
            d_o_row: int(self.d_o.row)?,
            dq_row: int(self.dq.row)?,
            dk_row: int(dk.row)?,
            dv_row: int(dv.row)?,
            n: int(n)?,
            t: int(t)?,
            u: int(u)?,
            heads: int(heads)?,
            d: int(d)?,
            causal: i32::from(causal),
        })
    }

    fn pieces(
        &self,
        queries: usize,
        tiled: bool,
        storage: Storage,
        workspace: DevicePtr,
    ) -> Result<Vec<Launch>> {
        let (sizes, make) = (&self.sizes, Make { storage, tiled });
        let Sizes { t, u, d, .. } = *sizes;
        let mut workspace = Workspace::new(workspace);
        let (delta, peak) = self.sums(&mut workspace);
        let scores = Scores::backward(&mut workspace, sizes, queries);
        let (dk_total, dv_total) = self.totals(&mut workspace);
        let mut launches = vec![self.delta(storage, &self.params((delta, peak))?)?];
        for [image, head, first, count] in sizes.pieces(queries) {
            let q = Matrix(self.q.from(sizes, (image, t), first, head), self.q.row);
            let d_o = Matrix(self.d_o.from(sizes, (image, t), first, head), self.d_o.row);
            let k = Matrix(self.k.from(sizes, (image, u), 0, head), self.k.row);
            let v = Matrix(self.v.from(sizes, (image, u), 0, head), self.v.row);
            let dq = Matrix(self.dq.from(sizes, (image, t), first, head), self.dq.row);
            let sums = (image * sizes.heads + head) * t;
            let head_peak = (elements(peak, sums, 4), t);
            launches.push(make.product("nt", q, k, scores.s, [count, u, d], sizes.scale().into())?);
            launches.push(make.product("nt", d_o, v, scores.dp, [count, u, d], 1.0.into())?);
            let params = SoftmaxParams {
                dp: scores.dp.0,
                ds: scores.ds.0,
                delta: elements(delta, sums, 4),
                peak: head_peak.0,
                ..scores.softmax(sizes, (image, head), first, count, self.lse)?
            };
            launches.push(make.rows("softmax_bwd", &params)?);
            let of_slopes = Factor { peak: Some(head_peak), ..sizes.scale().into() };
            launches.push(make.product("nn", scores.ds, k, dq, [count, d, u], of_slopes)?);
            let Some((dk, dv)) = self.of_keys else { continue };
            let adds = first > 0;
            let (of_dk, of_dv) = (Factor { adds, ..of_slopes }, Factor { adds, ..unboosted() });
            launches.push(make.product("tn", scores.ds, q, dk_total, [u, d, count], of_dk)?);
            launches.push(make.product("tn", scores.p, d_o, dv_total, [u, d, count], of_dv)?);
            if first + count == t {
                for (total, to) in [(dk_total, dk), (dv_total, dv)] {
                    let to = Matrix(to.from(sizes, (image, u), 0, head), to.row);
                    launches.push(make.rounded(total, to, u, d)?);
                }
            }
        }
        Ok(launches)
    }
}

/// A matrix in memory: where, and elements between two rows.
#[derive(Clone, Copy, Debug)]
struct Matrix(DevicePtr, usize);

/// What a product is multiplied by, and whether it is added.
#[derive(Clone, Copy, Debug)]
struct Factor {
    alpha: f32,
    peak: Option<(DevicePtr, usize)>,
    adds: bool,
}

impl From<f32> for Factor {
    fn from(alpha: f32) -> Self {
        Self { alpha, peak: None, adds: false }
    }
}

fn unboosted() -> Factor {
    2f32.powi(-BOOST).into()
}

/// The matrices of one piece: scores and slopes of weights in f32, weights and slopes of scores in storage type.
struct Scores {
    s: Matrix,
    p: Matrix,
    dp: Matrix,
    ds: Matrix,
}

impl Scores {
    fn forward(workspace: &mut Workspace, sizes: &Sizes, queries: usize) -> Self {
        let row = score_row(sizes.u);
        let mut matrix = |bytes| Matrix(workspace.take(queries * row, bytes), row);
        let none = Matrix(DevicePtr::NONE, row);
        Self { s: matrix(4), p: matrix(2), dp: none, ds: none }
    }

    fn backward(workspace: &mut Workspace, sizes: &Sizes, queries: usize) -> Self {
        let row = score_row(sizes.u);
        let mut matrix = |bytes| Matrix(workspace.take(queries * row, bytes), row);
        Self { s: matrix(4), p: matrix(2), dp: matrix(4), ds: matrix(2) }
    }

    fn softmax(
        &self,
        sizes: &Sizes,
        (image, head): (usize, usize),
        first: usize,
        count: usize,
        lse: DevicePtr,
    ) -> Result<SoftmaxParams> {
        Ok(SoftmaxParams {
            s: self.s.0,
            p: self.p.0,
            lse: elements(lse, (image * sizes.heads + head) * sizes.t, 4),
            score_row: self.s.1 as i64,
            weight_row: self.p.1 as i64,
            rows: int(count)?,
            u: int(sizes.u)?,
            first: int(first)?,
            t: int(sizes.t)?,
            causal: i32::from(sizes.causal),
            ..Default::default()
        })
    }
}

/// Makes launches of the kernels of pieces.
struct Make {
    storage: Storage,
    tiled: bool,
}

impl Make {
    /// c `[m, n]` = a b, k deep; a and b lie as attention_product.cu says.
    fn product(
        &self,
        lie: &str,
        a: Matrix,
        b: Matrix,
        c: Matrix,
        [m, n, k]: [usize; 3],
        by: Factor,
    ) -> Result<Launch> {
        let (peak, peaks) = by.peak.unwrap_or((DevicePtr::NONE, 0));
        let params = ProductParams {
            a: a.0,
            b: b.0,
            c: c.0,
            peak,
            a_row: a.1 as i64,
            b_row: b.1 as i64,
            c_row: c.1 as i64,
            m: int(m)?,
            n: int(n)?,
            k: int(k)?,
            peaks: int(peaks)?,
            alpha: by.alpha,
            adds: i32::from(by.adds),
        };
        let (tile, variant) = if self.tiled { (128, "_m128n128k32s3") } else { (32, "") };
        let grid = [int(m.div_ceil(tile))? as u32, int(n.div_ceil(tile))? as u32, 1];
        Launch::new(&format!("attention_product_{lie}_{}{variant}", self.storage.name()), grid, &params)
    }

    /// One block a row.
    fn rows(&self, op: &str, params: &SoftmaxParams) -> Result<Launch> {
        Launch::new(&format!("{op}_{}", self.storage.name()), [params.rows as u32, 1, 1], params)
    }

    fn rounded(&self, from: Matrix, to: Matrix, rows: usize, columns: usize) -> Result<Launch> {
        let params = SoftmaxParams {
            s: from.0,
            p: to.0,
            score_row: from.1 as i64,
            weight_row: to.1 as i64,
            rows: int(rows)?,
            u: int(columns)?,
            t: int(rows)?,
            ..Default::default()
        };
        self.rows("round_rows", &params)
    }
}

pub(super) fn elements(at: DevicePtr, count: usize, bytes: usize) -> DevicePtr {
    DevicePtr(at.0 + (count * bytes) as u64)
}

fn int(extent: usize) -> Result<i32> {
    i32::try_from(extent).map_err(|_| Error::Shape {
        node: String::new(),
        op: "attention",
        problem: format!("{extent} is more than kernels count to"),
    })
}
