// The entry points that are linked in, and what the Rust side calls.
#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace simt {

struct Registered {
    Entry entry;
    unsigned threads;
    size_t params_bytes;
};

// By "variant:name". Filled before main, by one thread.
static std::map<std::string, Registered>& registry() {
    static std::map<std::string, Registered> all;
    return all;
}

Registration::Registration(const char* variant, const char* name, Entry entry, unsigned threads, size_t bytes) {
    registry()[std::string(variant) + ":" + name] = {entry, threads, bytes};
}

static bool prepare(Context& c, int blocks, int of_block) {
    const int threads = blocks * of_block;
    c.blocks = blocks;
    c.block_threads = of_block;
    c.threads = threads;
    c.fibers.resize(threads);
    c.warps.resize(threads / 32);
    c.priority.resize(threads / 32);
    if (c.stacks_for >= threads) return true;
    const size_t stride = STACK_BYTES + 4096;
    if (c.stacks != nullptr) munmap(c.stacks, stride * c.stacks_for);
    void* got = mmap(nullptr, stride * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    c.stacks = got == MAP_FAILED ? nullptr : static_cast<char*>(got);
    c.stacks_for = c.stacks ? threads : 0;
    for (int t = 0; c.stacks && t < threads; ++t) mprotect(c.stacks + t * stride, 4096, PROT_NONE);
    return c.stacks != nullptr;
}

// The first blocks of clusters, or of none all.
static std::vector<uint32_t> order_of_blocks(const Mode& mode, uint32_t together) {
    const uint32_t count = mode.blocks / together;
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; ++i)
        order[i] = mode.first_block + together * (mode.schedule == LIFO ? count - 1 - i : i);
    if (mode.schedule == PRIORITIES)
        for (uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
    return order;
}

// Parameters are copied: a kernel that wrote to them would not be seen by the caller.
static void run(Context& c, const uint32_t* grid, const Registered& kernel, uint32_t dynamic_bytes, const Mode& mode) {
    context = &c;
    c.mode = mode;
    c.counts = Counts{};
    c.report.clear();
    c.reported.clear();
    c.told.clear();
    c.random = mode.seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    c.entry = kernel.entry;
    forget_buffers();
    // The handler runs on a stack of its own: a fiber's may be what overflowed.
    if (c.handler_stack == nullptr) c.handler_stack = static_cast<char*>(malloc(1 << 16));
    stack_t stack = {}, old = {};
    stack.ss_sp = c.handler_stack;
    stack.ss_size = 1 << 16;
    sigaltstack(&stack, &old);
    const Index blocks = {grid[0], grid[1], grid[2]}, threads = {kernel.threads, 1, 1};
    const std::vector<uint32_t> order = order_of_blocks(mode, c.blocks);
    if (sigsetjmp(c.failed, 1) == 0) {
        for (size_t i = 0; i < order.size() && c.report.size() < 4096; ++i) {
            c.block = order[i];
            run_block(blocks, threads, dynamic_bytes);
            c.counts.threads += c.threads;
        }
    }
    current = nullptr;
    if (const char* at = broken_canary()) {
        (void)at;
        note("CANARY: bytes right beside a buffer were overwritten");
    }
    sigaltstack(&old, nullptr);
    forget_buffers();
    context = nullptr;
}

}  // namespace simt

using namespace simt;

extern "C" {

// Threads of a block and bytes of params; false where no such kernel is linked.
bool simt_kernel(const char* name, uint32_t* threads, uint64_t* params_bytes) {
    auto found = registry().find(name);
    if (found == registry().end()) return false;
    *threads = found->second.threads;
    *params_bytes = found->second.params_bytes;
    return true;
}

// Runs a kernel to its end. What went wrong is left in `report`, cut to its capacity; empty if nothing did.
bool simt_launch(Context* c, const char* name, const uint32_t* grid, uint32_t dynamic_bytes, const void* params,
                 const Mode* mode, Counts* counts, char* report, uint64_t capacity) {
    auto found = registry().find(name);
    if (found == registry().end() || dynamic_bytes > SHARED_BYTES) {
        snprintf(report, capacity, "LAUNCH: no kernel `%s`, or more than %u bytes of shared memory", name, SHARED_BYTES);
        return false;
    }
    install_fault_handler();
    const int together = blocks_of_cluster(name);
    if (grid[0] % together != 0 || mode->first_block % together != 0 || mode->blocks % together != 0) {
        snprintf(report, capacity, "LAUNCH: blocks that are no whole clusters of %d", together);
        return false;
    }
    if (!prepare(*c, together, int(found->second.threads))) {
        snprintf(report, capacity, "LAUNCH: no memory for the stacks of %u threads", found->second.threads);
        return false;
    }
    c->params = params;
    run(*c, grid, found->second, dynamic_bytes, *mode);
    *counts = c->counts;
    snprintf(report, capacity, "%s", c->report.c_str());
    return c->report.empty();
}
}
