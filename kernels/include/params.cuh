// params.cuh - one struct a kernel, passed by value. Mirrored field by field in src/launch/params; both
// sides assert the sizes. Addresses first, then 64-bit numbers, then 32-bit ones: there is no hidden padding.
//
// What changes between two steps is not here but behind `state`: struct StepState.
#pragma once
#include "prelude.cuh"

// The only per-step input; coefficients as in src/plan/state.rs.
struct StepState {
    float timestep, guidance, alpha;
    float x0_from[2];
    float eps_from[2];
    float prev_x0, prev_eps, sigma, gamma, threshold;
    float sld_scale, sld_threshold, sld_momentum, sld_beta;
    int32_t step, sample, window, sld_warm;
};
static_assert(sizeof(StepState) == 80, "as in src/launch/params");

struct PointwiseParams {
    DevicePtr x, y, out;
    int64_t count;       // elements of out (geglu_bwd: of dy)
    int64_t image;       // add_channels: elements of an image; 0: one v for all
    int32_t c;           // channels of a row, where rows matter
    int32_t activation;  // activation::Kind
    float mul, add;      // affine
};
static_assert(sizeof(PointwiseParams) == 56, "as in src/launch/params");

struct TimestepParams {
    DevicePtr state, out;
    int32_t channels, flip;
    float shift;
    int32_t pad;
};
static_assert(sizeof(TimestepParams) == 32, "as in src/launch/params");

struct LayoutParams {
    DevicePtr x, out;
    int64_t pixels;
    int32_t n, c;
};
static_assert(sizeof(LayoutParams) == 32, "as in src/launch/params");

struct PlaceParams {
    DevicePtr state, x, y, out;  // state: 0 where no sample is chosen; y: 0 where there is nothing beside x
    int64_t rows, width;         // of out
    int64_t start, len;          // columns of out that x fills
    int64_t first, stride;       // x's rows: where the first one starts, and elements between two
    int64_t x_sample, out_sample;  // elements between two samples, of which state chooses one; 0: one for all
};
static_assert(sizeof(PlaceParams) == 96, "as in src/launch/params");

struct GatherParams {
    DevicePtr x, index, out;
    int64_t count;  // elements of out
    int32_t t, d;
};
static_assert(sizeof(GatherParams) == 40, "as in src/launch/params");

struct SumCopiesParams {
    DevicePtr x, out;
    int64_t count;  // elements of out
    int32_t times, pad;
};
static_assert(sizeof(SumCopiesParams) == 32, "as in src/launch/params");

struct NormaliseParams {
    DevicePtr x, out;
    int64_t rows;
    int32_t d, pad;
};
static_assert(sizeof(NormaliseParams) == 32, "as in src/launch/params");

struct CfgX0Params {
    DevicePtr state, z, rows, eps, x0;
    int64_t count;  // elements of z
    int32_t copies, pad;  // rows has copies * count elements: 1 or 2
};
static_assert(sizeof(CfgX0Params) == 56, "as in src/launch/params");

struct CfgX0BwdParams {
    DevicePtr state, dx0, dz, drows;
    int64_t count;
    int32_t copies, pad;
};
static_assert(sizeof(CfgX0BwdParams) == 48, "as in src/launch/params");

struct SldX0Params {
    DevicePtr state, z, rows, nu, eps, x0, next_nu;
    int64_t count;
};
static_assert(sizeof(SldX0Params) == 64, "as in src/launch/params");

struct DdimUnguideParams {
    DevicePtr state, eps, x0;
    DevicePtr noise, seeds;  // either, or none where sigma stays 0; seeds: one u64 an image
    DevicePtr gate, g;       // both zero: never guided
    DevicePtr z, guided;
    int64_t count, image;
    int32_t scale_log2;
    int32_t c, draw;  // with seeds: channels of z, and the generator's draw that step 0 takes
    int32_t pad;
};
static_assert(sizeof(DdimUnguideParams) == 104, "as in src/launch/params");

struct GuideEpsParams {
    DevicePtr state, z, eps, x0, gate, g, guided, guided_x0;
    int64_t count, image;
    int32_t scale_log2, pad;
};
static_assert(sizeof(GuideEpsParams) == 88, "as in src/launch/params");

