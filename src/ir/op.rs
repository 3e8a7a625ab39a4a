//! The closed set of operations, each with its formula.
//!
//! Images are NHWC, `[n, h, w, c]`; sequences `[n, t, d]`; filters `[o, r, s, c]`; matrices of linear
//! layers `[out, in]`. Every operation treats the images of a batch separately, so that image `i` has
//! the same bits whatever the batch. Weights are frozen: the `*Bwd` operations are data gradients.

use crate::tensor::Shape;

/// Point-wise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x s(x), with s the logistic function.
    Silu,
    /// x Phi(x), the exact one (erf).
    Gelu,
    /// x s(1.702 x).
    QuickGelu,
    Relu,
    Tanh,
}

/// How a stored parameter becomes the tensor that the graph sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As stored.
    Plain,
    /// Stored `[o, c, r, s]`, seen as `[o, r, s, c]`.
    Filter,
}

/// Zero padding of a convolution, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Padding {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Padding {
    pub const NONE: Self = Self::all(0);

    pub const fn all(pixels: usize) -> Self {
        Self { top: pixels, left: pixels, bottom: pixels, right: pixels }
    }
}

/// Which rows of a buffer a [`Op::Load`] or [`Op::Store`] touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    All,
    /// Row `StepState::sample`, inside a for-each-sample body.
    Sample,
    /// Elements `start .. start + len` of row `StepState::step`, seen as `[1, len]`. Only loaded: rows of
    /// steps are written all at once.
    Step {
        start: usize,
        len: usize,
    },
}

impl Row {
    /// The shape of what is touched of a buffer.
    pub fn shape(self, buffer: &Shape) -> Shape {
        match self {
            Self::All => buffer.clone(),
            Self::Sample => buffer.with_first(1),
            Self::Step { len, .. } => [1, len].into(),
        }
    }
}

/// How the scores of the selected concepts become one density p_h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduce {
    /// log p_h = log(mean_k s_k), as in the text of the thesis.
    #[default]
    LogMean,
    /// log p_h = sum_k log s_k, as in its code; about k times stronger.
    SumLog,
}

