// ptx_sm90.cuh - one function an instruction of sm_90a: barriers in shared memory, bulk copies of tensors, matrix
// products of a warpgroup. Every function has a host twin, which does what the PTX ISA says and no more: copies and
// products happen as late as somebody waits for them, and are agents of their own in the checks.
//
// Compiled for another GPU, a call is a trap. Kernels that use this file have rows for sm_90a alone.
//
// Order between memory and its users, as the layer reads the ISA:
// - what a thread writes to shared memory is seen by wgmma and by bulk copies once that thread has executed
//   fence_proxy_async after it, and the user is ordered behind the fence by a barrier;
// - what a bulk copy writes is seen by whoever has waited for its mbarrier, each thread for itself;
// - what wgmma reads may be overwritten by whoever is ordered behind wgmma_wait_group of *every* warp of the group;
// - an mbarrier is known to copies once its initialiser has executed fence_mbarrier_init;
// - what a bulk copy reads of shared memory may be overwritten by whoever is ordered behind its thread's
//   cp_async_bulk_wait_group_read; what it writes to global memory is there behind its cp_async_bulk_wait_group.
#pragma once
#include "prelude.cuh"

// A box of a tensor in global memory, as a bulk copy takes it. Opaque; stands in params, 64 bytes aligned.
struct alignas(64) TensorMap {
    uint64_t word[16];
};
static_assert(sizeof(TensorMap) == 128, "as the driver's");

// How rows of shared memory are permuted: by an exclusive or of the row's number, counted in rows of 128 bytes from
// the shared window's start, with the number of a 16-byte chunk. The values are those of a descriptor.
enum Swizzle { SWIZZLE_NONE = 0, SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };
// The dimension of an operand along which memory is contiguous.
enum Major { K_MAJOR = 0, MN_MAJOR = 1 };

// Where element (row, k) of f16 or bf16 of a wgmma operand in shared memory is, in bytes from `address`, before the
// swizzle; W = 16, 32, 64, 128 bytes for none, 32, 64, 128:
//   K_MAJOR:         row / 8 * stride + row % 8 * W + k * 2        (none: + k / 8 * leading + k % 8 * 2)
//   MN_MAJOR:        row / (W / 2) * leading + row % (W / 2) * 2 + k / 8 * stride + k % 8 * W
//   MN_MAJOR, none:  row / 8 * stride + row % 8 * 2 + k / 8 * leading + k % 8 * 16
// `address` has 16 bytes' alignment, and lies in the first of the rows that a swizzle permutes with each other.
DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t leading, uint32_t stride, Swizzle swizzle) {
    return uint64_t(address >> 4 & 0x3fffu) | uint64_t(leading >> 4 & 0x3fffu) << 16 |
           uint64_t(stride >> 4 & 0x3fffu) << 32 | uint64_t(swizzle) << 62;
}

#ifdef __CUDACC__

// An entry point whose kernel follows the launch in front by itself, with one block an SM at least: setmaxnreg wants to
// know the registers of a thread at entry.
#define SM90_KERNEL_ENTRY(name, threads, Params, ...)                                                 \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Params p) { \
        __VA_ARGS__(p);                                                                               \
    }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SM90_ASM(...) __trap()
#endif

// -- barriers ------------------------------------------------------------------------------------------------

