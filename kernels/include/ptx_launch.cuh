// ptx_launch.cuh - how a launch overlaps with the one in front of it.
//
// On sm_90 and newer the driver may start a launch's blocks as soon as those of the launch in front are all there,
// where an edge of the graph says so (src/cuda/graph.rs). Every entry point therefore begins by letting the next
// launch come, and then waits until all in front have ended and what they wrote is seen. A launch that waits has
// ended after all in front of it, so whoever waits for it is behind them too. Without such an edge, and on older
// GPUs, both do nothing.
#pragma once

#ifdef __CUDACC__
DEVICE void follow_launch_in_front() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#else
// The layer's launches follow one another.
DEVICE void follow_launch_in_front() {}
#endif
