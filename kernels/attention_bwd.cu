// attention_bwd - the gradient of attention. The general form: any lengths, d up to 256; and, for the other forms,
// what all of them need of o and its gradient.
//
//     p[i, j]  = exp(s[i, j] - lse[i])        s[i, j] = <q_i, k_j> / sqrt(d), causal: j <= i
//     delta[i] = <do_i, o_i>
//     ds[i, j] = p[i, j] (<do_i, v_j> - delta[i]) / sqrt(d)
//     dq_i = sum_j ds[i, j] k_j               dk_j = sum_i ds[i, j] q_i       dv_j = sum_i p[i, j] do_i
//
// Derivation of delta. The slope of a softmax is ds = p (dp - sum_j p dp), and sum_j p[i, j] <do_i, v_j> =
// <do_i, sum_j p[i, j] v_j> = <do_i, o_i>: no pass over the keys is needed for it.
//
// `run` has one warp a query, then one warp a key. The other side comes 32 at a time, one a lane; channels are
// over lanes. So every row has one owner, which adds in order.
// `delta` keeps delta, and the largest |do| of every row: from these, narrow forms take a scale (scaling.cuh).
//
// Departures from the formula: `run` computes delta again wherever it needs it.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: cache; delta by DRAM, two reads an element.
#include "params.cuh"
#include "reduce.cuh"

namespace attention_bwd {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int MOST_CHANNELS = 256;
constexpr int OWN = MOST_CHANNELS / 32;

template <typename T>
DEVICE float dot(const T* a, const T* b, int d) {
    float sum = 0.f;
    for (int c = 0; c < d; ++c) sum += to_f32(a[c]) * to_f32(b[c]);
    return sum;
}

// One head of one image.
template <typename T>
struct Head {
    const T *q, *k, *v, *o, *d_o;  // [t or u, d of a row]
    const float* lse;              // [t]
    T *dq, *dk, *dv;

