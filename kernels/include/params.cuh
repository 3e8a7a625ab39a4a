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

struct CopyParams {
    DevicePtr state, x, out;
    int64_t count;          // elements that are copied
    int64_t x_row, out_row;  // elements from one sample to the next; 0: the same for all
};
static_assert(sizeof(CopyParams) == 48, "as in src/launch/params");

struct ConditionParams {
    DevicePtr state;
    DevicePtr flags;  // [samples] f32
    uint64_t handle;  // of the driver: whose value is set
    int32_t kind;     // condition::Kind
    int32_t samples;
};
static_assert(sizeof(ConditionParams) == 32, "as in src/launch/params");

struct LayoutParams {
    DevicePtr x, out;
    int64_t pixels;
    int32_t n, c;
};
static_assert(sizeof(LayoutParams) == 32, "as in src/launch/params");

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
    DevicePtr state, eps, x0, noise;
    DevicePtr gate, g;  // both zero: never guided
    DevicePtr z, guided;
    int64_t count, image;
    int32_t scale_log2, pad;
};
static_assert(sizeof(DdimUnguideParams) == 88, "as in src/launch/params");

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
    DevicePtr x, gamma, dy, dx;
    int64_t rows;
    int32_t c;
    float eps;
};
static_assert(sizeof(LayerNormBwdParams) == 48, "as in src/launch/params");

struct GroupNormParams {
    DevicePtr x, gamma, beta, out;
    int32_t n, pixels, c, groups;
    float eps;
    int32_t activation;
};
static_assert(sizeof(GroupNormParams) == 56, "as in src/launch/params");

struct GroupNormBwdParams {
    DevicePtr x, gamma, beta, dy, dx;
    int32_t n, pixels, c, groups;
    float eps;
    int32_t activation;
};
static_assert(sizeof(GroupNormBwdParams) == 64, "as in src/launch/params");

struct GemmParams {
    DevicePtr a, b, bias, residual, d;  // bias, residual: 0 where there is none
    int64_t a_batch, b_batch, d_batch;  // elements between two matrices of the batch
    int64_t b_column, b_k;              // b's element (column, k) is at column * b_column + k * b_k
    int32_t m, n, k, activation;
};
static_assert(sizeof(GemmParams) == 96, "as in src/launch/params");

struct Conv2dParams {
    DevicePtr x, filter, bias, y;  // bias: 0 where there is none
    int32_t n, h, w, c, o, r, s, stride, top, left, height, width;
};
static_assert(sizeof(Conv2dParams) == 80, "as in src/launch/params");

struct AttentionParams {
    DevicePtr q, k, v, o, lse;
    int32_t n, t, u, heads, d, causal;
};
static_assert(sizeof(AttentionParams) == 64, "as in src/launch/params");
