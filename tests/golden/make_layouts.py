"""Writes layouts.json: where matrix instructions keep their elements, as CuTe has it, for tests/kernels/layouts.rs.

The SIMT layer is our reading of the PTX ISA; this is somebody else's. A small C++ program, compiled for the host
against CuTe's headers, prints CuTe's own traits: fragments of mma and wgmma, what ldmatrix moves, the swizzles, and
shared-memory operands of wgmma with the descriptors that CuTe makes for them. No GPU and no nvcc take part.

Written with g++ 12.2 and these wheels, unpacked into a folder that is named as the only argument:
    python3 -m pip install --no-deps --target FOLDER nvidia-cutlass==4.2.0.0 nvidia-cuda-runtime-cu12==12.9.79 \
        nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-cccl-cu12==12.9.27
    python3 tests/golden/make_layouts.py FOLDER

Units: a fragment's element (thread, value) is at thread[thread] + value[value], which counts elements m + rows * k.
ldmatrix counts 16-bit elements. Operands are tables of 16-byte chunks: chunk (i, j) holds the elements 8 i .. 8 i + 7
of the contiguous dimension at j of the other one; `starts` are descriptors' start addresses of every 16 of k.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

PROGRAM = r"""
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
// Addresses of the shared window count from the start of this.
alignas(1024) static unsigned char window[1 << 18];
static size_t __cvta_generic_to_shared(const void* p) { return static_cast<const unsigned char*>(p) - window; }
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1
#include <cute/tensor.hpp>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
using namespace cute;
namespace gmma = SM90::GMMA;

static void list(const char* name, int count, int step, int unit, auto at) {
    printf("\"%s\": [", name);
    for (int i = 0; i < count; ++i) printf("%s%d", i ? ", " : "", int(at(i * step)) / unit);
    printf("]");
}

// A layout of (thread, value) is a sum of one term each.
template <class Layout>
static void fragment(const char* name, Layout layout, int step, int unit, const char* end) {
    const int threads = size<0>(layout), values = size<1>(layout);
    for (int t = 0; t < threads; ++t)
        for (int v = 0; v < values; ++v)
            if (layout(t, v) != layout(t, 0) + layout(0, v)) abort();
    printf("    \"%s\": {", name);
    list("thread", threads, 1, unit, [&](int t) { return layout(t, 0); });
    printf(", ");
    list("value", values / step, step, unit, [&](int v) { return layout(0, v); });
    printf("}%s\n", end);
}

template <class Op>
static void mma(const char* name) {
    using T = MMA_Traits<Op>;
    printf("  \"%s\": {\n", name);
    fragment("a", typename T::ALayout{}, 1, 1, ",");
    fragment("b", typename T::BLayout{}, 1, 1, ",");
    fragment("d", typename T::CLayout{}, 1, 1, "");
    printf("  },\n");
}

template <class Op>
static void wgmma(const char* name, bool registers) {
    using T = MMA_Traits<Op>;
    printf("  \"%s\": {\n", name);
    if (registers) fragment("a", typename T::ALayout{}, 1, 1, ",");
    fragment("d", typename T::CLayout{}, 1, 1, "");
    printf("  },\n");
}

// Bits there, elements of 16 bits here.
template <class Op>
static void ldmatrix(const char* name) {
    using T = Copy_Traits<Op>;
    printf("  \"%s\": {\n", name);
    fragment("row", typename T::SrcLayout{}, 16, 16, ",");
    fragment("register", typename T::DstLayout{}, 16, 16, "");
    printf("  },\n");
}

template <int B>
static void swizzle(const char* name) {
    printf("  ");
    list(name, 64, 16, 16, [](int address) { return Swizzle<B, 4, 3>{}(address); });
    printf(",\n");
}

// A tile [ROWS, K] of f16, in the order of its atoms that STEP gives, and the descriptors of its slices of 16 of k.
template <gmma::Major MAJOR, class Atom, int ROWS, int K, class Step>
static void operand(const char* name, Atom atom, Step step, const char* end = ",") {
    auto layout = tile_to_shape(atom, Shape<Int<ROWS>, Int<K>>{}, step);
    auto tile = make_tensor(make_smem_ptr(reinterpret_cast<half_t*>(window)), layout);
    auto offset = [&](int row, int k) {
        return int(reinterpret_cast<unsigned char*>(raw_pointer_cast(&tile(row, k))) - window);
    };
    auto slice = [&](auto at) { return local_tile(tile, Shape<Int<ROWS>, Int<16>>{}, make_coord(0, at)); };
    const gmma::Major major = MAJOR;
    printf("  \"%s\": {\"rows\": %d, \"k\": %d, \"mn_major\": %d, ", name, ROWS, K, int(major == gmma::Major::MN));
    auto first = gmma::make_gmma_desc<MAJOR>(slice(Int<0>{}));
    printf("\"swizzle\": %d, \"leading\": %d, \"stride\": %d, ", int(first.bitfield.layout_type_),
           int(first.bitfield.leading_byte_offset_), int(first.bitfield.stride_byte_offset_));
    int starts[K / 16];
    for_each(make_int_sequence<K / 16>{}, [&](auto at) {
        auto d = gmma::make_gmma_desc<MAJOR>(slice(at));
        starts[at] = d.bitfield.start_address_;
        d.bitfield.start_address_ = 0;
        first.bitfield.start_address_ = 0;
        if (d.desc_ != first.desc_) abort();
    });
    list("starts", K / 16, 1, 1, [&](int i) { return starts[i]; });
    printf(",\n    ");
    const bool mn = MAJOR == gmma::Major::MN;
    const int others = mn ? K : ROWS;
    for (int row = 0; row < ROWS; ++row)
        for (int k = 0; k < K; ++k)
            if (offset(row, k) != offset(mn ? row / 8 * 8 : row, mn ? k : k / 8 * 8) + (mn ? row : k) % 8 * 2) abort();
    list("chunks", ROWS * K / 8, 1, 16, [&](int i) {
        const int chunk = i / others * 8, other = i % others;
        return mn ? offset(chunk, other) : offset(other, chunk);
    });
    printf("}%s\n", end);
}

