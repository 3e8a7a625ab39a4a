//! Mutants: a kernel with one barrier, bound, wait or guard weakened. The build compiles them, and
//! `tests/mutations.rs` wants every one of them caught.

#[path = "mutations_sm90.rs"]
mod sm90;

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

/// All of them.
pub fn mutations() -> impl Iterator<Item = &'static Mutation> {
    MUTATIONS.iter().chain(sm90::MUTATIONS)
}

const MUTATIONS: &[Mutation] = &[
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
    mutation("partials-too-many", "group_norm_bf16", "lane < THREADS / 32 ?", "lane < THREADS / 32 + 1 ?"),
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
    // -- the ring of the tensor cores, and what becomes of its sums --------------------------------------
    mutation(
        "ring-wait-for-one-stage-less",
        "gemm_f16_m64n64k32s4",
        "cp_async_wait_group<STAGES - 2>();",
        "cp_async_wait_group<STAGES - 1>();",
    ),
    mutation(
        "ring-barrier-of-a-step",
        "gemm_bwd_f16_m64n64k32s4",
        "cp_async_wait_group<STAGES - 2>();\n                sync_block();",
        "cp_async_wait_group<STAGES - 2>();",
    ),
    mutation(
        "ring-barrier-behind-the-last-step",
        "gemm_f16_m64n64k32s4",
        "cp_async_wait_group<0>();\n        sync_block();",
        "cp_async_wait_group<0>();",
    ),
    mutation(
        "ring-fills-what-is-read",
        "gemm_bf16_m64n64k32s4",
        "fill(step + STAGES - 1, free, free + A::BYTES);",
        "fill(step + STAGES - 1, step > 0 ? full : free, free + A::BYTES);",
    ),
    mutation(
        "product-depth-bound",
        "gemm_bf16_m64n64k32s4",
        "const bool in = row < rows.count && chunk * 8 < left;",
        "const bool in = row < rows.count;",
    ),
    mutation(
        "product-row-bound",
        "gemm_bwd_bf16_m64n64k32s4",
        "const bool in = row < rows.count && chunk * 8 < left;",
        "const bool in = chunk * 8 < left;",
    ),
    mutation("epilogue-barrier-before-rows", "gemm_f16_m64n64k32s4", BEFORE_ROWS, BEFORE_ROWS_GONE),
    mutation("epilogue-barrier-before-statistics", "gemm_bf16_m64n64k32s4", BEFORE_STATS, BEFORE_STATS_GONE),
    mutation("epilogue-row-bound", "gemm_f16_m64n64k32s4", "rows - first > M ? M : rows - first", "M"),
    mutation("residual-of-every-row", "gemm_f16_m64n64k32s4", " % uint32_t(e.residual_rows)", ""),
    mutation("queries-of-other-images", "attention_f16_d40", "z % p.q_images", "z / p.q_images"),
    // -- sums whose depth blocks share -------------------------------------------------------------------
    mutation(
        "split-barrier-before-count",
        "gemm_bwd_f16_m64n64k32s4",
        "Warps::sync();  // all of it is stored, and the stage is free",
        "",
    ),
    mutation(
        "split-barrier-behind-count",
        "conv2d_bwd_f16_m64n64k32s4",
        "Warps::sync();  // how many came before",
        "",
    ),
    mutation("split-barrier-before-sums", "conv2d_f16_m64n64k32s4", "Warps::sync();  // everybody knows", ""),
    mutation(
        "split-adds-before-the-last",
        "conv2d_bf16_m64n64k32s4",
        "const bool is_last = *before == uint32_t(parts - 1);",
        "const bool is_last = *before + 2 >= uint32_t(parts);",
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
    mutation(
        "gemm-row-bound",
        "gemm_bf16",
        "const bool in = i < p.m && j < p.n;",
        "const bool in = j < p.n;",
    ),
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
        "geglu-bwd-pairs-one-too-many",
        "geglu_bwd_f16_pairs",
        "i < p.count; i += grid_threads()) {\n        float at[4], slopes[4];",
        "i <= p.count; i += grid_threads()) {\n        float at[4], slopes[4];",
    ),
    mutation(
        "geglu-bwd-pairs-reaches-over-the-next",
        "geglu_bwd_bf16_pairs",
        "float at[4], slopes[4];\n        load_vector<2>(at, x + 2 * i);",
        "float at[4], slopes[4];\n        load_vector<4>(at, x + 2 * i);",
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
    mutation(
        "conv2d-tile-right-edge",
        "conv2d_f16_m64n64k32s4",
        "j >= x.low && j < x.high;",
        "j >= x.low && j <= x.high;",
    ),
    // The filter is zero there, but what it is multiplied with lies beyond the image.
    mutation(
        "conv2d-tile-channel-bound",
        "conv2d_bf16_m64n64k32s4",
        "in = pixels.at[i] >= 0 && channel < channels;",
        "in = pixels.at[i] >= 0;",
    ),
    // Nobody stores what these rows make.
    mutation(
        "conv2d-tile-filter-bound",
        "conv2d_f16_m64n64k32s4",
        "in = row < filters && channel < channels;",
        "in = channel < channels;",
    ),
    mutation(
        "conv2d-bwd-tile-filter-bound",
        "conv2d_bwd_f16_m64n64k32s4",
        "in = chunk * 8 < columns && o < p.o;",
        "in = chunk * 8 < columns;",
    ),
    mutation(
        "conv2d-bwd-tile-last-line",
        "conv2d_bwd_bf16_m64n64k32s4",
        "ends = type == 0 && kinds == 3;",
        "ends = false;",
    ),
    mutation(
        "conv2d-bwd-tile-wait",
        "conv2d_bwd_f16_m64n64k32s4",
        "cp_async_wait_group<STAGES - 2>();",
        "cp_async_wait_group<STAGES - 1>();",
    ),
    mutation(
        "channels-of-the-next-image",
        "add_channels_f16_v8",
        "p.image > 0 ? i / p.image * p.c : 0",
        "p.image > 0 ? (i / p.image + 1) * p.c : 0",
    ),
    mutation(
        "conv2d-gather-stage-barrier",
        "conv2d_f16_gather_m64n64",
        "sync_block();  // the stage is full",
        "",
    ),
    mutation(
        "conv2d-gather-barrier-behind-the-last-step",
        "conv2d_bwd_bf16_gather_m64n64",
        "            Tile::template multiply<T>(acc, f);\n        }\n    }\n    sync_block();",
        "            Tile::template multiply<T>(acc, f);\n        }\n    }",
    ),
    mutation(
        "conv2d-gather-right-edge",
        "conv2d_bf16_gather_m64n64",
        "j >= x.low && j < x.high;",
        "j >= x.low && j <= x.high;",
    ),
    mutation(
        "conv2d-gather-filter-bound",
        "conv2d_f16_gather_m64n64",
        "row < filters ? depth - k : 0",
        "depth - k",
    ),
    mutation(
        "conv2d-gather-bwd-depth-bound",
        "conv2d_bwd_f16_gather_m64n64",
        "k < depth && column < p.c",
        "column < p.c",
    ),
    mutation(
        "patches-bwd-column-bound",
        "conv2d_bwd_f16_patches_m64n64",
        "o < p.o ? p.c - column : 0",
        "o < p.o ? 8 : 0",
    ),
    mutation(
        "patches-bwd-row-bound",
        "conv2d_bwd_bf16_patches_m64n64",
        "A::row(i) < rows && k < p.o",
        "k < p.o",
    ),
    mutation(
        "conv2d-narrow-barrier-of-a-step",
        "conv2d_f16_n8",
        "cp_async_wait_group<STAGES - 2>();\n        sync_block();",
        "cp_async_wait_group<STAGES - 2>();",
    ),
    mutation(
        "conv2d-narrow-wait",
        "conv2d_bf16_n8",
        "cp_async_wait_group<STAGES - 2>();\n        sync_block();",
        "cp_async_wait_group<STAGES - 1>();\n        sync_block();",
    ),
    mutation(
        "conv2d-narrow-channel-bound",
        "conv2d_f16_n8",
        "in = at[i] >= 0 && channel < from.channels;",
        "in = at[i] >= 0;",
    ),
    mutation(
        "conv2d-narrow-bwd-empty-columns",
        "conv2d_bwd_f16_n8",
        "column < p.c && o < filters ?",
        "o < filters ?",
    ),
    mutation(
        "conv2d-narrow-bwd-margin",
        "conv2d_bwd_bf16_n8",
        "column >= 0 && column < from.columns;",
        "column >= 0 && column <= from.columns;",
    ),
    mutation("resample-clamp", "resample_f16", "at >= size ? size - 1 : at", "at > size ? size - 1 : at"),
    // -- attention by tiles ------------------------------------------------------------------------------
    mutation(
        "attention-mma-barrier",
        "attention_f16_d40",
        "        sync_block();\n        load(step + STAGES - 1);",
        "        load(step + STAGES - 1);",
    ),
    mutation("attention-mma-wait", "attention_bf16_d80", "group<STAGES - 2>();", "group<STAGES - 1>();"),
    mutation("attention-mma-key-bound", "attention_f16_d64", "column < keys &&", "column <= keys &&"),
    mutation("attention-mma-causal", "attention_f16_d160", "column <= ahead + m", "column < ahead + m"),
    mutation(
        "attention-dkv-barrier",
        "attention_bwd_dkv_f16_d64",
        "        sync_block();\n        load(tile + STAGES - 1);",
        "        load(tile + STAGES - 1);",
    ),
    mutation(
        "attention-dkv-query-bound",
        "attention_bwd_dkv_bf16_d80",
        "+ i, row = query < p.t ? query : p.t - 1;",
        "+ i, row = query;",
    ),
    mutation(
        "attention-dq-without-scale",
        "attention_bwd_dq_f16_d40",
        "power[h] = scaling::power_of(head.peak[row]);",
        "power[h] = 1.f;",
    ),
    mutation(
        "attention-product-tile-wait",
        "attention_product_nt_f16_m128n128k32s3",
        "group<STAGES - 2>();",
        "group<STAGES - 1>();",
    ),
    mutation(
        "attention-product-tile-depth",
        "attention_product_nn_bf16_m128n128k32s3",
        "left < 8 ? int(left) * 2 : 16",
        "16",
    ),
    mutation(
        "attention-product-barrier-before-next-tile",
        "attention_product_nt_f16",
        "smem.b[fast][k];\n        sync_block();",
        "smem.b[fast][k];\n",
    ),
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

const BEFORE_ROWS: &str = "(stage, row, column)) = pair;\n            }\n    Warps::sync();";
const BEFORE_ROWS_GONE: &str = "(stage, row, column)) = pair;\n            }";
const BEFORE_STATS: &str = "    Warps::sync();\n\n    // 2. The statistics";
const BEFORE_STATS_GONE: &str = "    // 2. The statistics";
const LEADING: &str = "sync_block();  // the partials of an earlier call may still be read";
const TRAILING: &str = "partials.of_warp[warp] = value;\n    sync_block();";
const TRAILING_GONE: &str = "partials.of_warp[warp] = value;\n";
const TRAILING_WARP: &str = "partials.of_warp[warp] = value;\n    sync_warp();";
