// Fibers, whose turn it is, barriers and warp collectives.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace simt {

__thread Lane* current = nullptr;
__thread Context* context = nullptr;

// -- the switch ----------------------------------------------------------------------------------------------

extern "C" void simt_fiber_start();

#if defined(__x86_64__)
// Saves the registers that calls keep, and the stack; goes on where `to` was left.
extern "C" void simt_switch(void** save, void* to);
__asm__(
    ".text\n.globl simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size simt_switch,.-simt_switch\n");

static void* fresh_stack(char*, char* high) {
    void** top = reinterpret_cast<void**>(high - 64);
    *--top = nullptr;  // where the first function would return to
    *--top = reinterpret_cast<void*>(simt_fiber_start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    return top;
}
#else
#include <ucontext.h>
static void simt_switch(void** save, void* to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

static void* fresh_stack(char* low, char* high) {
    ucontext_t* made = reinterpret_cast<ucontext_t*>(low);
    getcontext(made);
    made->uc_stack.ss_sp = low + sizeof(ucontext_t);
    made->uc_stack.ss_size = high - low - sizeof(ucontext_t);
    made->uc_link = nullptr;
    makecontext(made, simt_fiber_start, 0);
    return made;
}
#endif

// -- whose turn it is ----------------------------------------------------------------------------------------

void make_ready(int thread) {
    context->fibers[thread].state = Fiber::READY;
    context->queue.push_back(thread);
}

static int take_next() {
    Context& c = *context;
    if (c.mode.schedule == LIFO) {
        const int thread = c.queue.back();
        c.queue.pop_back();
        return thread;
    }
    if (c.mode.schedule == PRIORITIES) {
        // Random priorities of warps, changed now and then: unlike a fair choice, this starves somebody.
        if (random_bits() % 64 == 0) c.priority[random_bits() % c.priority.size()] = uint32_t(random_bits());
        size_t best = c.head;
        for (size_t i = c.head + 1; i < c.queue.size(); ++i)
            if (c.priority[c.queue[i] / 32] > c.priority[c.queue[best] / 32]) best = i;
        std::swap(c.queue[c.head], c.queue[best]);
    }
    const int thread = c.queue[c.head++];
    if (c.head > 4096) {
        c.queue.erase(c.queue.begin(), c.queue.begin() + c.head);
        c.head = 0;
    }
    return thread;
}

std::string place(Site site) {
    return std::string(site.file ? site.file : "?") + ":" + std::to_string(site.line);
}

// Lets somebody else run; returns when this fiber's turn comes again.
static void switch_away() {
    Context& c = *context;
    Fiber& self = running();
    if (c.head >= c.queue.size()) {
        if (c.live == 0) {
            void* unused;
            simt_switch(&unused, c.main_stack);
        }
        // Nobody can go on: as late as a copy can come.
        while (c.head >= c.queue.size() && perform_a_copy()) {
        }
    }
    if (c.head >= c.queue.size()) {
        std::map<std::string, int> waiting;
        for (Fiber& f : c.fibers)
            if (f.state == Fiber::WAITING) ++waiting[std::string(f.waits_for) + " at " + place(f.waits_at)];
        std::string all;
        for (auto& [where, count] : waiting) all += " " + std::to_string(count) + " at " + where + ";";
        all += waiting_mbarriers();
        fail("DEADLOCK block %u: %d of %d threads are left,%s", c.block, c.live, c.threads, all.c_str());
    }
    const int next = take_next();
    current = &c.fibers[next].lane;
    if (&c.fibers[next] == &self) return;
    ++c.counts.switches;
    simt_switch(&self.stack_pointer, c.fibers[next].stack_pointer);
}

void wait_for(const char* what, Site site) {
    Fiber& f = running();
    f.state = Fiber::WAITING;
    f.waits_for = what;
    f.waits_at = site;
    switch_away();
}

void give_way() {
    Context& c = *context;
    const int self = current->linear;
    c.fibers[self].state = Fiber::READY;
    if (c.mode.schedule == LIFO)
        c.queue.insert(c.queue.begin() + c.head, self);
    else
        c.queue.push_back(self);
    switch_away();
}

void fail(const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    context->report += std::string(text) + "\n";
    // Nothing on a fiber's stack needs its destructor but the runtime's own small vectors.
    siglongjmp(context->failed, 1);
}

void assertion_failed(const char* condition, Site site) {
    fail("ASSERTION %s: `%s` is false in thread %d of block %u", place(site).c_str(), condition, current->linear,
         context->block);
}

// -- barriers ------------------------------------------------------------------------------------------------

static void release_barrier(int block) {
    Context& c = *context;
    ++c.counts.barriers;
    if (c.mode.checked) join_clocks(c.at_barrier[block]);
    if (c.mode.checked || c.mode.counts_alone) {
        for (size_t warp = 0; warp < c.warps.size(); ++warp) count_conflicts(int(warp));
    }
    for (int thread : c.at_barrier[block])
        if (c.fibers[thread].state == Fiber::WAITING) make_ready(thread);
    c.at_barrier[block].clear();
}

void barrier(Site site) {
    Context& c = *context;
    const int block = own_block();
    std::vector<int>& here = c.at_barrier[block];
    const Site first = c.barrier_site[block];
    if (here.empty()) {
        c.barrier_site[block] = site;
    } else if (first.line != site.line || first.file != site.file) {
        fail("DIVERGENT BARRIER block %u: thread %d is at %s, thread %d at %s", c.block, current->linear,
             place(site).c_str(), here[0], place(first).c_str());
    }
    here.push_back(current->linear);
    if (int(here.size()) < c.live_of[block]) return wait_for("a block barrier", site);
    release_barrier(block);
    if (c.mode.schedule != FIFO) give_way();
}

// -- warp collectives ----------------------------------------------------------------------------------------

void meet(Meeting meeting, void* arguments, const char* name, Site site) {
    Context& c = *context;
    Warp& w = c.warps[current->warp];
    if (w.arrived == 0) {
        w.meeting = meeting;
        w.name = name;
        w.site = site;
    } else if (w.meeting != meeting) {
        fail("DIVERGENT COLLECTIVE block %u warp %d: lane %d is at %s, %s; others at %s, %s", c.block,
             current->warp, current->lane, name, place(site).c_str(), w.name, place(w.site).c_str());
    }
    w.arrived |= 1u << current->lane;
    w.arguments[current->lane] = arguments;
    // All 32 lanes are meant: one that has left never comes, which is a deadlock here as there.
    if (w.arrived != 0xffffffffu) return wait_for(name, site);
    ++c.counts.collectives;
    w.arrived = 0;
    if (c.mode.checked || c.mode.counts_alone) count_conflicts(current->warp);
    meeting(w.arguments);
    for (int lane = 0; lane < 32; ++lane)
        if (lane != current->lane) make_ready(current->warp * 32 + lane);
}

struct Shuffle {
    uint32_t value, result;
    int source;
};
static void do_shuffle(void** lanes) {
    for (int i = 0; i < 32; ++i) {
        Shuffle* s = static_cast<Shuffle*>(lanes[i]);
        s->result = static_cast<Shuffle*>(lanes[s->source & 31])->value;
    }
}
uint32_t shuffle(uint32_t value, int source_lane, Site site) {
    Shuffle s = {value, 0, source_lane};
    meet(do_shuffle, &s, "a shuffle", site);
    return s.result;
}

static void do_ballot(void** lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) votes |= (*static_cast<uint32_t*>(lanes[i]) ? 1u : 0u) << i;
    for (int i = 0; i < 32; ++i) *static_cast<uint32_t*>(lanes[i]) = votes;
}
uint32_t ballot(bool vote, Site site) {
    uint32_t votes = vote;
    meet(do_ballot, &votes, "a ballot", site);
    return votes;
}

static void do_warp_barrier(void**) {
    if (!context->mode.checked) return;
    std::vector<int> threads;
    for (int i = 0; i < 32; ++i) threads.push_back(current->warp * 32 + i);
    join_clocks(threads);
}
void warp_barrier(Site site) { meet(do_warp_barrier, nullptr, "a warp barrier", site); }

// -- matrix instructions -------------------------------------------------------------------------------------

struct Ldmatrix {
    uint32_t* rows;
    uint32_t address, pc;
    int count;
    bool transposed;
};
static void do_ldmatrix(void** lanes) {
    Context& c = *context;
    const Ldmatrix& all = *static_cast<Ldmatrix*>(lanes[0]);
    ++c.counts.ldmatrix;
    for (int matrix = 0; matrix < all.count; ++matrix) {
        const uint16_t* row[8];
        int in_bank[8] = {0}, most = 0;
        for (int r = 0; r < 8; ++r) {
            const Ldmatrix& lane = *static_cast<Ldmatrix*>(lanes[matrix * 8 + r]);
            if (lane.address % 16 != 0 || !is_own(lane.address, 16))
                fail("ldmatrix: lane %d gives the address 0x%x", matrix * 8 + r, lane.address);
            row[r] = reinterpret_cast<const uint16_t*>(c.shared + lane.address);
            // Eight rows of 16 bytes are one access: it takes a cycle more for every row in the same banks.
            most = std::max(most, ++in_bank[lane.address / 16 % 8]);
            if (c.mode.checked) check_access(current->warp * 32 + matrix * 8 + r, row[r], 16, false, lane.pc);
            if (c.mode.counts_alone) count_access(row[r], 16, false);
        }
        c.counts.bank_conflicts += most - 1;
        for (int i = 0; i < 32; ++i) {
            uint32_t* to = &static_cast<Ldmatrix*>(lanes[i])->rows[matrix];
            const int first = i % 4 * 2;
            if (all.transposed)
                *to = row[first][i / 4] | uint32_t(row[first + 1][i / 4]) << 16;
            else
                *to = row[i / 4][first] | uint32_t(row[i / 4][first + 1]) << 16;
        }
    }
}
void ldmatrix(uint32_t* rows, int count, bool transposed, uint32_t address, Site site) {
    const uint32_t pc = context->mode.checked ? offset_of_caller(__builtin_return_address(0)) : 0;
    Ldmatrix arguments = {rows, address, pc, count, transposed};
    meet(do_ldmatrix, &arguments, transposed ? "ldmatrix.trans" : "ldmatrix", site);
}

struct Stmatrix {
    const uint32_t* rows;
    uint32_t address, pc;
};
static void do_stmatrix(void** lanes) {
    Context& c = *context;
    for (int matrix = 0; matrix < 4; ++matrix) {
        int in_bank[8] = {0}, most = 0;
        for (int r = 0; r < 8; ++r) {
            const Stmatrix& lane = *static_cast<Stmatrix*>(lanes[matrix * 8 + r]);
            if (lane.address % 16 != 0 || !is_own(lane.address, 16))
                fail("stmatrix: lane %d gives the address 0x%x", matrix * 8 + r, lane.address);
            most = std::max(most, ++in_bank[lane.address / 16 % 8]);
            char* row = c.shared + lane.address;
            if (c.mode.checked) check_access(current->warp * 32 + matrix * 8 + r, row, 16, true, lane.pc);
            if (c.mode.counts_alone) count_access(row, 16, true);
            for (int i = 0; i < 4; ++i)
                memcpy(row + i * 4, &static_cast<Stmatrix*>(lanes[r * 4 + i])->rows[matrix], 4);
        }
        c.counts.bank_conflicts += most - 1;
    }
}
void stmatrix(uint32_t address, const uint32_t* rows, Site site) {
    const uint32_t pc = context->mode.checked ? offset_of_caller(__builtin_return_address(0)) : 0;
    Stmatrix arguments = {rows, address, pc};
    meet(do_stmatrix, &arguments, "stmatrix", site);
}

float half_to_float(uint16_t h, bool bf16) {
    uint32_t bits = uint32_t(h) << 16;
    if (!bf16) {
        const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
        if (exponent == 0) return (h & 0x8000 ? -1.f : 1.f) * float(mantissa) * 5.9604644775390625e-8f;
        bits = uint32_t(h & 0x8000u) << 16 | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

struct Mma {
    float* d;
    const uint32_t *a, *b;
    bool bf16;
};
static void do_mma(void** lanes) {
    ++context->counts.mma;
    if (context->mode.counts_alone) return;
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < 32; ++i) {
        const Mma& lane = *static_cast<Mma*>(lanes[i]);
        const int g = i / 4, t = i % 4 * 2;
        for (int j = 0; j < 8; ++j) {
            const uint16_t h = uint16_t(lane.a[j / 2] >> j % 2 * 16);
            a[g + j / 2 % 2 * 8][t + j / 4 * 8 + j % 2] = half_to_float(h, lane.bf16);
        }
        for (int j = 0; j < 4; ++j) {
            const uint16_t h = uint16_t(lane.b[j / 2] >> j % 2 * 16);
            b[t + j / 2 * 8 + j % 2][g] = half_to_float(h, lane.bf16);
        }
        for (int j = 0; j < 4; ++j) d[g + j / 2 * 8][t + j % 2] = lane.d[j];
    }
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int i = 0; i < 32; ++i) {
        const int g = i / 4, t = i % 4 * 2;
        for (int j = 0; j < 4; ++j) static_cast<Mma*>(lanes[i])->d[j] = d[g + j / 2 * 8][t + j % 2];
    }
}
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bf16, Site site) {
    Mma arguments = {d, a, b, bf16};
    meet(do_mma, &arguments, "mma", site);
}