// Barrier `id` (1 to 15) of `threads` threads, whole warps: all wait, or some only arrive.
DEVICE void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// True in one lane of the warp, always the same.
DEVICE bool elect_one() {
    uint32_t elected = 0;
    SM90_ASM("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected != 0;
}
// Registers a thread may use from here on, for all warps of a warpgroup: the consumers get what producers give.
template <int N>
DEVICE void setmaxnreg_inc() {
    SM90_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEVICE void setmaxnreg_dec() {
    SM90_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// An mbarrier is 8 bytes of shared memory. A phase ends when `count` arrivals and all announced bytes have come.
DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t count) {
    SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
}
DEVICE void fence_mbarrier_init() { SM90_ASM("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(uint32_t mbarrier) {
    SM90_ASM("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(mbarrier) : "memory");
}
// Announces bytes of copies, and arrives.
DEVICE void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes) {
    SM90_ASM("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(mbarrier),
             "r"(bytes)
             : "memory");
}
// Waits until the phase of that parity has ended; phases count from 0.
DEVICE void mbarrier_wait_parity(uint32_t mbarrier, uint32_t parity) {
    SM90_ASM(
        "{\n.reg .pred done;\nWAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra WAIT_%=;\n}" ::"r"(mbarrier),
        "r"(parity)
        : "memory");
}

// -- bulk copies ---------------------------------------------------------------------------------------------

DEVICE void fence_proxy_async() { SM90_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void prefetch_tensormap(const TensorMap& map) { SM90_ASM("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// The other way: of the box what the tensor has, from shared memory to there. As with cp.async, a thread's copies since
// the last group make a group, and it waits until at most N of its own are still writing, or still reading.
DEVICE void cp_async_bulk_tensor_store_3d(const TensorMap& map, uint32_t from, int c0, int c1, int c2) {
    SM90_ASM("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map), "r"(from),
             "r"(c0), "r"(c1), "r"(c2)
             : "memory");
}
DEVICE void cp_async_bulk_tensor_store_4d(const TensorMap& map, uint32_t from, int c0, int c1, int c2, int c3) {
    SM90_ASM("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
             "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
             : "memory");
}
DEVICE void cp_async_bulk_commit_group() { SM90_ASM("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
DEVICE void cp_async_bulk_wait_group() {
    SM90_ASM("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
template <int N>
DEVICE void cp_async_bulk_wait_group_read() {
    SM90_ASM("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Brings the map's box into the L2 cache, and nowhere else: a hint. Whatever is written there afterwards, by whomever,
// is what copies will find: all of a GPU's copies and stores meet in that cache.
DEVICE void prefetch_bulk_tensor_2d(const TensorMap& map, int c0, int c1) {
    SM90_ASM("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(c0), "r"(c1) : "memory");
}
DEVICE void prefetch_bulk_tensor_4d(const TensorMap& map, int c0, int c1, int c2, int c3) {
    SM90_ASM("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(c0), "r"(c1),
             "r"(c2), "r"(c3)
             : "memory");
}
// The map's box from the coordinates c0 (innermost) onwards to shared memory, zeros where it leaves the tensor; its
// bytes are counted by the mbarrier. One thread calls it. `to` is aligned to 128 bytes.
DEVICE void cp_async_bulk_tensor_2d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1) {
    SM90_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(to),
        "l"(&map), "r"(mbarrier), "r"(c0), "r"(c1)
        : "memory");
}
DEVICE void cp_async_bulk_tensor_3d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1, int c2) {
    SM90_ASM(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(to),
        "l"(&map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
DEVICE void cp_async_bulk_tensor_4d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1, int c2,
                                    int c3) {
    SM90_ASM(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(to),
        "l"(&map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

// -- fragments -----------------------------------------------------------------------------------------------

// ldmatrix_x4 the other way: register i of all lanes is matrix i, whose row r goes to the address that lane 8 i + r has.
DEVICE void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
    SM90_ASM("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
             "r"(r[2]), "r"(r[3])
             : "memory");
}

// -- products of a warpgroup ---------------------------------------------------------------------------------

// Before the first product, and after any touch of registers that a product uses.
DEVICE void wgmma_fence() { SM90_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit_group() { SM90_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N of the groups that this warp has committed are still being computed.
template <int N>
DEVICE void wgmma_wait_group() {
    SM90_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving uses of registers across this point: beside fences and waits.
template <int R>
DEVICE void keep_registers(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// D [64, N] = A [64, 16] B [N, 16]^T, plus D where `accumulate`; N = 2 R. Of D, thread t of the warpgroup has in d[i]
// the element (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + t % 4 * 2 + i % 2). A and B are descriptors, or
// A is in registers: in a[i], rows as in d[2 i] and depths t % 4 * 2 + i / 2 * 8, two of them.
//   wgmma_m64k16<A, B>(float (&d)[R], uint64_t a, uint64_t b, bool accumulate, T)
//   wgmma_m64k16<B>(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate, T)
#define WGMMA_LIST_4 "%0, %1, %2, %3"
#define WGMMA_LIST_8 WGMMA_LIST_4 ", %4, %5, %6, %7"
#define WGMMA_LIST_16 WGMMA_LIST_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_LIST_20 WGMMA_LIST_16 ", %16, %17, %18, %19"
#define WGMMA_LIST_24 WGMMA_LIST_20 ", %20, %21, %22, %23"
#define WGMMA_LIST_32 WGMMA_LIST_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_LIST_40 WGMMA_LIST_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_LIST_48 WGMMA_LIST_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_LIST_64 WGMMA_LIST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_LIST_80 WGMMA_LIST_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_LIST_96 WGMMA_LIST_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_LIST_128 WGMMA_LIST_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_IO_4 WGMMA_4(0)
#define WGMMA_IO_8 WGMMA_IO_4, WGMMA_4(4)
#define WGMMA_IO_16 WGMMA_IO_8, WGMMA_4(8), WGMMA_4(12)
#define WGMMA_IO_20 WGMMA_IO_16, WGMMA_4(16)
#define WGMMA_IO_24 WGMMA_IO_20, WGMMA_4(20)
#define WGMMA_IO_32 WGMMA_IO_24, WGMMA_4(24), WGMMA_4(28)
#define WGMMA_IO_40 WGMMA_IO_32, WGMMA_4(32), WGMMA_4(36)
#define WGMMA_IO_48 WGMMA_IO_40, WGMMA_4(40), WGMMA_4(44)
#define WGMMA_IO_64 WGMMA_IO_48, WGMMA_4(48), WGMMA_4(52), WGMMA_4(56), WGMMA_4(60)
#define WGMMA_IO_80 WGMMA_IO_64, WGMMA_4(64), WGMMA_4(68), WGMMA_4(72), WGMMA_4(76)
#define WGMMA_IO_96 WGMMA_IO_80, WGMMA_4(80), WGMMA_4(84), WGMMA_4(88), WGMMA_4(92)
#define WGMMA_IO_128 WGMMA_IO_96, WGMMA_4(96), WGMMA_4(100), WGMMA_4(104), WGMMA_4(108), WGMMA_4(112), WGMMA_4(116), \
    WGMMA_4(120), WGMMA_4(124)
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_FORMS(N, R, T, TYPE, O0, O1, O2, O3, O4, O5, O6)                                                       \
    template <Major A, Major B>                                                                                      \
    DEVICE void wgmma_m64k16(float (&d)[R], uint64_t a, uint64_t b, bool accumulate, T) {                            \
        SM90_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O2 ", 0;\n"                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_LIST_##R "}, "           \
                 "%" #O0 ", %" #O1 ", p, 1, 1, %" #O3 ", %" #O4 ";\n}"                                               \
                 : WGMMA_IO_##R                                                                                      \
                 : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(A)), "n"(int(B)));                                  \
    }                                                                                                                \
    template <Major B>                                                                                               \
    DEVICE void wgmma_m64k16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate, T) {                \
        SM90_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O5 ", 0;\n"                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_LIST_##R "}, "           \
                 "{%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", p, 1, 1, %" #O6 ";\n}"                         \
                 : WGMMA_IO_##R                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(B)));           \
    }
#define WGMMA(N, R, ...)                           \
    WGMMA_FORMS(N, R, f16, "f16", __VA_ARGS__)     \
    WGMMA_FORMS(N, R, bf16, "bf16", __VA_ARGS__)
WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10)
WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14)
WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
WGMMA(40, 20, 20, 21, 22, 23, 24, 25, 26)
WGMMA(48, 24, 24, 25, 26, 27, 28, 29, 30)
WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

#else

#define SM90_KERNEL_ENTRY(name, threads, Params, ...)                                                    \
    static void name(const void* p) { __VA_ARGS__(*static_cast<const Params*>(p)); }                     \
    static const simt::Registration name##_registration_(SIMT_VARIANT, #name, name, threads, sizeof(Params));

DEVICE void bar_sync(int id, int threads, SIMT_SITE) { simt::named_barrier(id, threads, true, site); }
DEVICE void bar_arrive(int id, int threads, SIMT_SITE) { simt::named_barrier(id, threads, false, site); }
DEVICE bool elect_one(SIMT_SITE) { return simt::elect(site); }
template <int N>
DEVICE void setmaxnreg_inc() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what the instruction takes");
}
template <int N>
DEVICE void setmaxnreg_dec() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what the instruction takes");
}

DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t count) { simt::mbarrier_init(mbarrier, count); }
DEVICE void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
DEVICE void mbarrier_arrive(uint32_t mbarrier) { simt::mbarrier_arrive(mbarrier, 0); }
DEVICE void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes) { simt::mbarrier_arrive(mbarrier, bytes); }
DEVICE void mbarrier_wait_parity(uint32_t mbarrier, uint32_t parity, SIMT_SITE) {
    simt::mbarrier_wait(mbarrier, parity, site);
}

DEVICE void fence_proxy_async() { simt::fence_proxy_async(); }
DEVICE void prefetch_tensormap(const TensorMap& map) { simt::bulk_prefetch(map.word, 0); }
DEVICE void prefetch_bulk_tensor_2d(const TensorMap& map, int, int) { simt::bulk_prefetch(map.word, 2); }
DEVICE void prefetch_bulk_tensor_4d(const TensorMap& map, int, int, int, int) { simt::bulk_prefetch(map.word, 4); }
DEVICE void cp_async_bulk_tensor_2d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1) {
    const int at[5] = {c0, c1, 0, 0, 0};
    simt::bulk_copy(to, map.word, mbarrier, 2, at);
}
DEVICE void cp_async_bulk_tensor_3d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1, int c2) {
    const int at[5] = {c0, c1, c2, 0, 0};
    simt::bulk_copy(to, map.word, mbarrier, 3, at);
}
DEVICE void cp_async_bulk_tensor_4d(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1, int c2,
                                    int c3) {
    const int at[5] = {c0, c1, c2, c3, 0};
    simt::bulk_copy(to, map.word, mbarrier, 4, at);
}

DEVICE void cp_async_bulk_tensor_store_3d(const TensorMap& map, uint32_t from, int c0, int c1, int c2) {
    const int at[5] = {c0, c1, c2, 0, 0};
    simt::bulk_store(map.word, from, 3, at);
}
DEVICE void cp_async_bulk_tensor_store_4d(const TensorMap& map, uint32_t from, int c0, int c1, int c2, int c3) {
    const int at[5] = {c0, c1, c2, c3, 0};
    simt::bulk_store(map.word, from, 4, at);
}
DEVICE void cp_async_bulk_commit_group() { simt::bulk_commit(); }
template <int N>
DEVICE void cp_async_bulk_wait_group() {
    simt::bulk_wait(N, false);
}
template <int N>
DEVICE void cp_async_bulk_wait_group_read() {
    simt::bulk_wait(N, true);
}
DEVICE void stmatrix_x4(uint32_t address, const uint32_t (&r)[4], SIMT_SITE) { simt::stmatrix(address, r, site); }

DEVICE void wgmma_fence(SIMT_SITE) { simt::wgmma_fence(site); }
DEVICE void wgmma_commit_group(SIMT_SITE) { simt::wgmma_commit(site); }
template <int N>
DEVICE void wgmma_wait_group(SIMT_SITE) {
    simt::wgmma_wait(N, site);
}
template <int R>
DEVICE void keep_registers(float (&)[R]) {}
DEVICE bool is_bf16(f16) { return false; }
DEVICE bool is_bf16(bf16) { return true; }
template <Major A, Major B, int R, typename T>
DEVICE void wgmma_m64k16(float (&d)[R], uint64_t a, uint64_t b, bool accumulate, T, SIMT_SITE) {
    simt::wgmma({d, nullptr, a, b, 2 * R, accumulate, is_bf16(T{}), A == MN_MAJOR, B == MN_MAJOR}, site);
}
template <Major B, int R, typename T>
DEVICE void wgmma_m64k16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate, T, SIMT_SITE) {
    simt::wgmma({d, a, 0, b, 2 * R, accumulate, is_bf16(T{}), false, B == MN_MAJOR}, site);
}

#endif
