// ptx_cluster_sm90.cuh - blocks of sm_90a that run together: their barrier, and each other's shared memory.
//
// A cluster is consecutive blocks along x; a block's rank is its place there. Order between them, as the layer reads
// the ISA: what a thread does before it arrives at the cluster's barrier happens before whatever others do after they
// have waited for it. Who has left the kernel is not waited for. A block's shared memory ends with it: who reads
// another's makes it wait until then.
#pragma once
#include "ptx_sm90.cuh"

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CLUSTER_DIMS(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_DIMS(blocks)
#endif
// As SM90_KERNEL_ENTRY, for grids of whole clusters.
#define CLUSTER_KERNEL_ENTRY(name, threads, blocks, Params, ...)                   \
    extern "C" __global__ void CLUSTER_DIMS(blocks) __launch_bounds__(threads, 1) \
        name(const __grid_constant__ Params p) {                                   \
        __VA_ARGS__(p);                                                            \
    }

DEVICE int cluster_rank() {
    uint32_t rank = 0;
    SM90_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return int(rank);
}
// Where the block of that rank has what this one has at `address` of its shared memory.
DEVICE uint32_t mapa(uint32_t address, int rank) {
    uint32_t mapped = 0;
    SM90_ASM("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}
// Four numbers at such an address.
DEVICE void ld_cluster(float (&to)[4], uint32_t address) {
    SM90_ASM("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
             : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
             : "r"(address)
             : "memory");
}
DEVICE void cluster_arrive() { SM90_ASM("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void cluster_wait() { SM90_ASM("barrier.cluster.wait.acquire;" ::: "memory"); }

#else

// The runtime's, kernels/simt/cluster.cpp.
extern "C" {
void simt_register_cluster(const char* variant, const char* name, int blocks);
uint32_t simt_cluster_rank();
uint32_t simt_mapa(uint32_t address, uint32_t rank);
void simt_ld_cluster(float* to, uint32_t address);
void simt_cluster_arrive(const char* file, int line);
void simt_cluster_wait(const char* file, int line);
}
struct ClusterRegistration {
    ClusterRegistration(const char* name, int blocks) { simt_register_cluster(SIMT_VARIANT, name, blocks); }
};

#define CLUSTER_KERNEL_ENTRY(name, threads, blocks, Params, ...)      \
    static const ClusterRegistration name##_cluster_(#name, blocks); \
    SM90_KERNEL_ENTRY(name, threads, Params, __VA_ARGS__)

DEVICE int cluster_rank() { return int(simt_cluster_rank()); }
DEVICE uint32_t mapa(uint32_t address, int rank) { return simt_mapa(address, uint32_t(rank)); }
DEVICE void ld_cluster(float (&to)[4], uint32_t address) { simt_ld_cluster(to, address); }
DEVICE void cluster_arrive(SIMT_SITE) { simt_cluster_arrive(site.file, site.line); }
DEVICE void cluster_wait(SIMT_SITE) { simt_cluster_wait(site.file, site.line); }

#endif