struct FrozenPullbackParams {
    DevicePtr state, x, out;
    int64_t count;
};
static_assert(sizeof(FrozenPullbackParams) == 32, "as in src/launch/params");

struct ClipCosineParams {
    DevicePtr state, e, concepts, scores, p_h, gate, de, status;
    int32_t k, d, top_k, reduce;  // reduce: 0 log-mean, 1 sum-log
    int32_t scale_log2, pad;
};
static_assert(sizeof(ClipCosineParams) == 88, "as in src/launch/params");

struct EmbedTextParams {
    DevicePtr ids, token, position, out;
    int64_t count;  // elements of out
    int32_t t, d;
    int32_t vocabulary, pad;
};
static_assert(sizeof(EmbedTextParams) == 56, "as in src/launch/params");

struct EmbedPatchesParams {
    DevicePtr x, class_token, position, out;
    int64_t count;  // elements of out
    int32_t t, d;
};
static_assert(sizeof(EmbedPatchesParams) == 48, "as in src/launch/params");

struct ResampleParams {
    DevicePtr x, out;
    int32_t n, h, w, height, width, pad;  // h x w: the image; height x width: what CLIP sees
    float mean[3];
    float std[3];
};
static_assert(sizeof(ResampleParams) == 64, "as in src/launch/params");

struct UpsampleParams {
    DevicePtr x, out;
    int32_t n, h, w, c, height, width;
};
static_assert(sizeof(UpsampleParams) == 40, "as in src/launch/params");

struct LayerNormParams {
    DevicePtr x, gamma, beta, out;
    int64_t rows;
    int32_t c;
    float eps;
};
static_assert(sizeof(LayerNormParams) == 48, "as in src/launch/params");

struct LayerNormBwdParams {
    DevicePtr x, gamma, dy, residual, dx;  // residual: T, as dx, or 0
    int64_t rows;
    int32_t c;
    float eps;
};
static_assert(sizeof(LayerNormBwdParams) == 56, "as in src/launch/params");

struct GroupNormParams {
    DevicePtr x, gamma, beta, out;
    int32_t n, pixels, c, groups;
    float eps;
    int32_t activation;
};
static_assert(sizeof(GroupNormParams) == 56, "as in src/launch/params");

struct GroupNormBwdParams {
    DevicePtr x, gamma, beta, dy, residual, dx;  // residual: T, as dx, or 0
    int32_t n, pixels, c, groups;
    float eps;
    int32_t activation;
};
static_assert(sizeof(GroupNormBwdParams) == 72, "as in src/launch/params");

struct GroupTilesParams {
    DevicePtr x, stats;
    int32_t n, pixels, c, rows;
};
static_assert(sizeof(GroupTilesParams) == 32, "as in src/launch/params");

struct GroupFoldParams {
    DevicePtr stats, folded;
    int32_t n, pixels, c, rows, times, pad;
};
static_assert(sizeof(GroupFoldParams) == 40, "as in src/launch/params");

struct GroupApplyParams {
    DevicePtr x, x2, stats, stats2;  // x2: 0 where c2 is; stats2: 0 where stats are of all channels
    DevicePtr gamma, beta, out;
    int32_t n, pixels, c1, c2, groups, rows, rows2, slab, share;  // rows, rows2: of a tile; share: pixels of a block
    float eps;
};
static_assert(sizeof(GroupApplyParams) == 96, "as in src/launch/params");

struct GroupBwdParams {
    DevicePtr x, x2, dy, stats, stats2, gamma, beta, sums;
    DevicePtr residual, dx, dx2;  // residual: T, as dx, where there is one tensor; or 0
    int32_t n, pixels, c1, c2, groups, rows, rows2, slab, share, tile;  // tile: pixels of a sum
    float eps;
    int32_t pad;
};
static_assert(sizeof(GroupBwdParams) == 136, "as in src/launch/params");