/// One operation. Inputs are listed in order behind each formula; `?` marks an optional last input.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    // -- sources and sinks ---------------------------------------------------------------------
    /// A frozen weight. `parts` are the tensors of the checkpoint that it is made of, by their paths: the rows of
    /// one (its outermost extent) below those of the one before, equally many of each. Of a single part, `name` is
    /// that part's.
    Param { name: String, parts: Vec<String>, layout: Layout },
    /// A named buffer that outlives the step. Costs nothing: the value *is* the buffer (or its row).
    Load { buffer: super::BufferId, row: Row },
    /// Writes a named buffer. `(x)`, no output.
    Store { buffer: super::BufferId, row: Row },

    // -- shape ---------------------------------------------------------------------------------
    /// The same elements under another shape; free. `(x)`
    Reshape,
    /// Joins channels. `(a [.., p], b [.., q]) -> [.., p + q]`
    Concat,
    /// Channels `start .. start + len`. `(x [.., c]) -> [.., len]`
    SliceChannels { start: usize, len: usize },
    /// Channels `start ..` of a wider tensor, zero elsewhere: the adjoint. `(x [.., len]) -> [.., channels]`
    PadChannels { start: usize, channels: usize },
    /// Tokens `start .. start + len`. `(x [n, t, d]) -> [n, len, d]`
    SliceTokens { start: usize, len: usize },
    /// Tokens `start ..` of a longer sequence, zero elsewhere: the adjoint. `(x [n, len, d]) -> [n, tokens, d]`
    PadTokens { start: usize, tokens: usize },
    /// Token `index[n]` of every sequence. `(x [n, t, d], index [n] i32) -> [n, d]`
    GatherToken,
    /// Rows `start .. start + len` of the batch. `(x [n, ..]) -> [len, ..]`
    SliceBatch { start: usize, len: usize },
    /// The batch, `times` times over. `(x [n, ..]) -> [times n, ..]`
    RepeatBatch { times: usize },
    /// Sum over the `times` copies: the adjoint. `(x [times n, ..]) -> [n, ..]`
    SumBatch { times: usize },

    // -- point-wise ----------------------------------------------------------------------------
    /// a + b. `(a, b)` of one shape.
    Add,
    /// x + v, v the same for every pixel or token. `(x [n, .., c], v [n or 1, c])`
    AddChannels,
    /// mul x + add. `(x)`
    Affine { mul: f32, add: f32 },
    /// f(x). `(x)`
    Activate(Activation),
    /// f'(x) dy. `(x, dy)`
    ActivateBwd(Activation),
    /// a gelu(b), `x = [a, b]` in halves of the channels. `(x [.., 2 c]) -> [.., c]`
    Geglu,
    /// `(x [.., 2 c], dy [.., c]) -> [.., 2 c]`
    GegluBwd,

    // -- contractions --------------------------------------------------------------------------
    /// x W^T + b. `(x [.., k], w [m, k], b? [m]) -> [.., m]`
    Linear,
    /// dy W. `(dy [.., m], w [m, k]) -> [.., k]`
    LinearBwd,
    /// y[n, i, j, o] = b[o] + sum_{r, s, c} w[o, r, s, c] x[n, i stride + r - top, j stride + s - left, c],
    /// zero outside. `(x [n, h, w, c], w [o, r, s, c], b? [o])`
    Conv2d { stride: usize, padding: Padding },
    /// Its data gradient. `(dy [n, h', w', o], w [o, r, s, c]) -> [n, h, w, c]`
    Conv2dBwd { stride: usize, padding: Padding, height: usize, width: usize },
    /// softmax(q k^T / sqrt(d)) v for each head of width d = channels / heads, and the log-sum-exp of
    /// every row. Causal: query i sees keys 0 ..= i. Operands may lie side by side, see [`super::Attending`].
    /// `(q [n, t, c], k [n, u, c], v [n, u, c])` or `(q, kv [n, u, 2 c])` or `(qkv [n, t, 3 c]) -> [n, t, c], [n, heads, t]`
    Attention { heads: usize, causal: bool },
    /// `(o, lse, do, q, k, v) -> dq, dk, dv`, or `(.., q, kv) -> dq, dkv`, or `(.., qkv) -> dqkv`
    AttentionBwd { heads: usize, causal: bool },

    // -- normalisation -------------------------------------------------------------------------
    /// act((x - mean) / sqrt(var + eps) gamma + beta), mean and variance over the pixels and channels of
    /// a group. `(x [n, .., c], gamma [c], beta [c])`
    GroupNorm { groups: usize, eps: f32, act: Option<Activation> },
    /// `(x, gamma, beta, dy)`
    GroupNormBwd { groups: usize, eps: f32, act: Option<Activation> },
    /// (x - mean) / sqrt(var + eps) gamma + beta over the channels. `(x [.., c], gamma [c], beta [c])`
    LayerNorm { eps: f32 },
    /// `(x, gamma, dy)`
    LayerNormBwd { eps: f32 },

    // -- images and tokens ---------------------------------------------------------------------
    /// Nearest neighbour to `height` x `width`: y[i, j] = x[floor(i h / height), floor(j w / width)].
    /// `(x [n, h, w, c])`
    Upsample { height: usize, width: usize },
    /// Sum over the pixels that were copied: the adjoint. `(dy [n, height, width, c]) -> [n, h, w, c]`
    UpsampleBwd { height: usize, width: usize },
    /// Bicubic (a = -0.75, half-pixel centres, no antialias, edge clamped) to `height` x `width`, then
    /// (u - mean) / std a channel. `(x [n, h, w, 3])`
    Resample { height: usize, width: usize, mean: [f32; 3], std: [f32; 3] },
    /// Its adjoint; here `height` x `width` is the size of the input that is returned to.
    /// `(dy [n, h', w', 3]) -> [n, height, width, 3]`
    ResampleBwd { height: usize, width: usize, std: [f32; 3] },
    /// token[id] + position[i]. `(ids [n, t] i32, token [vocab, d], position [>= t, d]) -> [n, t, d]`
    EmbedText,
    /// Class token first, then the patches, plus positions. `(x [n, t, d], class [d], position [t + 1, d]) -> [n, t + 1, d]`
    EmbedPatches,
    /// Sinusoidal embedding of timesteps, of `StepState::timestep` where none are given: angles
    /// t exp(-ln(10000) i / (half - shift)), [sin, cos] halves, or [cos, sin] if `flip`.
    /// `(t? [n]) -> [n or 1, channels]`
    TimestepEmbedding { channels: usize, flip: bool, shift: f32 },
    /// x / |x| of every row. `(x [n, d])`
    Normalise,

    // -- the method ----------------------------------------------------------------------------
    /// Guidance over the UNet's rows [uncond, cond] (or [cond] alone), then epsilon and x0:
    /// m = m_u + guidance (m_c - m_u); eps = eps_from . (z, m); x0 = x0_from . (z, m).
    /// `(z [n, ..], rows [r n, ..]) -> eps, x0`, r = 1 or 2.
    CfgX0,
    /// Pull-back of dx0 through [`Op::CfgX0`]. `(dx0 [n, ..]) -> dz [n, ..], drows [rows n, ..]`
    CfgX0Bwd { rows: usize },
    /// Safe Latent Diffusion over rows [uncond, cond, safety], then epsilon and x0, element by element:
    /// phi = m_c - m_s; mu = phi >= threshold ? 0 : min(|phi| scale, 1); gamma = mu (m_s - m_u) + momentum nu;
    /// nu' = beta nu + (1 - beta) gamma; m = m_u + guidance (m_c - m_u - (warm ? gamma : 0)).
    /// `(z [n, ..], rows [3 n, ..], nu [n, ..]) -> eps, x0, nu'`
    SldX0,
    /// Scores of the concepts, density, gate, and the gradient of the density, all at once:
    /// u = e / |e|; s_k = <u, c_k>; p_h by `reduce` over the `top_k` largest; gate = any !(s_k < threshold);
    /// de = 2^scale_log2 d log p_h / d e. Where a logarithm has no meaning (an argument <= 1e-6) the gradient is
    /// that of the largest score alone (of its logarithm, floored at 1e-6, where the score is positive) and
    /// `status` is 1; where a score is not finite, `status` is 2 and de is zero.
    /// `(e [n, d], concepts [k, d] unit rows) -> scores [n, k], p_h [n], gate [n], de [n, d], status [n]`
    ClipCosine { reduce: Reduce, top_k: Option<usize>, scale_log2: i32 },
    /// The DDIM step with unguidance: x0' = gate ? x0 - gamma 2^-scale_log2 g : x0 (selected, never
    /// multiplied; outside of the guided window every gate counts as shut);
    /// z' = prev_x0 x0' + prev_eps eps + sigma noise (the last term only where sigma > 0).
    /// `(eps, x0, noise, gate [n], g) -> z', x0'`; gate and g may both be left out.
    DdimUnguide { scale_log2: i32 },
    /// Guidance in x_t space: eps' = gate ? eps + gamma sqrt(1 - alpha) 2^-scale_log2 g : eps, x0' from
    /// (z, eps'); outside of the guided window every gate counts as shut.
    /// `(z, eps, x0, gate [n], g) -> eps', x0'`
    GuideEps { scale_log2: i32 },
    /// x / sqrt(alpha): d x0 / d z where the UNet's dependence on z is left out. `(x)`
    FrozenPullback,
}

