//! Mutants of the kernels for sm_90a.

use super::{Mutation, mutation};

pub const MUTATIONS: &[Mutation] = &[
    // -- the ring of the tensor cores, and what becomes of its sums --------------------------------------
    mutation("sm90-queries-of-every-image", "attention_f16_d40k80_sm90", "image % p.q_images", "image"),
    // -- products of sm_90a ------------------------------------------------------------------------------
    mutation("hopper-full-wait", "gemm_f16_m128n64k64s4_sm90", FULL_WAIT, ""),
    mutation(
        "hopper-full-phase",
        "gemm_bwd_f16_m128n64k64s4_sm90",
        FULL_WAIT,
        "mbarrier_wait_parity(cvta_to_shared(&smem.full[at.stage]), 0);",
    ),
    mutation(
        "hopper-empty-phase",
        "gemm_bf16_m128n64k64s4_sm90",
        "(at.round + 1) & 1);",
        "at.round > 0 ? at.round & 1 : 1);",
    ),
    mutation(
        "hopper-initialisation-fence",
        "gemm_f16_m128n64k64s4_sm90",
        "            fence_mbarrier_init();\n",
        "",
    ),
    mutation(
        "hopper-copies-before-the-launch-in-front",
        "gemm_f16_m128n64k64s4_sm90",
        "follow_launch_in_front();\n        sync_block();",
        "if (threadIdx.x < PRODUCER) follow_launch_in_front();\n        sync_block();",
    ),
    mutation(
        "cluster-without-the-launch-in-front",
        "gemm_bf16_m128n160k64s4c4_sm90",
        "        follow_launch_in_front();\n        sync_block();",
        "        sync_block();",
    ),
    mutation(
        "hopper-released-while-read",
        "conv2d_f16_m128n64k64s4_sm90",
        "wgmma_wait_group<1>();",
        "wgmma_wait_group<2>();",
    ),
    mutation("hopper-barrier-before-sums", "gemm_bf16_m128n64k64s4_sm90", STAGED_READ, ""),
    mutation(
        "hopper-results-before-their-rows",
        "gemm_f16_m128n64k64s4_sm90",
        "Warps::sync();  // the whole tile is there",
        "",
    ),
    mutation(
        "hopper-results-unfenced",
        "conv2d_bf16_m128n64k64s4_sm90",
        "fence_proxy_async();\n    Warps::sync();  // the whole tile",
        "Warps::sync();  // the whole tile",
    ),
    mutation(
        "hopper-results-over-those-that-are-read",
        "gemm_bwd_f16_m128n64k64s4_sm90",
        "cp_async_bulk_wait_group_read<1>();",
        "cp_async_bulk_wait_group_read<2>();",
    ),
    mutation(
        "hopper-results-left",
        "conv2d_bwd_f16_m128n64k64s4_sm90",
        "if (threadIdx.x == 0) cp_async_bulk_wait_group<0>();",
        "",
    ),
    mutation(
        "hopper-results-of-another-lane",
        "gemm_f16_m128n160k64s4_sm90",
        "lane / 4 * 4 + lane % 2 * 2;",
        "lane / 4 * 4 + lane % 2;",
    ),
    mutation(
        "hopper-right-edge",
        "conv2d_bf16_m128n64k64s4_sm90",
        "i >= all.lines || j >= all.columns) return -1;",
        "i >= all.lines) return -1;",
    ),
    mutation(
        "hopper-last-images",
        "conv2d_f16_m128n160k64s4c4_sm90",
        "images = left < 0 ? 0 : left < most ? left : most;",
        "images = most;",
    ),
    mutation(
        "cluster-barrier-before-shares",
        "gemm_f16_m128n160k64s4c4_sm90",
        BEFORE_SHARES,
        "    float own",
    ),
    mutation(
        "cluster-barrier-after-shares",
        "gemm_bwd_f16_m128n160k64s4c4_sm90",
        AFTER_SHARES,
        "#pragma unroll\n    for (int i = 0; i < OWN; ++i) {\n        const int quad = int(threadIdx.x) + i * \
         mainloop::CONSUMERS;\n",
    ),
    mutation(
        "cluster-shares-of-one-block",
        "conv2d_bf16_m128n160k64s4c4_sm90",
        "ld_cluster(more, mapa(here, other));",
        "ld_cluster(more, mapa(here, 0));",
    ),
    mutation(
        "cluster-rows-of-the-first",
        "conv2d_bwd_f16_m128n160k64s4c8_sm90",
        "rank * ROWS + row, quad",
        "row, quad",
    ),
    // -- attention of sm_90a -----------------------------------------------------------------------------
    mutation(
        "attention-hopper-full-wait",
        "attention_f16_d40k80_sm90",
        "mbarrier_wait_parity(full + stage * 8, round & 1);",
        "",
    ),
    mutation(
        "attention-hopper-empty-phase",
        "attention_f16_d40k128_sm90",
        "mbarrier_wait_parity(empty + stage * 8, (round + 1) & 1);",
        "mbarrier_wait_parity(empty + stage * 8, round > 0 ? round & 1 : 1);",
    ),
    mutation(
        "attention-hopper-keys-released-while-read",
        "attention_f16_d160k128_sm90",
        "wgmma_wait_group<1>();",
        "wgmma_wait_group<2>();",
    ),
    mutation(
        "attention-hopper-weights-while-read",
        "attention_bf16_d64k128_sm90",
        WAIT_AND_RESCALE,
        "as_operand<T>(weights, s);\n            ring.wait();\n            wgmma_wait_group<0>();",
    ),
    mutation(
        "attention-hopper-key-bound",
        "attention_f16_d64k128_sm90",
        "% 2 >= keys) s[i]",
        "% 2 > keys) s[i]",
    ),
    mutation(
        "attention-hopper-query-bound",
        "attention_bf16_d80k80_sm90",
        "query >= p.t) c",
        "query > p.t) c",
    ),
    mutation(
        "attention-hopper-without-rescaling",
        "attention_f16_d160k80_sm90",
        "rows.o[i] *= rows.shrink[i / 2 % 2];",
        "rows.o[i] *= 1.f;",
    ),
    mutation("attention-bwd-hopper-own-wait", "attention_bwd_f16_d64k64_sm90", "    own.wait();\n", ""),
    mutation(
        "attention-bwd-hopper-scores-wait",
        "attention_bwd_bf16_d64k64_sm90",
        "wgmma_wait_group<0>();\n        keep_registers(s);",
        "wgmma_wait_group<1>();\n        keep_registers(s);",
    ),
    mutation(
        "attention-bwd-hopper-row-bound",
        "attention_bwd_f16_d64k64_sm90",
        "if (row >= rows) continue;",
        "if (row > rows) continue;",
    ),
    mutation(
        "attention-bwd-hopper-unscaled",
        "attention_bwd_f16_d64k64_sm90",
        "scaling::power_of(head.peak[row])",
        "1.f",
    ),
    mutation(
        "attention-bwd-hopper-unscaled-keys",
        "attention_bwd_f16_d64k64_sm90",
        "scaling::power_of(head.largest(p.t))",
        "1.f",
    ),
    mutation(
        "cluster-last-images",
        "conv2d_f16_m128n160k64s4c4_sm90",
        "left < 0 ? 0 : left < ROWS ? left : ROWS,",
        "left < 0 ? 0 : ROWS,",
    ),
];

const WAIT_AND_RESCALE: &str = "ring.wait();\n            wgmma_wait_group<0>();";
const FULL_WAIT: &str = "mbarrier_wait_parity(cvta_to_shared(&smem.full[at.stage]), at.round & 1);";
const STAGED_READ: &str = "Warps::sync();  // what was staged last has been read, by copies what was before";
const BEFORE_SHARES: &str = "    cluster_arrive();\n    cluster_wait();\n    float own";
const AFTER_SHARES: &str = "    cluster_arrive();\n    cluster_wait();\n#pragma unroll\n    for (int i = 0; i < OWN; \
                            ++i) {\n        const int quad = int(threadIdx.x) + i * mainloop::CONSUMERS;\n";
