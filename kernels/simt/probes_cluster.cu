// probes_cluster - blocks that run together, right and wrong on purpose. None of them ships.
#include "params.cuh"
#include "ptx_cluster_sm90.cuh"

namespace probes_cluster {

enum Fault { NONE, NO_FIRST_WAIT, NO_LAST_WAIT, NO_ARRIVAL, TWO_ARRIVALS, BLOCK_BEYOND, PLAIN_READ };

constexpr int THREADS = 64;
struct Numbers {
    alignas(16) float of[THREADS];
};

// out[block, i] = the sum over all blocks of the cluster of 100 block + i.
template <Fault FAULT>
__device__ void exchange(const PointwiseParams& p) {
    SHARED(Numbers, own);
    follow_launch_in_front();
    const int i = threadIdx.x;
    own.of[i] = float(100 * int(blockIdx.x) + i);
    // Of the cluster; a block's own barrier does not do.
    if (FAULT != NO_ARRIVAL || i != 5) cluster_arrive();
    if (FAULT == TWO_ARRIVALS) cluster_arrive();
    if (FAULT != NO_FIRST_WAIT) cluster_wait();
    if (i % 4 == 0) {
        float sum[4] = {0.f, 0.f, 0.f, 0.f};
        for (int rank = 0; rank < 4; ++rank) {
            float more[4];
            const uint32_t at = mapa(cvta_to_shared(&own.of[i]), FAULT == BLOCK_BEYOND ? rank + 1 : rank);
            if (FAULT == PLAIN_READ) {
                uint32_t words[4];
                ld_shared(words, at);
                for (int j = 0; j < 4; ++j) more[j] = bits_as_f32(words[j]);
            } else {
                ld_cluster(more, at);
            }
            for (int j = 0; j < 4; ++j) sum[j] += more[j];
        }
        for (int j = 0; j < 4; ++j) p.out.as<float>()[int(blockIdx.x) * THREADS + i + j] = sum[j];
    }
    // Nobody ends before the others have read.
    if (FAULT == NO_FIRST_WAIT) cluster_wait();
    if (FAULT == NO_LAST_WAIT) return;
    cluster_arrive();
    cluster_wait();
}

}  // namespace probes_cluster

#define PROBE(name, FAULT) \
    CLUSTER_KERNEL_ENTRY(name, 64, 4, PointwiseParams, probes_cluster::exchange<probes_cluster::FAULT>)
PROBE(probe_cluster_right, NONE)
PROBE(probe_cluster_no_first_wait, NO_FIRST_WAIT)
PROBE(probe_cluster_no_last_wait, NO_LAST_WAIT)
PROBE(probe_cluster_no_arrival, NO_ARRIVAL)
PROBE(probe_cluster_two_arrivals, TWO_ARRIVALS)
PROBE(probe_cluster_block_beyond, BLOCK_BEYOND)
PROBE(probe_cluster_plain_read, PLAIN_READ)
