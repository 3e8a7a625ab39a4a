// ptx_atomic.cuh - what blocks of one launch may tell each other: a counter, for which none of them waits.
//
// Order: what a thread knows when it counts happens before whatever those do who count later. A barrier of the block
// carries that from its other threads to the one that counts, and back.
#pragma once
#include "prelude.cuh"

#ifdef __CUDACC__

// Adds to a counter; gives what was there.
DEVICE uint32_t atom_add_acq_rel_gpu(uint32_t* counter, uint32_t more) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(more) : "memory");
    return before;
}

#else

// In the checked build this is a call into checks.cpp.
DEVICE uint32_t atom_add_acq_rel_gpu(uint32_t* counter, uint32_t more) {
    return __atomic_fetch_add(counter, more, __ATOMIC_ACQ_REL);
}

#endif