impl Op {
    /// The operation's word in listings, errors and profiles.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Param { .. } => "param",
            Self::Load { .. } => "load",
            Self::Store { .. } => "store",
            Self::Reshape => "reshape",
            Self::Concat => "concat",
            Self::SliceChannels { .. } => "slice_channels",
            Self::PadChannels { .. } => "pad_channels",
            Self::SliceTokens { .. } => "slice_tokens",
            Self::PadTokens { .. } => "pad_tokens",
            Self::GatherToken => "gather_token",
            Self::SliceBatch { .. } => "slice_batch",
            Self::RepeatBatch { .. } => "repeat_batch",
            Self::SumBatch { .. } => "sum_batch",
            Self::Add => "add",
            Self::AddChannels => "add_channels",
            Self::Affine { .. } => "affine",
            Self::Activate(_) => "activate",
            Self::ActivateBwd(_) => "activate_bwd",
            Self::Geglu => "geglu",
            Self::GegluBwd => "geglu_bwd",
            Self::Linear => "linear",
            Self::LinearBwd => "linear_bwd",
            Self::Conv2d { .. } => "conv2d",
            Self::Conv2dBwd { .. } => "conv2d_bwd",
            Self::Attention { .. } => "attention",
            Self::AttentionBwd { .. } => "attention_bwd",
            Self::GroupNorm { .. } => "group_norm",
            Self::GroupNormBwd { .. } => "group_norm_bwd",
            Self::LayerNorm { .. } => "layer_norm",
            Self::LayerNormBwd { .. } => "layer_norm_bwd",
            Self::Upsample { .. } => "upsample",
            Self::UpsampleBwd { .. } => "upsample_bwd",
            Self::Resample { .. } => "resample",
            Self::ResampleBwd { .. } => "resample_bwd",
            Self::EmbedText => "embed_text",
            Self::EmbedPatches => "embed_patches",
            Self::TimestepEmbedding { .. } => "timestep_embedding",
            Self::Normalise => "normalise",
            Self::CfgX0 => "cfg_x0",
            Self::CfgX0Bwd { .. } => "cfg_x0_bwd",
            Self::SldX0 => "sld_x0",
            Self::ClipCosine { .. } => "clip_cosine",
            Self::DdimUnguide { .. } => "ddim_unguide",
            Self::GuideEps { .. } => "guide_eps",
            Self::FrozenPullback => "frozen_pullback",
        }
    }

    /// Whether the result depends on the state of the step beside the operands.
    pub const fn reads_state(&self) -> bool {
        matches!(
            self,
            Self::TimestepEmbedding { .. }
                | Self::CfgX0
                | Self::CfgX0Bwd { .. }
                | Self::SldX0
                | Self::ClipCosine { .. }
                | Self::DdimUnguide { .. }
                | Self::GuideEps { .. }
                | Self::FrozenPullback
        )
    }

    /// Sources and views take no time and own no bytes of the arena.
    pub const fn is_free(&self) -> bool {
        matches!(self, Self::Param { .. } | Self::Load { .. } | Self::Reshape)
    }
}
