// ptx_sm80.cuh - one function an instruction of sm_80, named after it. The only file with asm; every function
// has a host twin beside it that does what the PTX ISA says, element for element.
#pragma once

#ifdef __CUDACC__

DEVICE float cvt_f32_f16(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE float cvt_f32_bf16(uint16_t h) {
    float f;
    asm("mov.b32 %0, {%1, %2};" : "=f"(f) : "h"(uint16_t(0)), "h"(h));
    return f;
}
DEVICE uint16_t cvt_rn_f16_f32(float f) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE uint16_t cvt_rn_bf16_f32(float f) {
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
// Two numbers in one word, `low` in its lower half.
DEVICE uint32_t cvt_rn_f16x2_f32(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE uint32_t cvt_rn_bf16x2_f32(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// 2^x within 2 units in the last place; results below the normal numbers are zero.
DEVICE float ex2_approx_ftz_f32(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rcp_approx_ftz_f32(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// The address in the shared window.
DEVICE uint32_t cvta_to_shared(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// 16 bytes to shared memory, the last 16 - `bytes` of them zero.
DEVICE void cp_async_cg16(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

DEVICE float cvt_f32_f16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) return (sign ? -1.f : 1.f) * (float(mantissa) * 5.9604644775390625e-8f);
    return bits_as_f32(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13);
}
DEVICE float cvt_f32_bf16(uint16_t h) { return bits_as_f32(uint32_t(h) << 16); }
DEVICE uint16_t cvt_rn_f16_f32(float f) {
    const uint32_t bits = f32_as_bits(f), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (size < 0x38800000u) return uint16_t(sign | uint32_t(lrintf(bits_as_f32(size) * 16777216.f)));
    return uint16_t(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);
}
DEVICE uint16_t cvt_rn_bf16_f32(float f) {
    const uint32_t bits = f32_as_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
DEVICE uint32_t cvt_rn_f16x2_f32(float low, float high) {
    return cvt_rn_f16_f32(low) | uint32_t(cvt_rn_f16_f32(high)) << 16;
}
DEVICE uint32_t cvt_rn_bf16x2_f32(float low, float high) {
    return cvt_rn_bf16_f32(low) | uint32_t(cvt_rn_bf16_f32(high)) << 16;
}
// A subnormal number is zero to these two, as operand and as result.
DEVICE float without_subnormals(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
DEVICE float ex2_approx_ftz_f32(float x) { return without_subnormals(exp2f(without_subnormals(x))); }
DEVICE float rcp_approx_ftz_f32(float x) { return without_subnormals(1.f / without_subnormals(x)); }
DEVICE uint32_t cvta_to_shared(const void* p) { return simt::shared_address(p); }
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, SIMT_SITE) {
    simt::ldmatrix(r, 4, false, address, site);
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address, SIMT_SITE) {
    simt::ldmatrix(r, 4, true, address, site);
}
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16, SIMT_SITE) {
    simt::mma_m16n8k16(d, a, b, false, site);
}
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16, SIMT_SITE) {
    simt::mma_m16n8k16(d, a, b, true, site);
}
DEVICE void cp_async_cg16(uint32_t to, const void* from, int bytes) { simt::cp_async(to, from, bytes); }
DEVICE void cp_async_commit_group() { simt::cp_async_commit(); }
template <int N>
DEVICE void cp_async_wait_group() {
    simt::cp_async_wait(N);
}

#endif
