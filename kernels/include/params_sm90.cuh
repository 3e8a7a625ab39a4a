// params_sm90.cuh - structs of kernels for sm_90a. As in params.cuh, but that tensor maps stand at the end, at a
// multiple of their alignment: who launches makes them, for the addresses that stand at the beginning, by what
// src/launch/params says of them.
#pragma once
#include "params.cuh"
#include "ptx_sm90.cuh"

// Right operands (b, filter) are weights: no launch of a program writes them, so that kernels bring some of them into
// the L2 cache before the launch in front has ended.

struct GemmSm90Params {
    DevicePtr a, b, d;
    DevicePtr sums;     // f32 [splits, m, n]: takes the parts of the sums first; or 0
    DevicePtr arrived;  // u32, one for 128 rows of a tile, all zero before and after; or 0
    Epilogue epilogue;
    int64_t a_row, b_row, d_row;  // elements between two rows as they are stored
    int32_t m, n, k;
    int32_t k_split;  // of k for a split; with sums
    TensorMap a_map;  // [m, k], boxes of 128 x 64
    TensorMap b_map;  // [n, k], boxes of N x 64; by rows [k, n], boxes of 64 x a span of columns
    TensorMap d_map;  // [images, rows of one, n], boxes of 1 x 128 x a span; where results leave in boxes
};
static_assert(sizeof(GemmSm90Params) == 512, "as in src/launch/params");

// A slab of 128 pixels is a box of 2^x_bits columns, 2^y_bits lines and as many images as are left.
struct Conv2dSm90Params {
    DevicePtr x, x2, filter, y;  // x2: 0 where there is one source
    DevicePtr sums;              // f32 [splits, n, height, width, o]: takes the parts of the sums first; or 0
    DevicePtr arrived;           // u32, one a slab and tile of channels, all zero before and after; or 0
    Epilogue epilogue;
    int32_t n, h, w, c, c2, o, r, s;
    int32_t top, left, height, width;
    int32_t kinds;               // of lines and of columns of y that are slabs of their own: 1, or 2
    int32_t splits, x_bits, y_bits;
    int32_t up;                  // with 2 kinds: 1 where they have one filter, 0 where each has its own (sub-pixel)
    int32_t pad[7];
    TensorMap x_map, x2_map;     // [n, h, w, c], boxes of a slab x 64
    TensorMap filter_map;        // [filters, o, r s, c + c2], boxes of 1 x N x 1 x 64
    TensorMap y_map[4];          // of every kind of pixel, boxes of a slab x a span; where results leave in boxes
};
static_assert(sizeof(Conv2dSm90Params) == 1088, "as in src/launch/params");

struct Conv2dBwdSm90Params {
    DevicePtr dy, filter, dx;
    DevicePtr sums;              // f32 [splits, n, h, w, c]: takes the parts of the sums first; or 0
    DevicePtr arrived;           // as in Conv2dSm90Params
    Epilogue epilogue;
    int32_t n, h, w, channels, first, c, o, r, s;
    int32_t top, left, height, width;
    int32_t kinds, splits, x_bits, y_bits, up;
    int32_t pad[8];
    TensorMap dy_map[4];         // of every kind of pixel, [n, height / kinds, width / kinds, o], boxes of a slab x 64
    TensorMap filter_map;        // [filters, o, r s, channels], boxes of 1 x 64 x 1 x SPAN
    TensorMap dx_map;            // [n, h, w, c], boxes of a slab x a span; where results leave in boxes
};
static_assert(sizeof(Conv2dBwdSm90Params) == 960, "as in src/launch/params");

struct AttentionSm90Params {
    DevicePtr q, k, v, o, lse;
    int32_t q_row, k_row, v_row, o_row;  // elements between two tokens
    int32_t n, t, u, heads, d;
    int32_t q_images;        // as in AttentionParams
    int32_t pad[12];
    TensorMap q_map;         // [n, t, heads, d], boxes of 1 x 128 x 1 x a span of channels
    TensorMap k_map, v_map;  // [n, u, heads, d], boxes of 1 x KEYS x 1 x a span
};
static_assert(sizeof(AttentionSm90Params) == 512, "as in src/launch/params");

struct AttentionBwdSm90Params {
    DevicePtr q, k, v, d_o, lse;
    DevicePtr delta, peak;  // f32 [n, heads, t]
    DevicePtr dq, dk, dv;   // dk and dv: or 0, where they are not wanted
    int32_t q_row, k_row, v_row, d_o_row, dq_row, dk_row, dv_row;  // elements between two tokens
    int32_t n, t, u, heads, d;
    TensorMap q_map, d_o_map;  // [n, t, heads, d], boxes of 1 x 64 x 1 x 64
    TensorMap k_map, v_map;    // [n, u, heads, d], likewise
};
static_assert(sizeof(AttentionBwdSm90Params) == 640, "as in src/launch/params");
