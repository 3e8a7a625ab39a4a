// probes_layouts - one instruction each, its operands and results laid bare: what tests/kernels/layouts.rs compares
// with somebody else's tables. None of them ships.
#include "params.cuh"
#include "ptx_sm90.cuh"

namespace probes_layouts {

struct Rows {
    uint16_t half[32][8];
};

// Row i of 16 bytes, x[8 i ..], is what lane i points to; out [32, 8] is what the registers hold. c: 0 x4, 1 x4.trans,
// 2 x2, 3 x2.trans.
__device__ void moves(const PointwiseParams& p) {
    SHARED(Rows, rows);
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; ++i) rows.half[lane][i] = p.x.as<uint16_t>()[lane * 8 + i];
    sync_block();
    uint32_t four[4] = {0, 0, 0, 0}, two[2] = {0, 0};
    const uint32_t address = cvta_to_shared(&rows.half[p.c < 2 ? lane : lane % 16]);
    if (p.c == 0) ldmatrix_x4(four, address);
    if (p.c == 1) ldmatrix_x4_trans(four, address);
    if (p.c == 2) ldmatrix_x2(two, address);
    if (p.c == 3) ldmatrix_x2_trans(two, address);
    for (int i = 0; i < 8; ++i) {
        const uint32_t r = p.c < 2 ? four[i / 2] : i < 4 ? two[i / 2] : 0u;
        p.out.as<uint16_t>()[lane * 8 + i] = uint16_t(r >> i % 2 * 16);
    }
}

// x [32, 8] is what the registers hold; out [32, 8] are rows of 16 bytes, of which lane i points to row i.
__device__ void stores(const PointwiseParams& p) {
    SHARED(Rows, rows);
    const int lane = threadIdx.x;
    uint32_t r[4];
    for (int i = 0; i < 4; ++i) r[i] = p.x.as<uint32_t>()[lane * 4 + i];
    stmatrix_x4(cvta_to_shared(&rows.half[lane]), r);
    sync_block();
    for (int i = 0; i < 8; ++i) p.out.as<uint16_t>()[lane * 8 + i] = rows.half[lane][i];
}

// x [32, 4] and y [32, 2]: the registers of A and B; out [32, 4]: those of D. c: 0 f16, 1 bf16.
__device__ void multiplies(const PointwiseParams& p) {
    const int lane = threadIdx.x;
    uint32_t a[4], b[2];
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    for (int i = 0; i < 4; ++i) a[i] = p.x.as<uint32_t>()[lane * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = p.y.as<uint32_t>()[lane * 2 + i];
    if (p.c == 0) mma_m16n8k16(d, a, b, f16{0});
    if (p.c == 1) mma_m16n8k16(d, a, b, bf16{0});
    for (int i = 0; i < 4; ++i) p.out.as<float>()[lane * 4 + i] = d[i];
}

struct WgmmaParams {
    DevicePtr a, b;  // bytes of operands in shared memory, 32 KiB each; a: or registers [128, 4]
    DevicePtr out;   // [128, R], the registers of D
    uint64_t a_desc, b_desc;  // as if both began at 0
};
static_assert(sizeof(WgmmaParams) == 40, "as in tests/kernels/layouts.rs");
constexpr int OPERAND = 32768;
struct Operands {
    uint32_t a[OPERAND / 4], b[OPERAND / 4];
};

template <int R, Major A, Major B, bool REGISTERS, typename T>
__device__ void multiplies_as_a_group(const WgmmaParams& p) {
    DYNAMIC_SHARED(Operands, smem);
    const int t = threadIdx.x;
    for (int i = t; i < OPERAND / 4; i += 128) {
        if (!REGISTERS) smem.a[i] = p.a.as<uint32_t>()[i];
        smem.b[i] = p.b.as<uint32_t>()[i];
    }
    fence_proxy_async();
    sync_block();
    float d[R];
    for (int i = 0; i < R; ++i) d[i] = 0.f;
    const uint64_t a_desc = p.a_desc + (cvta_to_shared(smem.a) >> 4), b_desc = p.b_desc + (cvta_to_shared(smem.b) >> 4);
    uint32_t a[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4 && REGISTERS; ++i) a[i] = p.a.as<uint32_t>()[t * 4 + i];
    wgmma_fence();
    if constexpr (REGISTERS)
        wgmma_m64k16<B>(d, a, b_desc, true, T{});
    else
        wgmma_m64k16<A, B>(d, a_desc, b_desc, true, T{});
    wgmma_commit_group();
    wgmma_wait_group<0>();
    keep_registers(d);
    for (int i = 0; i < R; ++i) p.out.as<float>()[t * R + i] = d[i];
}

}  // namespace probes_layouts

KERNEL_ENTRY(probe_ldmatrix, 32, PointwiseParams, probes_layouts::moves)
KERNEL_ENTRY(probe_stmatrix, 32, PointwiseParams, probes_layouts::stores)
KERNEL_ENTRY(probe_mma, 32, PointwiseParams, probes_layouts::multiplies)
#define WGMMA_PROBE(name, R, A, B, REGISTERS, T)          \
    KERNEL_ENTRY(name, 128, probes_layouts::WgmmaParams, \
                 probes_layouts::multiplies_as_a_group<R, A, B, REGISTERS, T>)
WGMMA_PROBE(probe_wgmma_n64_k_k_f16, 32, K_MAJOR, K_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n64_k_mn_f16, 32, K_MAJOR, MN_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n64_mn_k_f16, 32, MN_MAJOR, K_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n64_mn_mn_f16, 32, MN_MAJOR, MN_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n64_k_k_bf16, 32, K_MAJOR, K_MAJOR, false, bf16)
WGMMA_PROBE(probe_wgmma_n128_k_mn_f16, 64, K_MAJOR, MN_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n8_k_k_f16, 4, K_MAJOR, K_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n256_k_k_f16, 128, K_MAJOR, K_MAJOR, false, f16)
WGMMA_PROBE(probe_wgmma_n64_registers_k_f16, 32, K_MAJOR, K_MAJOR, true, f16)
WGMMA_PROBE(probe_wgmma_n64_registers_k_bf16, 32, K_MAJOR, K_MAJOR, true, bf16)
WGMMA_PROBE(probe_wgmma_n40_registers_mn_f16, 20, K_MAJOR, MN_MAJOR, true, f16)
WGMMA_PROBE(probe_wgmma_n80_registers_mn_f16, 40, K_MAJOR, MN_MAJOR, true, f16)
