// attention_bwd_sm90 - the gradient of attention with wgmma and bulk copies, for heads of 64 channels, without causal
// masks: attention_bwd_dq.cu and attention_bwd_dkv.cu for sm_90a, in one launch.
//
//     p[i, j]  = exp(s[i, j] - lse[i])        s[i, j] = <q_i, k_j> / sqrt(d)
//     ds[i, j] = p[i, j] (<do_i, v_j> - delta[i]) / sqrt(d)
//     dq_i = sum_j ds[i, j] k_j               dk_j = sum_i ds[i, j] q_i       dv_j = sum_i p[i, j] do_i
//
// Every row of a gradient has one owner, which adds in order. A block takes item after item: 128 queries of a head, for
// their dq, or 128 keys, for their dk and dv; 64 rows of each of the two warpgroups that multiply. Of either, the own
// rows of two tensors stay (q and do, or k and v), and tiles of the other two go by in a ring that one elected thread
// of the last warpgroup fills. Keys multiply the other way round (s^T = k q^T), so that here and there the first
// products of a tile are, rounded to T, left operands of the next ones as they lie in the registers. Tiles are what
// two products read: once as rows, once as columns.
//
// The sums of a tile are still being added while the scores of the next one are issued.
//
// Departures from the formula: those of attention_bwd_mma.cuh, 1 to 3; what is beyond the end is zeros, with p = 0.
//
// The order of all sums depends on t or u, and d alone. Written by the rules of the ISA and run on the SIMT layer; its
// speed is not measured.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: tensor cores; for the few tokens of CLIP by latency.
#include "params_sm90.cuh"
#include "ring_sm90.cuh"
#include "scaling.cuh"
#include "fragments.cuh"

namespace attention_bwd_sm90 {

constexpr int THREADS = CONSUMERS + 128;
constexpr int OWN = 128, OTHER = 64;  // rows of an item, 64 of each warpgroup, and of a tile that goes by
constexpr int OWN_STAGES = 2, STAGES = 4;
constexpr int BOOST = 10;
constexpr float LOG2_E = 1.44269504088896341f;
constexpr int ROW = 128, BOX = 64 * ROW;  // bytes of a row of shared memory, and of the 64 that a copy brings

template <int D>
struct Smem {
    static_assert(D % 16 == 0 && D * 2 <= ROW, "a head is one span of channels");
    alignas(1024) unsigned char own[OWN_STAGES][2][OWN * ROW];  // q and do, or k and v
    alignas(1024) unsigned char other[STAGES][2][OTHER * ROW];  // k and v, or q and do
    uint64_t own_full[OWN_STAGES], own_empty[OWN_STAGES], full[STAGES], empty[STAGES];
};
template <typename T, int D>
__device__ constexpr int shared_bytes() {
    return sizeof(Smem<D>);
}

// Of every head the tiles of keys come first, if theirs are wanted: they take longer.
struct Item {
    bool of_keys;
    int first, head, image;
    int tiles;  // that go by

    static DEVICE_MEMBER int of_head(const AttentionBwdSm90Params& p) { return keys(p) + (p.t + OWN - 1) / OWN; }
    static DEVICE_MEMBER int keys(const AttentionBwdSm90Params& p) {
        return p.dk.address != 0 ? (p.u + OWN - 1) / OWN : 0;
    }
    static DEVICE_MEMBER int count(const AttentionBwdSm90Params& p) { return of_head(p) * p.heads * p.n; }

    DEVICE_MEMBER Item(const AttentionBwdSm90Params& p, int number) {
        const int tile = number % of_head(p);
        of_keys = tile < keys(p);
        first = (of_keys ? tile : tile - keys(p)) * OWN;
        head = number / of_head(p) % p.heads;
        image = number / of_head(p) / p.heads;
        tiles = ((of_keys ? p.t : p.u) + OTHER - 1) / OTHER;
    }
};

// All copies of a block's items, by one thread.
template <int D>
DEVICE void producer(const AttentionBwdSm90Params& p, Smem<D>& smem) {
    auto own = Ring<OWN_STAGES>::at(smem.own_full, smem.own_empty);
    auto ring = Ring<STAGES>::at(smem.full, smem.empty);
#pragma unroll 1
    for (int number = blockIdx.x; number < Item::count(p); number += gridDim.x) {
        const Item item(p, number);
        const auto copy = [&](unsigned char* to, const TensorMap& map, uint32_t full, int token) {
            cp_async_bulk_tensor_4d(cvta_to_shared(to), map, full, 0, item.head, token, item.image);
        };
        const TensorMap* own_maps[2] = {item.of_keys ? &p.k_map : &p.q_map, item.of_keys ? &p.v_map : &p.d_o_map};
        const TensorMap* maps[2] = {item.of_keys ? &p.q_map : &p.k_map, item.of_keys ? &p.d_o_map : &p.v_map};
        const uint32_t own_full = own.fill(2 * OWN * ROW);
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 2; ++i)
                copy(smem.own[own.stage][i] + half * BOX, *own_maps[i], own_full, item.first + half * 64);
        own.advance();
#pragma unroll 1
        for (int tile = 0; tile < item.tiles; ++tile) {
            const uint32_t full = ring.fill(2 * OTHER * ROW);
            for (int i = 0; i < 2; ++i) copy(smem.other[ring.stage][i], *maps[i], full, tile * OTHER);
            ring.advance();
        }
    }
}

