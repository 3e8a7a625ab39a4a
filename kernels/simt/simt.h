// simt.h - the CUDA dialect of our kernels as plain C++: what prelude.cuh includes where no GPU compiler runs.
//
// Everything a kernel may do beyond arithmetic is a call into the runtime (runtime.h): barriers, shuffles,
// shared memory, asynchronous copies. The runtime is never instrumented; kernels are, in the checked build.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))

namespace simt {

struct Index {
    unsigned x, y, z;
};

// What a thread of a kernel knows about itself.
struct Lane {
    Index thread, block, threads, blocks;
    int linear, lane, warp;
};
extern __thread Lane* current;

// A place in a kernel, for reports.
struct Site {
    const char* file;
    int line;
};
#define SIMT_SITE simt::Site site = {__builtin_FILE(), __builtin_LINE()}

void barrier(Site site);
void warp_barrier(Site site);
uint32_t shuffle(uint32_t value, int source_lane, Site site);
uint32_t ballot(bool vote, Site site);
void* shared_object(const void* key, size_t bytes, size_t align);
void* dynamic_shared();
uint32_t shared_address(const void* pointer);
void ldmatrix(uint32_t* rows, int count, bool transposed, uint32_t address, Site site);
void stmatrix(uint32_t address, const uint32_t* rows, Site site);
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bf16, Site site);
void cp_async(uint32_t to, const void* from, int bytes);
void cp_async_commit();
void cp_async_wait(int groups_left);
void shared_access(uint32_t address, uint32_t* words, int count, bool write);

void follow_launch_in_front(Site site);

// sm_90: barriers in shared memory, bulk copies, products of a warpgroup.
void named_barrier(int id, int threads, bool wait, Site site);
bool elect(Site site);
void mbarrier_init(uint32_t address, uint32_t count);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t address, uint32_t bytes);
void mbarrier_wait(uint32_t address, uint32_t parity, Site site);
void fence_proxy_async();
void bulk_copy(uint32_t to, const uint64_t* map, uint32_t mbarrier, int rank, const int* at);
void bulk_store(const uint64_t* map, uint32_t from, int rank, const int* at);
void bulk_commit();
void bulk_wait(int groups_left, bool only_read);
void bulk_prefetch(const uint64_t* map, int rank);  // rank 0: of the map itself
struct Wgmma {
    float* d;           // this thread's part
    const uint32_t* a;  // likewise, or null: A is in shared memory
    uint64_t a_desc, b_desc;
    int n;
    bool accumulate, bf16, a_mn_major, b_mn_major;
};
void wgmma(const Wgmma& part, Site site);
void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups_left, Site site);
[[noreturn]] void assertion_failed(const char* condition, Site site);

// Called before main for every entry point of every linked unit.
typedef void (*Entry)(const void* params);
struct Registration {
    Registration(const char* variant, const char* name, Entry entry, unsigned threads, size_t params_bytes);
};

}  // namespace simt

#define threadIdx (simt::current->thread)
#define blockIdx (simt::current->block)
#define blockDim (simt::current->threads)
#define gridDim (simt::current->blocks)

static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