// -- the launch in front --------------------------------------------------------------------------------------

void follow_launch_in_front(Site site) {
    if (running().follows)
        fail("THE LAUNCH IN FRONT is waited for twice: thread %d of block %u at %s", current->linear, context->block,
             place(site).c_str());
    running().follows = true;
}

// -- a block -------------------------------------------------------------------------------------------------

extern "C" void simt_fiber_start() {
    Context& c = *context;
    c.entry(c.params);
    if (!running().follows)
        fail("THE LAUNCH IN FRONT is not waited for: thread %d of block %u ends", current->linear, c.block);
    running().state = Fiber::DONE;
    const int block = own_block();
    --c.live;
    --c.live_of[block];
    c.warps[current->warp].live &= ~(1u << current->lane);
    // Who has left is not waited for at a barrier.
    if (c.live_of[block] > 0 && int(c.at_barrier[block].size()) >= c.live_of[block]) release_barrier(block);
    if (c.blocks > 1) leave_cluster(current->linear);
    switch_away();
    abort();
}

void run_block(Index grid, Index threads, uint32_t dynamic_bytes) {
    Context& c = *context;
    c.live = c.threads;
    c.queue.clear();
    c.head = 0;
    for (Warp& w : c.warps) w = Warp{0, 0xffffffffu, nullptr, {}, "", {}};
    for (uint32_t& p : c.priority) p = uint32_t(random_bits());
    c.objects.clear();
    c.regions.clear();
    for (int b = 0; b < c.blocks; ++b) {
        c.at_barrier[b].clear();
        c.live_of[b] = c.block_threads;
        c.regions.push_back({b * WINDOW, b * WINDOW + dynamic_bytes});
        c.shared_used[b] = b * WINDOW + dynamic_bytes;
        memset(c.window(b), 0xff, SHARED_BYTES);  // NaN in every type
    }
    c.cluster_barrier = ClusterBarrier{};
    if (c.hopper.used) c.hopper = Hopper{};
    if (c.mode.checked || c.mode.counts_alone) start_checks();
    const size_t stride = STACK_BYTES + 4096;
    for (int t = 0; t < c.threads; ++t) {
        Fiber& f = c.fibers[t];
        const unsigned x = threads.x, y = threads.y, i = unsigned(t % c.block_threads);
        const uint32_t n = c.block + uint32_t(c.block_of(t));
        f.lane.thread = {i % x, i / x % y, i / x / y};
        f.lane.block = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
        f.lane.threads = threads;
        f.lane.blocks = grid;
        f.lane.linear = t;
        f.lane.lane = t % 32;
        f.lane.warp = t / 32;
        f.stack_low = c.stacks + t * stride + 4096;
        // Tops at different places of a page: equal ones would fight for the same lines of the cache.
        f.stack_high = f.stack_low + STACK_BYTES - t * 11 % 64 * 64;
        f.stack_pointer = fresh_stack(f.stack_low, f.stack_high);
        f.copies.clear();
        f.group = 0;
        f.stores.clear();
        f.store_group = 0;
        f.follows = false;
        make_ready(t);
    }
    const int first = take_next();
    current = &c.fibers[first].lane;
    simt_switch(&c.main_stack, c.fibers[first].stack_pointer);
    current = nullptr;
    if (c.hopper.used) finish_hopper();
    if (c.mode.checked || c.mode.counts_alone)
        for (size_t warp = 0; warp < c.warps.size(); ++warp) count_conflicts(int(warp));
}

}  // namespace simt
