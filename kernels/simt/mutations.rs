//! Mutants: a kernel with one barrier, bound, wait or guard weakened. The build compiles them, and
//! `tests/mutations.rs` wants every one of them caught.

/// One change of one kernel.
pub struct Mutation {
    pub name: &'static str,
    /// The row of the manifest that is changed.
    pub kernel: &'static str,
    /// Occurs once in the kernel's file and what it includes.
    pub find: &'static str,
    pub replace: &'static str,
}

const fn mutation(
    name: &'static str,
    kernel: &'static str,
    find: &'static str,
    replace: &'static str,
) -> Mutation {
    Mutation { name, kernel, find, replace }
}

pub const MUTATIONS: &[Mutation] = &[
    // -- barriers of the reduction, in every kernel that reduces -----------------------------------------
    mutation("layer-norm-leading-barrier", "layer_norm_f16", LEADING, ""),
    mutation("layer-norm-trailing-barrier", "layer_norm_f16", TRAILING, TRAILING_GONE),
    mutation("layer-norm-bwd-leading-barrier", "layer_norm_bwd_f16", LEADING, ""),
    mutation("layer-norm-bwd-trailing-barrier", "layer_norm_bwd_f16", TRAILING, TRAILING_GONE),
    mutation("group-norm-leading-barrier", "group_norm_f16", LEADING, ""),
    mutation("group-norm-trailing-barrier", "group_norm_f16", TRAILING, TRAILING_GONE),
    mutation("group-norm-bwd-leading-barrier", "group_norm_bwd_f16", LEADING, ""),
    mutation("clip-cosine-reduction-barrier", "clip_cosine_f16", LEADING, ""),
    mutation("warp-barrier-for-block", "layer_norm_bf16", TRAILING, TRAILING_WARP),
    mutation(
        "partials-one-too-many",
        "group_norm_bf16",
        "lane < THREADS / 32 ?",
        "lane < THREADS / 32 + 1 ?",
    ),
    mutation(
        "every-lane-writes-its-partial",
        "layer_norm_bwd_bf16",
        "if (lane == 0) partials",
        "if (lane <= 1) partials",
    ),
    mutation(
        "divergent-shuffle",
        "layer_norm_f16",
        "value = warp_reduce<Join>(value);",
        "if (lane < 16) value = warp_reduce<Join>(value);",
    ),
    mutation(
        "divergent-barrier",
        "group_norm_f16",
        "sync_block();  // the partials",
        "if (warp != 1) sync_block();  // the partials",
    ),
    // -- barriers around tiles ---------------------------------------------------------------------------
    mutation(
        "gemm-barrier-before-product",
        "gemm_f16",
        "        sync_block();\n\n        // 2. Their",
        "\n\n        // 2. Their",
    ),
    mutation(
        "gemm-barrier-before-next-tile",
        "gemm_f16",
        "smem.b[column][k];\n        sync_block();",
        "smem.b[column][k];\n",
    ),
    mutation(
        "clip-cosine-scores-barrier",
        "clip_cosine_f16",
        "    sync_block();\n\n    // 3. The density",
        "\n\n    // 3. The density",
    ),
    mutation(
        "clip-cosine-weights-barrier",
        "clip_cosine_bf16",
        "const bool usable = p.reduce == LOG_MEAN ? mean > FLOOR : logs_fail == 0.f;\n    sync_block();",
        "const bool usable = p.reduce == LOG_MEAN ? mean > FLOOR : logs_fail == 0.f;\n",
    ),
    mutation(
        "clip-cosine-all-write-scores",
        "clip_cosine_bf16",
        "        if (threadIdx.x == 0) {\n            smem",
        "        if (threadIdx.x <= 1) {\n            smem",
    ),
    mutation(
        "clip-cosine-two-write-the-gate",
        "clip_cosine_f16",
        "if (threadIdx.x == 0) {\n        p.gate",
        "if (threadIdx.x <= 1) {\n        p.gate",
    ),
    mutation("attention-two-write-the-lse", "attention_f16", "if (lane == 0) p.lse", "if (lane <= 1) p.lse"),
    mutation(
        "blocks-share-their-pixels",
        "upsample_bwd_f16",
        "int64_t(blockIdx.x) * blockDim.x + threadIdx.x",
        "int64_t(blockIdx.x / 2) * blockDim.x + threadIdx.x",
    ),
    // -- tiles of a group norm ---------------------------------------------------------------------------
    mutation(
        "group-tiles-barrier",
        "group_norm_tiles_f16",
        "    sync_block();\n\n    // 3. The warps",
        "\n\n    // 3. The warps",
    ),
    mutation(
        "group-apply-barrier",
        "group_norm_apply_f16",
        "    sync_block();\n\n    // 2. Each thread eight",
        "\n\n    // 2. Each thread eight",
    ),
    mutation(
        "group-tiles-bwd-barrier",
        "group_norm_tiles_bwd_f16_silu",
        "    sync_block();\n\n    // 3. A warp a group",
        "\n\n    // 3. A warp a group",
    ),
    mutation(
        "group-apply-bwd-warp-barrier",
        "group_norm_apply_bwd_f16_silu",
        "    sync_block();\n\n    // 2. Each thread its pixels.\n    if (o.idle)",
        "    sync_warp();\n\n    // 2. Each thread its pixels.\n    if (o.idle)",
    ),
    mutation(
        "group-tiles-end",
        "group_norm_tiles_bf16",
        "const int end = first + p.rows < p.pixels ? first + p.rows : p.pixels;",
        "const int end = first + p.rows;",
    ),
    mutation(
        "group-boundary",
        "group_norm_apply_f16_silu",
        "const bool second = channel >= p.c1;",
        "const bool second = channel > p.c1;",
    ),
    mutation(
        "group-last-tile-weighs-full",
        "group_norm_apply_bf16_silu",
        "f(float(left < of.rows ? left : of.rows), at[0], at[1])",
        "f(float(of.rows), at[0], at[1])",
    ),
    mutation(
        "group-fold-bound",
        "group_norm_fold_f32",
        "tile < first + p.times && tile < from",
        "tile < first + p.times",
    ),
    mutation(
        "layer-norm-lane-bound",
        "layer_norm_f16_c512",
        "(32 * i + lane) < p.c) own",
        "(32 * i + lane) <= p.c) own",
    ),
    // -- bounds ------------------------------------------------------------------------------------------
    mutation("gemm-row-bound", "gemm_bf16", "if (i >= p.m || j >= p.n) continue;", "if (j >= p.n) continue;"),
    mutation("gemm-a-bound", "gemm_bf16", "row0 + line < p.m && k < p.k,", "k < p.k,"),
    mutation(
        "gemm-depth-bound",
        "gemm_f16",
        "b_in = column0 + line < p.n && k < p.k",
        "b_in = column0 + line < p.n",
    ),
    mutation(
        "add-one-too-many",
        "add_f16",
        "i < p.count; i += grid_threads())\n        out[i] = from_f32<T>(to_f32(x[i]) + to_f32(y[i]))",
        "i <= p.count; i += grid_threads())\n        out[i] = from_f32<T>(to_f32(x[i]) + to_f32(y[i]))",
    ),
    mutation(
        "grid-stride-of-a-block",
        "affine_f16",
        "return int64_t(gridDim.x) * blockDim.x;",
        "return int64_t(blockDim.x);",
    ),
    mutation(
        "attention-key-bound",
        "attention_f16",
        "const bool inside = first + lane < keys;",
        "const bool inside = first + lane <= keys;",
    ),
    mutation(
        "attention-query-bound",
        "attention_f16",
        "if (query >= p.t) return;",
        "if (query > p.t) return;",
    ),
    mutation("conv2d-right-edge", "conv2d_f16", "column >= p.w) continue;", "column > p.w) continue;"),
    mutation("place-length", "place_f16", "at >= 0 && at < p.len", "at >= 0 && at <= p.len"),
    mutation(
        "eights-rest-one-too-many",
        "add_f16_v8",
        "if (i < count) out[i] = from_f32<T>(f(to_f32(x[i]), to_f32(y[i])))",
        "if (i <= count) out[i] = from_f32<T>(f(to_f32(x[i]), to_f32(y[i])))",
    ),
    mutation("resample-clamp", "resample_f16", "at >= size ? size - 1 : at", "at > size ? size - 1 : at"),
    // -- guards ------------------------------------------------------------------------------------------
    mutation(
        "gate-multiplied",
        "ddim_unguide_f16",
        "open ? x0[i] - strength * to_f32(g[i]) : x0[i]",
        "x0[i] - (open ? strength : 0.f) * to_f32(g[i])",
    ),
    mutation("window-ignored", "ddim_unguide_f16", "gate != nullptr && s.window &&", "gate != nullptr &&"),
    mutation("noise-always-read", "ddim_unguide_f16", "if (s.sigma > 0.f) next", "next"),
    mutation(
        "every-step-draws-the-same",
        "ddim_unguide_f16",
        "uint64_t(p.draw + s.step)",
        "uint64_t(p.draw)",
    ),
    mutation(
        "gate-shut-on-nan",
        "clip_cosine_f16",
        "if (!(s < state.threshold)) opens",
        "if (s >= state.threshold) opens",
    ),
];

const LEADING: &str = "sync_block();  // the partials of an earlier call may still be read";
const TRAILING: &str = "partials.of_warp[warp] = value;\n    sync_block();";
const TRAILING_GONE: &str = "partials.of_warp[warp] = value;\n";
const TRAILING_WARP: &str = "partials.of_warp[warp] = value;\n    sync_warp();";