int main() {
    printf("{\n");
    mma<SM80_16x8x16_F32F16F16F32_TN>("mma_m16n8k16_f16");
    mma<SM80_16x8x16_F32BF16BF16F32_TN>("mma_m16n8k16_bf16");
    ldmatrix<SM75_U32x2_LDSM_N>("ldmatrix_x2");
    ldmatrix<SM75_U32x4_LDSM_N>("ldmatrix_x4");
    ldmatrix<SM75_U16x4_LDSM_T>("ldmatrix_x2_trans");
    ldmatrix<SM75_U16x8_LDSM_T>("ldmatrix_x4_trans");
    swizzle<0>("swizzle_none");
    swizzle<1>("swizzle_32");
    swizzle<2>("swizzle_64");
    swizzle<3>("swizzle_128");
    constexpr auto K = gmma::Major::K;
    constexpr auto MN = gmma::Major::MN;
    wgmma<SM90_64x8x16_F32F16F16_RS<K, K>>("wgmma_m64n8k16_f16", true);
    wgmma<SM90_64x64x16_F32F16F16_SS<K, K>>("wgmma_m64n64k16_f16", false);
    wgmma<SM90_64x64x16_F32BF16BF16_RS<K, K>>("wgmma_m64n64k16_bf16", true);
    wgmma<SM90_64x256x16_F32F16F16_SS<K, K>>("wgmma_m64n256k16_f16", false);
    operand<K, gmma::Layout_K_SW128_Atom<half_t>, 64, 64>("k_128", {}, Step<_1, _2>{});
    operand<K, gmma::Layout_K_SW64_Atom<half_t>, 64, 64>("k_64", {}, Step<_1, _2>{});
    operand<K, gmma::Layout_K_SW32_Atom<half_t>, 64, 32>("k_32", {}, Step<_1, _2>{});
    operand<K, gmma::Layout_K_INTER_Atom<half_t>, 64, 32>("k_none", {}, Step<_1, _2>{});
    operand<K, gmma::Layout_K_INTER_Atom<half_t>, 64, 32>("k_none_rows_last", {}, Step<_2, _1>{});
    operand<MN, gmma::Layout_MN_SW128_Atom<half_t>, 64, 32>("mn_128", {}, Step<_1, _2>{});
    operand<MN, gmma::Layout_MN_SW128_Atom<half_t>, 128, 32>("mn_128_rows_first", {}, Step<_1, _2>{});
    operand<MN, gmma::Layout_MN_SW128_Atom<half_t>, 128, 32>("mn_128_rows_last", {}, Step<_2, _1>{});
    operand<MN, gmma::Layout_MN_SW64_Atom<half_t>, 64, 32>("mn_64", {}, Step<_2, _1>{});
    operand<MN, gmma::Layout_MN_SW32_Atom<half_t>, 64, 32>("mn_32", {}, Step<_1, _2>{});
    operand<MN, gmma::Layout_MN_INTER_Atom<half_t>, 64, 32>("mn_none", {}, Step<_2, _1>{}, "");
    printf("}\n");
}
"""

packages = pathlib.Path(sys.argv[1])
for wheel in ["nvidia_cutlass-4.2.0.0", "nvidia_cuda_runtime_cu12-12.9.79", "nvidia_cuda_nvcc_cu12-12.9.86",
              "nvidia_cuda_cccl_cu12-12.9.27"]:
    assert (packages / f"{wheel}.dist-info").exists(), f"{wheel} is not in {packages}"
with tempfile.TemporaryDirectory() as folder:
    source, program = pathlib.Path(folder, "layouts.cpp"), pathlib.Path(folder, "layouts")
    source.write_text(PROGRAM)
    includes = ["cutlass_library/source/include", "nvidia/cuda_runtime/include", "nvidia/cuda_nvcc/include",
                "nvidia/cuda_cccl/include"]
    includes = [flag for path in includes for flag in ("-isystem", packages / path)]
    subprocess.run(["g++", "-std=c++20", "-w", *includes, "-o", program, source], check=True)
    text = subprocess.run([program], check=True, capture_output=True, text=True).stdout
json.loads(text)
pathlib.Path(__file__).with_name("layouts.json").write_text(text)
