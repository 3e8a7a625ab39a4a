// Clusters: blocks that run together, wait for each other, and read each other's shared memory.
//
// A block's shared memory is there while one of its threads is; who reads it later is told so, as he would read what
// another block has by then.
#include "runtime.h"

namespace simt {

// By "variant:name". Filled before main, by one thread.
static std::map<std::string, int>& clusters() {
    static std::map<std::string, int> all;
    return all;
}
extern "C" void simt_register_cluster(const char* variant, const char* name, int blocks) {
    clusters()[std::string(variant) + ":" + name] = blocks;
}
int blocks_of_cluster(const char* kernel) {
    const auto found = clusters().find(kernel);
    return found == clusters().end() ? 1 : found->second;
}

extern "C" uint32_t simt_cluster_rank() { return uint32_t(own_block()); }

extern "C" uint32_t simt_mapa(uint32_t address, uint32_t rank) {
    const Context& c = *context;
    if (!is_own(address, 1) || rank >= uint32_t(c.blocks))
        fail("mapa: the address 0x%x of block %u of a cluster of %d", address, rank, c.blocks);
    return address % WINDOW + rank * WINDOW;
}

extern "C" void simt_ld_cluster(float* to, uint32_t address) {
    Context& c = *context;
    const uint32_t block = address / WINDOW;
    const uint32_t pc = offset_of_caller(__builtin_return_address(0));
    if (address % 16 != 0 || block >= uint32_t(c.blocks) || address % WINDOW + 16 > SHARED_BYTES)
        fail("16 bytes of shared memory at the address 0x%x of a cluster; @0x%x", address, pc);
    if (c.live_of[block] == 0)
        fail("SHARED MEMORY of block %u of a cluster, which has ended: block %u thread %d at @0x%x", block, c.block,
             current->linear, pc);
    const char* p = c.shared + address;
    if (c.mode.checked) check_access(current->linear, p, 16, false, pc);
    if (c.mode.counts_alone) count_access(p, 16, false);
    memcpy(to, p, 16);
}

// -- the barrier ---------------------------------------------------------------------------------------------

static void end_phase_if_complete() {
    Context& c = *context;
    ClusterBarrier& b = c.cluster_barrier;
    if (b.arrived == 0 || b.arrived < c.live) return;
    ++c.counts.barriers;
    ++b.phase;
    b.arrived = 0;
    b.ended = b.arriving;
    b.arriving = Knowledge{};
    for (int thread : b.waiting) make_ready(thread);
    b.waiting.clear();
}

extern "C" void simt_cluster_arrive(const char* file, int line) {
    const Site site = {file, line};
    Context& c = *context;
    ClusterBarrier& b = c.cluster_barrier;
    const int self = current->linear;
    b.phase_of.resize(c.threads, 0);
    if (b.phase_of[self] == b.phase + 1)
        fail("CLUSTER BARRIER: thread %d of block %u arrives twice, at %s", self, c.block, place(site).c_str());
    b.phase_of[self] = b.phase + 1;
    if (c.mode.checked) release(self, b.arriving);
    ++b.arrived;
    const bool wakes = !b.waiting.empty();
    end_phase_if_complete();
    if (wakes && b.waiting.empty() && c.mode.schedule != FIFO) give_way();
}

extern "C" void simt_cluster_wait(const char* file, int line) {
    const Site site = {file, line};
    Context& c = *context;
    ClusterBarrier& b = c.cluster_barrier;
    const int self = current->linear;
    if (b.phase_of.empty() || b.phase_of[self] == 0)
        fail("CLUSTER BARRIER: thread %d of block %u waits and has not arrived, at %s", self, c.block,
             place(site).c_str());
    const uint32_t phase = b.phase_of[self];
    if (c.mode.schedule == PRIORITIES && random_bits() % 4 == 0) give_way();
    while (b.phase < phase) {
        b.waiting.push_back(self);
        wait_for("a cluster barrier", site);
    }
    if (c.mode.checked) acquire(self, b.ended);
}

// Who has left is not waited for.
void leave_cluster(int thread) {
    Context& c = *context;
    ClusterBarrier& b = c.cluster_barrier;
    if (!b.phase_of.empty() && b.phase_of[thread] == b.phase + 1) --b.arrived;
    end_phase_if_complete();
}

}  // namespace simt