DEVICE uint64_t rows_of(const unsigned char* tile) {
    return wgmma_descriptor(cvta_to_shared(tile), 16, 8 * ROW, SWIZZLE_128);
}

// x y^T of 64 rows each, on its way when its group is committed.
template <typename T, int D>
DEVICE void multiply(float (&out)[OTHER / 2], uint64_t x, uint64_t y) {
#pragma unroll
    for (int channel = 0; channel < D; channel += 16)
        wgmma_m64k16<K_MAJOR, K_MAJOR>(out, behind(x, channel * 2), behind(y, channel * 2), channel > 0, T{});
}

// sum += x y, likewise; the rows of y are the depth.
template <typename T, int D>
DEVICE void add_product(float (&sum)[D / 2], const uint32_t (&x)[OTHER / 16][4], uint64_t y, bool adds) {
#pragma unroll
    for (int i = 0; i < OTHER / 16; ++i)
        wgmma_m64k16<MN_MAJOR>(sum, x[i], behind(y, i * 16 * ROW), adds || i > 0, T{});
}

// One head of one image: what belongs to its queries.
struct Head {
    const float *lse, *delta, *peak;  // [t]

    DEVICE_MEMBER Head(const AttentionBwdSm90Params& p, const Item& item) {
        const int64_t sums = (int64_t(item.image) * p.heads + item.head) * p.t;
        lse = p.lse.as<float>() + sums;
        delta = p.delta.as<float>() + sums;
        peak = p.peak.as<float>() + sums;
    }
    // The largest |do|, by a warp for itself.
    DEVICE_MEMBER float largest(int t) const {
        float most = 0.f;
        for (int i = threadIdx.x % 32; i < t; i += 32) most = fmaxf(most, peak[i]);
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, shuffle_xor(most, lanes));
        return most;
    }
};

// This lane's two rows of a gradient, those of them that there are.
template <typename T, int D>
DEVICE void store(T* to, int stride, int rows, int first, const float (&sum)[D / 2], const float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first + h * 8 + fragments::row();
        if (row >= rows) continue;
        uint32_t* words = reinterpret_cast<uint32_t*>(to + int64_t(row) * stride + fragments::column());
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
            words[j * 4] = rounded_pair(T{}, sum[j * 4 + h * 2] * factor[h], sum[j * 4 + h * 2 + 1] * factor[h]);
    }
}

// The tiles of an item, by a warpgroup. `weigh(s, dp, tile)` makes p and ds of a tile's products; BOTH: p is wanted.
// first += ds x the first of the others, second += p x the second.
template <typename T, int D, bool BOTH, typename Weigh>
DEVICE void go(Smem<D>& smem, Ring<OWN_STAGES>& own, Ring<STAGES>& ring, int tiles, float (&first)[D / 2],
               float (&second)[D / 2], const Weigh& weigh) {
    const int group = threadIdx.x / 128 * BOX;
    const uint64_t x[2] = {rows_of(smem.own[own.stage][0] + group), rows_of(smem.own[own.stage][1] + group)};
    float s[OTHER / 2], dp[OTHER / 2];
    uint32_t p[OTHER / 16][4], ds[OTHER / 16][4];
    int last = 0;
    own.wait();
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
        const unsigned char(&y)[2][OTHER * ROW] = smem.other[ring.stage];
        ring.wait();
        wgmma_fence();
        multiply<T, D>(s, x[0], rows_of(y[0]));
        multiply<T, D>(dp, x[1], rows_of(y[1]));
        wgmma_commit_group();
        wgmma_wait_group<0>();
        keep_registers(s);
        keep_registers(dp);
        keep_registers(first);
        if (BOTH) keep_registers(second);
        if (tile > 0) ring.release(last);
        weigh(s, dp, tile);
        as_operand<T>(ds, dp);
        if (BOTH) as_operand<T>(p, s);
        // Of MN-major operands of one span the leading offset is not used.
        wgmma_fence();
        add_product<T, D>(first, ds, rows_of(y[0]), tile > 0);
        if (BOTH) add_product<T, D>(second, p, rows_of(y[1]), tile > 0);
        wgmma_commit_group();
        last = ring.stage;
        ring.advance();
    }
    wgmma_wait_group<0>();
    keep_registers(first);
    if (BOTH) keep_registers(second);
    ring.release(last);
    own.release(own.stage);
    own.advance();
}

