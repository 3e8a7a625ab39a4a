// ptx_launch.cuh - how a launch overlaps with the one in front of it.
//
// On sm_90 and newer the driver may start a launch's blocks as soon as those of the launch in front are all there,
// where an edge of the graph says so (src/cuda/graph.rs). Every thread of every kernel therefore lets the next launch
// come, and waits until all in front have ended and what they wrote is seen: once, before it touches global memory.
// A launch that waits has ended after all in front of it, so whoever waits for it is behind them too. Without such an
// edge, and on older GPUs, both do nothing.
//
// KERNEL_ENTRY does this before anything else. Entry points for sm_90a (SM90_KERNEL_ENTRY, CLUSTER_KERNEL_ENTRY) leave
// it to their kernels, which first do what no launch in front has a part in: barriers, tensor maps, and the way of
// weights into the L2 cache.
#pragma once

#ifdef __CUDACC__
DEVICE void follow_launch_in_front() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#else
// The layer's launches follow one another. It tells of threads that would not have waited: of who ends without, or does
// it twice, and in the checked build of who touches global memory before.
DEVICE void follow_launch_in_front(SIMT_SITE) { simt::follow_launch_in_front(site); }
#endif