// What becomes of the sums of a product: epilogue.cuh. T is the storage type.
struct Epilogue {
    DevicePtr bias;      // f32 [n], or 0
    DevicePtr channels;  // T [rows of the result / channel_rows, n], or 0
    DevicePtr residual;  // T, as the result or `residual_rows` rows of it, or 0
    DevicePtr stats;     // f32 [images, tiles of an image, n, 2], or 0
    int32_t channel_rows;  // of the result, for a row of channels
    int32_t stat_rows;     // of an image, where statistics are wanted
    int32_t activation;    // activation::Kind, or 6: GEGLU over pairs of columns
    int32_t residual_rows;  // which repeat themselves; 0: as many as the result
};
static_assert(sizeof(Epilogue) == 48, "as in src/launch/params");

struct GemmParams {
    DevicePtr a, b, d;
    DevicePtr sums;  // f32 [splits, m, n]: takes the parts of the sums first; or 0
    Epilogue epilogue;
    int64_t a_batch, b_batch, d_batch;  // elements between two matrices of the batch; residual: as d
    int64_t a_row, d_row;               // elements between two rows
    int64_t b_column, b_k;              // b's element (column, k) is at column * b_column + k * b_k
    int32_t m, n, k;
    int32_t k_split;  // of k for a split; with sums
};
static_assert(sizeof(GemmParams) == 152, "as in src/launch/params");

struct Conv2dParams {
    DevicePtr x, x2, filter, y;  // x2: 0 where there is one source
    DevicePtr sums;              // f32 [splits, n, height, width, o]: takes the parts of the sums first; or 0
    Epilogue epilogue;
    int32_t n, h, w;             // h x w: what the filter slides over
    int32_t up;                  // 1: that is the stored image twofold, the last line and column perhaps left out
    int32_t c, c2, o, r, s;
    int32_t stride_y, stride_x, top, left, height, width;
    int32_t kinds_y, kinds_x;    // of lines and columns of y, with filters of their own: 1, or 2 or 3 (sub-pixel)
    int32_t splits;
};
static_assert(sizeof(Conv2dParams) == 40 + sizeof(Epilogue) + 72, "as in src/launch/params");

struct Conv2dBwdParams {
    DevicePtr dy, filter, dx;
    DevicePtr sums;                   // f32 [splits, n, lines, columns, c]: takes the parts of the sums first; or 0
    Epilogue epilogue;
    int32_t n, h, w, up;              // as in Conv2dParams
    int32_t channels, first, c;       // dx has channels first .. first + c of the filter's
    int32_t o, r, s;
    int32_t stride_y, stride_x, top, left, height, width;
    int32_t kinds_y, kinds_x, splits;
    int32_t pad;
};
static_assert(sizeof(Conv2dBwdParams) == 32 + sizeof(Epilogue) + 80, "as in src/launch/params");

struct AttentionParams {
    DevicePtr q, k, v, o, lse;
    int32_t q_row, k_row, v_row, o_row;  // elements between two tokens
    int32_t n, t, u, heads, d, causal;
    int32_t q_images;  // of q: image i of o has the queries of image i modulo that; 0: n
    int32_t pad;
};
static_assert(sizeof(AttentionParams) == 88, "as in src/launch/params");

struct AttentionBwdParams {
    DevicePtr q, k, v, o, d_o, lse;
    DevicePtr delta, peak;  // f32 [n, heads, t]
    DevicePtr dq, dk, dv;
    int32_t q_row, k_row, v_row, o_row, d_o_row, dq_row, dk_row, dv_row;  // elements between two tokens
    int32_t n, t, u, heads, d, causal;
};
static_assert(sizeof(AttentionBwdParams) == 144, "as in src/launch/params");

struct ProductParams {
    DevicePtr a, b, c;
    DevicePtr peak;                // none, or f32 [peaks]: see power_of in scaling.cuh
    int64_t a_row, b_row, c_row;   // elements between two rows as they are stored
    int32_t m, n, k, peaks;
    float alpha;
    int32_t adds;                  // c is added to
};
static_assert(sizeof(ProductParams) == 80, "as in src/launch/params");

struct SoftmaxParams {
    DevicePtr s, dp, p, ds;
    DevicePtr lse, delta, peak;       // f32 [t]
    int64_t score_row, weight_row;    // elements between two rows of s and dp, and of p and ds
    int32_t rows, u, first, t, causal, pad;  // first: of the first row among the t queries
};
static_assert(sizeof(SoftmaxParams) == 96, "as in src/launch/params");