// dq of this warpgroup's queries.
template <typename T, int D>
DEVICE void queries(const AttentionBwdSm90Params& p, Smem<D>& smem, Ring<OWN_STAGES>& own, Ring<STAGES>& ring,
                    const Item& item) {
    const Head head(p, item);
    const float scale = 1.f / sqrtf(float(D)), scale_2 = LOG2_E * scale;
    const int first = item.first + threadIdx.x / 32 * 16;
    float log_sum[2], delta[2], power[2], shrink[2];  // of this lane's queries; log_sum: of base 2, less the boost
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int query = first + h * 8 + fragments::row(), row = query < p.t ? query : p.t - 1;
        log_sum[h] = head.lse[row] * LOG2_E - BOOST;
        delta[h] = head.delta[row];
        power[h] = scaling::power_of(head.peak[row]);
        shrink[h] = power[h] * (1.f / (1 << BOOST));
    }
    float dq[D / 2], none[D / 2];
    go<T, D, false>(smem, own, ring, item.tiles, dq, none, [&](float(&s)[OTHER / 2], float(&dp)[OTHER / 2], int tile) {
        const int keys = p.u - tile * OTHER;
#pragma unroll
        for (int i = 0; i < OTHER / 2; ++i) {
            const int h = i / 2 % 2, column = i / 4 * 8 + fragments::column() + i % 2;
            const float x = column < keys ? s[i] : fragments::LOWEST;
            dp[i] = ex2_approx_ftz_f32(x * scale_2 - log_sum[h]) * ((dp[i] - delta[h]) * shrink[h]);
        }
    });
    const float factor[2] = {scale / power[0], scale / power[1]};
    T* to = p.dq.as<T>() + int64_t(item.image) * p.t * p.dq_row + item.head * D;  // [t, D of dq_row]
    store<T, D>(to, p.dq_row, p.t, first, dq, factor);
}

// dk and dv of this warpgroup's keys.
template <typename T, int D>
DEVICE void keys(const AttentionBwdSm90Params& p, Smem<D>& smem, Ring<OWN_STAGES>& own, Ring<STAGES>& ring,
                 const Item& item) {
    const Head head(p, item);
    const float scale = 1.f / sqrtf(float(D)), scale_2 = LOG2_E * scale;
    // One power of two for all queries, since a sum runs over them.
    const float power = scaling::power_of(head.largest(p.t)), shrink = power * (1.f / (1 << BOOST));
    float dk[D / 2], dv[D / 2];
    go<T, D, true>(smem, own, ring, item.tiles, dk, dv, [&](float(&s)[OTHER / 2], float(&dp)[OTHER / 2], int tile) {
#pragma unroll
        for (int i = 0; i < OTHER / 2; i += 4)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int query = tile * OTHER + i / 4 * 8 + fragments::column() + j, row = query < p.t ? query : p.t - 1;
                const float log_sum = head.lse[row] * LOG2_E - BOOST, delta = head.delta[row];
#pragma unroll
                for (int at = i + j; at < i + 4; at += 2) {
                    const float x = query < p.t ? s[at] : fragments::LOWEST;
                    s[at] = ex2_approx_ftz_f32(x * scale_2 - log_sum);
                    dp[at] = s[at] * ((dp[at] - delta) * shrink);
                }
            }
    });
    const float of_dk[2] = {scale / power, scale / power}, of_dv[2] = {1.f / (1 << BOOST), 1.f / (1 << BOOST)};
    const int first = item.first + threadIdx.x / 32 * 16;
    const int64_t before = int64_t(item.image) * p.u;
    store<T, D>(p.dk.as<T>() + before * p.dk_row + item.head * D, p.dk_row, p.u, first, dk, of_dk);
    store<T, D>(p.dv.as<T>() + before * p.dv_row + item.head * D, p.dv_row, p.u, first, dv, of_dv);
}

// Both warpgroups.
template <typename T, int D>
DEVICE void consumer(const AttentionBwdSm90Params& p, Smem<D>& smem) {
    auto own = Ring<OWN_STAGES>::at(smem.own_full, smem.own_empty);
    auto ring = Ring<STAGES>::at(smem.full, smem.empty);
#pragma unroll 1
    for (int number = blockIdx.x; number < Item::count(p); number += gridDim.x) {
        const Item item(p, number);
        if (item.of_keys)
            keys<T, D>(p, smem, own, ring, item);
        else
            queries<T, D>(p, smem, own, ring, item);
    }
}

template <typename T, int D>
__device__ void run(const AttentionBwdSm90Params& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.d == D && p.t >= 1 && p.u >= 1);
    DYNAMIC_SHARED(Smem<D>, smem);
    if (threadIdx.x == 0) {
        Ring<OWN_STAGES>::at(smem.own_full, smem.own_empty).initialise();
        Ring<STAGES>::at(smem.full, smem.empty).initialise();
        fence_mbarrier_init();
    }
    follow_launch_in_front();
    sync_block();
    if (threadIdx.x >= PRODUCER) {
        setmaxnreg_dec<24>();
        if (threadIdx.x < PRODUCER + 32 && elect_one()) producer<D>(p, smem);
        return;
    }
    setmaxnreg_inc<240>();
    consumer<T, D>(p, smem);
}

}  // namespace attention_bwd_sm90