    DEVICE_MEMBER Head(const AttentionBwdParams& p, int64_t n, int head) {
        q = p.q.as<T>() + n * p.t * p.q_row + head * p.d;
        k = p.k.as<T>() + n * p.u * p.k_row + head * p.d;
        v = p.v.as<T>() + n * p.u * p.v_row + head * p.d;
        o = p.o.as<T>() + n * p.t * p.o_row + head * p.d;
        d_o = p.d_o.as<T>() + n * p.t * p.d_o_row + head * p.d;
        lse = p.lse.as<float>() + (n * p.heads + head) * p.t;
        dq = p.dq.as<T>() + n * p.t * p.dq_row + head * p.d;
        dk = p.dk.as<T>() + n * p.u * p.dk_row + head * p.d;
        dv = p.dv.as<T>() + n * p.u * p.dv_row + head * p.d;
    }
};

// dq of one query, by one warp.
template <typename T>
DEVICE void one_query(const AttentionBwdParams& p, const Head<T>& h, int query, float scale) {
    const int lane = threadIdx.x % 32, keys = p.causal && query + 1 < p.u ? query + 1 : p.u;
    const T* q = h.q + int64_t(query) * p.q_row;
    const T* d_o = h.d_o + int64_t(query) * p.d_o_row;
    const float lse = h.lse[query], delta = dot(d_o, h.o + int64_t(query) * p.o_row, p.d);
    float dq[OWN];  // channel own * 32 + lane
    for (int own = 0; own < OWN; ++own) dq[own] = 0.f;
    for (int first = 0; first < keys; first += 32) {
        const int64_t key = first + lane;
        float ds = 0.f;
        if (key < keys) {
            const float weight = expf(dot(q, h.k + key * p.k_row, p.d) * scale - lse);
            ds = weight * (dot(d_o, h.v + key * p.v_row, p.d) - delta) * scale;
        }
        const int count = keys - first < 32 ? keys - first : 32;
        for (int j = 0; j < count; ++j) {
            const float slope = shuffle_from(ds, j);
            const T* row = h.k + int64_t(first + j) * p.k_row;
            for (int own = 0; own < OWN; ++own) {
                const int c = own * 32 + lane;
                if (c < p.d) dq[own] += slope * to_f32(row[c]);
            }
        }
    }
    for (int own = 0; own < OWN; ++own) {
        const int c = own * 32 + lane;
        if (c < p.d) h.dq[int64_t(query) * p.dq_row + c] = from_f32<T>(dq[own]);
    }
}

// dk and dv of one key, by one warp.
template <typename T>
DEVICE void one_key(const AttentionBwdParams& p, const Head<T>& h, int key, float scale) {
    const int lane = threadIdx.x % 32;
    const T* k = h.k + int64_t(key) * p.k_row;
    const T* v = h.v + int64_t(key) * p.v_row;
    float dk[OWN], dv[OWN];  // channel own * 32 + lane
    for (int own = 0; own < OWN; ++own) dk[own] = dv[own] = 0.f;
    for (int first = p.causal ? key : 0; first < p.t; first += 32) {
        const int64_t query = first + lane;
        float weight = 0.f, ds = 0.f;
        if (query < p.t) {
            const T* d_o = h.d_o + query * p.d_o_row;
            weight = expf(dot(h.q + query * p.q_row, k, p.d) * scale - h.lse[query]);
            ds = weight * (dot(d_o, v, p.d) - dot(d_o, h.o + query * p.o_row, p.d)) * scale;
        }
        const int count = p.t - first < 32 ? p.t - first : 32;
        for (int i = 0; i < count; ++i) {
            const float w = shuffle_from(weight, i), slope = shuffle_from(ds, i);
            const T* q = h.q + int64_t(first + i) * p.q_row;
            const T* d_o = h.d_o + int64_t(first + i) * p.d_o_row;
            for (int own = 0; own < OWN; ++own) {
                const int c = own * 32 + lane;
                if (c < p.d) {
                    dk[own] += slope * to_f32(q[c]);
                    dv[own] += w * to_f32(d_o[c]);
                }
            }
        }
    }
    for (int own = 0; own < OWN; ++own) {
        const int c = own * 32 + lane;
        if (c < p.d) {
            h.dk[int64_t(key) * p.dk_row + c] = from_f32<T>(dk[own]);
            h.dv[int64_t(key) * p.dv_row + c] = from_f32<T>(dv[own]);
        }
    }
}

template <typename T>
__device__ void run(const AttentionBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.d >= 1 && p.d <= MOST_CHANNELS && p.u >= 1);
    const int query_blocks = (p.t + WARPS - 1) / WARPS, block = blockIdx.x, warp = threadIdx.x / 32;
    const float scale = 1.f / sqrtf(float(p.d));
    const Head<T> head(p, blockIdx.z, blockIdx.y);
    if (block < query_blocks) {
        const int query = block * WARPS + warp;
        if (query < p.t) one_query(p, head, query, scale);
    } else {
        const int key = (block - query_blocks) * WARPS + warp;
        if (key < p.u) one_key(p, head, key, scale);
    }
}

// One warp a row of one head.
template <typename T>
__device__ void delta(const AttentionBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.d >= 1);
    const int lane = threadIdx.x % 32, head = blockIdx.y;
    const int query = blockIdx.x * WARPS + threadIdx.x / 32;
    if (query >= p.t) return;  // a whole warp
    const int64_t n = blockIdx.z;
    const T* o = p.o.as<T>() + (n * p.t + query) * p.o_row + head * p.d;          // [d]
    const T* d_o = p.d_o.as<T>() + (n * p.t + query) * p.d_o_row + head * p.d;    // [d]
    float sum = 0.f, most = 0.f;
    for (int c = lane; c < p.d; c += 32) {
        const float slope = to_f32(d_o[c]);
        sum += slope * to_f32(o[c]);
        most = Max::join(fabsf(slope), most);
    }
    sum = warp_reduce<Sum>(sum);
    most = warp_reduce<Max>(most);
    if (lane == 0) {
        const int64_t at = (n * p.heads + head) * p.t + query;
        p.delta.as<float>()[at] = sum;
        p.peak.as<float>()[at] = most;
    }
}

}  // namespace attention_bwd
