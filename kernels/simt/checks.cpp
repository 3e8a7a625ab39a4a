// The checked build's eyes: what the compiler's thread-sanitizer instrumentation calls, answered by us.
//
// Kernels are compiled once more with -fsanitize=thread, but the sanitizer's library is not linked: its
// functions are here. Every access is compared with what is known about those bytes. Order between threads of a
// block comes from barriers alone; shuffles, ldmatrix and mma promise none. Between blocks it comes from counters
// alone: who counts learns what those knew who counted before, and the rest of its block from it by a barrier.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace simt {

void note(const char* format, ...) {
    if (context->report.size() > 16384) return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    context->report += std::string(text) + "\n";
}

uint32_t module_offset(const void* pc) {
    Dl_info info;
    if (dladdr(pc, &info) == 0) return 0;
    return uint32_t(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase));
}

// All instrumented code is in one module, so its base is asked for once.
uint32_t offset_of_caller(const void* pc) {
    static const char* base = nullptr;
    if (base == nullptr) {
        Dl_info info;
        if (dladdr(pc, &info) == 0) return 0;
        base = static_cast<const char*>(info.dli_fbase);
    }
    return uint32_t(static_cast<const char*>(pc) - base);
}

void start_checks() {
    Context& c = *context;
    c.accesses.assign(c.threads / 32, {});
    if (c.mode.counts_alone) return;
    c.shared_cells.assign(((c.blocks - 1) * WINDOW + SHARED_BYTES) / GRANULE, Cell{});
    c.actors = c.threads;
    c.clocks.assign(size_t(c.threads) * c.actors, 0);
    c.fenced.clear();
    c.learnt.clear();
    for (int t = 0; t < c.threads; ++t) c.clock_of(t)[t] = 1;
}

// A block's first operation that goes on by itself makes room for agents among the actors.
void add_agents() {
    Context& c = *context;
    if (c.actors > c.threads) return;
    const std::vector<uint32_t> before = c.clocks;
    c.actors = first_copy_agent() + COPY_AGENTS;
    c.clocks.assign(size_t(c.threads) * c.actors, 0);
    c.fenced.assign(size_t(c.threads) * c.actors, 0);
    for (int t = 0; t < c.threads; ++t) memcpy(c.clock_of(t), &before[size_t(t) * c.threads], c.threads * 4);
}

static void join(std::vector<uint32_t>& known, const uint32_t* more) {
    known.resize(context->actors, 0);
    for (size_t i = 0; i < known.size(); ++i) known[i] = std::max(known[i], more[i]);
}

// What the thread has done so far happens before whatever those do who learn of it.
void release(int thread, Knowledge& known) {
    Context& c = *context;
    join(known.clocks, c.clock_of(thread));
    if (!c.fenced.empty()) join(known.fenced, c.fenced_of(thread));
    ++c.clock_of(thread)[thread];
}

void acquire(int thread, const Knowledge& known) {
    Context& c = *context;
    for (size_t i = 0; i < known.clocks.size(); ++i)
        c.clock_of(thread)[i] = std::max(c.clock_of(thread)[i], known.clocks[i]);
    for (size_t i = 0; i < known.fenced.size(); ++i)
        c.fenced_of(thread)[i] = std::max(c.fenced_of(thread)[i], known.fenced[i]);
}

// Everything that one of them did happens before everything that any of them will do.
void join_clocks(const std::vector<int>& threads) {
    Knowledge known;
    for (int t : threads) release(t, known);
    for (int t : threads) acquire(t, known);
}

struct Place {
    const char* space;
    long long offset, size;
};

static bool is_copy(int actor) { return actor >= first_copy_agent(); }

static std::string name_of(int actor) {
    const int agent = actor - context->threads;
    if (agent < 0) return "thread " + std::to_string(actor);
    return !is_copy(actor) ? "a product of warp " + std::to_string(agent) : "a bulk copy";
}

static void report(const char* kind, const Place& where, int actor, uint32_t pc) {
    if (!context->reported.insert({pc, 0}).second) return;
    note("%s: %s byte %lld of %lld; block %u %s at @0x%x", kind, where.space, where.offset, where.size,
         context->block, name_of(actor).c_str(), pc);
}

static void report_pair(const char* kind, const Place& where, int actor, uint32_t pc, int other, uint32_t other_pc) {
    if (!context->reported.insert({pc, other_pc}).second) return;
    note("%s: %s byte %lld of %lld; block %u %s at @0x%x and %s at @0x%x", kind, where.space, where.offset, where.size,
         context->block, name_of(actor).c_str(), pc, name_of(other).c_str(), other_pc);
}

static Cell* cells_of(const char* p, int bytes, Place& where, bool write, int thread, uint32_t pc) {
    Context& c = *context;
    if (c.is_shared(p)) {
        const uint32_t at = uint32_t(p - c.shared);
        where = {"shared memory", at % WINDOW, c.shared_used[at / WINDOW] % WINDOW};
        for (auto& [begin, end] : c.regions)
            if (at >= begin && at + bytes <= end) return &c.shared_cells[at / GRANULE];
        report(write ? "OUT OF BOUNDS write" : "OUT OF BOUNDS read", where, thread, pc);
        return nullptr;
    }
    Buffer* b = buffer_at(p);
    if (b == nullptr || p + bytes > b->high) {
        where = {"global memory", b ? static_cast<long long>(p - b->low) : 0, b ? static_cast<long long>(b->high - b->low) : 0};
        report(write ? "OUT OF BOUNDS write" : "OUT OF BOUNDS read", where, thread, pc);
        return nullptr;
    }
    where = {"global memory", static_cast<long long>(p - b->low), static_cast<long long>(b->high - b->low)};
    if (!running().follows) report("BEFORE THE LAUNCH IN FRONT has ended", where, thread, pc);
    if (b->cells == nullptr)
        b->cells = static_cast<Cell*>(calloc((b->high - b->low + GRANULE - 1) / GRANULE, sizeof(Cell)));
    return b->cells + (p - b->low) / GRANULE;
}

static void count(bool shared, bool write, int bytes) {
    Counts& n = context->counts;
    (shared ? (write ? n.shared_written_bytes : n.shared_read_bytes)
            : (write ? n.global_written_bytes : n.global_read_bytes)) += bytes;
}

// What another thread's stack or a constant is does not matter here: neither shared nor a device's.
void count_access(const void* address, int bytes, bool write) {
    const char* p = static_cast<const char*>(address);
    const bool shared = context->is_shared(p);
    if (shared || is_device_address(p)) count(shared, write, bytes);
}

// Whether what an actor of another block did at that hour of its own is before whatever somebody does who knows so much.
static bool is_before(uint32_t block, int actor, uint32_t clock, const uint32_t* known) {
    const auto found = context->learnt.find(block);
    if (found == context->learnt.end()) return false;
    const Learnt& learnt = found->second;
    return size_t(actor) < learnt.clocks.size() && clock <= learnt.clocks[actor] && known[learnt.thread] >= learnt.since;
}

static const char* kind_of_disorder(const Cell& cell, bool write) {
    if (write) return "RACE write after write";
    return is_copy(cell.writer) ? "READ BEFORE WAIT of a bulk copy" : "RACE read after write";
}

static void access(const Actor& who, const void* address, int bytes, bool write, Cell::State becomes, uint32_t pc) {
    Context& c = *context;
    const char* p = static_cast<const char*>(address);
    const bool shared = c.is_shared(p);
    Place where;
    Cell* cell = cells_of(p, bytes, where, write, who.number, pc);
    if (cell == nullptr) return;
    count(shared, write, bytes);
    const uint32_t* known = who.known;
    for (int left = (bytes + GRANULE - 1) / GRANULE; left > 0; --left, ++cell, where.offset += GRANULE) {
        const bool other_block = !shared && cell->write_block != c.block;
        const bool unordered =
            other_block ? !is_before(cell->write_block, cell->writer, cell->write_clock, known)
                        : cell->writer != who.number && cell->write_clock > known[cell->writer];
        if (cell->state == Cell::PENDING && !(other_block && shared))
            report_pair(write ? "RACE write over a copy in flight" : "READ BEFORE WAIT of an asynchronous copy", where,
                        who.number, pc, cell->writer, cell->write_pc);
        else if (cell->state != Cell::UNKNOWN && unordered)
            report_pair(kind_of_disorder(*cell, write), where, who.number, pc, cell->writer, cell->write_pc);
        else if (cell->state != Cell::UNKNOWN && who.fenced != nullptr && cell->writer < c.threads &&
                 cell->write_clock > who.fenced[cell->writer])
            report_pair("MISSING PROXY FENCE after a write", where, who.number, pc, cell->writer, cell->write_pc);
        if (!write && shared && cell->state == Cell::UNKNOWN) report("UNINITIALISED read", where, who.number, pc);
        if (write) {
            for (int i = 0; i < cell->readers; ++i) {
                const bool elsewhere = !shared && cell->read_block[i] != c.block;
                if (elsewhere ? !is_before(cell->read_block[i], cell->reader[i], cell->read_clock[i], known)
                              : cell->reader[i] != who.number && cell->read_clock[i] > known[cell->reader[i]])
                    report_pair("RACE write after read", where, who.number, pc, cell->reader[i], cell->read_pc[i]);
            }
            cell->state = becomes;
            cell->writer = uint16_t(who.number);
            cell->write_clock = who.clock;
            cell->write_block = c.block;
            cell->write_pc = pc;
            cell->readers = 0;
        } else {
            int slot = -1;
            for (int i = 0; i < cell->readers; ++i)
                if (cell->reader[i] == who.number && cell->read_block[i] == c.block) slot = i;
            // A thread that reads again takes no second place: a place without a reader would be block 0's thread 0.
            if (slot < 0) slot = cell->readers < 2 ? cell->readers++ : int(random_bits() % 2);
            cell->reader[slot] = uint16_t(who.number);
            cell->read_clock[slot] = who.clock;
            cell->read_block[slot] = c.block;
            cell->read_pc[slot] = pc;
        }
    }
}

static Actor thread_actor(int thread) {
    const uint32_t* known = context->clock_of(thread);
    return {thread, known[thread], known, nullptr};
}

void check_access(int thread, const void* address, int bytes, bool write, uint32_t pc) {
    access(thread_actor(thread), address, bytes, write, Cell::WRITTEN, pc);
}

void check_agent(const Actor& agent, const void* address, int bytes, bool write, uint32_t pc) {
    access(agent, address, bytes, write, Cell::WRITTEN, pc);
}

void check_copy_issued(uint32_t to, const void* from, int bytes, uint32_t pc) {
    const Actor thread = thread_actor(current->linear);
    if (bytes > 0) access(thread, from, bytes, false, Cell::WRITTEN, pc);
    access(thread, context->shared + to, 16, true, Cell::PENDING, pc);
}

void check_copy_done(uint32_t to, int bytes) {
    Context& c = *context;
    for (uint32_t at = to; at < to + uint32_t(bytes); at += GRANULE) {
        Cell& cell = c.shared_cells[at / GRANULE];
        if (cell.state != Cell::PENDING || cell.writer != current->linear) continue;
        cell.state = Cell::WRITTEN;
        cell.write_clock = c.clock_of(current->linear)[current->linear];
    }
}

// -- bank conflicts -------------------------------------------------------------------------------------------

void note_shared_access(uint32_t address, int words, uint32_t pc) {
    Accesses& here = context->accesses[current->warp].try_emplace(pc, Accesses{}).first->second;
    here.words = words;
    const uint32_t k = here.times[current->lane]++;
    if (k >= here.kth.size()) here.kth.resize(k + 1);
    here.kth[k].lanes |= 1u << current->lane;
    here.kth[k].address[current->lane] = address;
}

// An access of 4, 8 or 16 bytes a lane takes 1, 2 or 4 turns of 32, 16 or 8 lanes, and each turn a cycle more for every
// further word in the same bank.
static uint64_t conflicts(const Accesses::Together& together, int words) {
    uint64_t cycles = 0;
    for (int first = 0; first < 32; first += 32 / words) {
        std::set<uint32_t> touched;
        int in_bank[32] = {0}, most = 1;
        for (int lane = first; lane < first + 32 / words; ++lane)
            for (int i = 0; i < words && (together.lanes >> lane & 1); ++i) {
                const uint32_t word = together.address[lane] / 4 + i;
                if (touched.insert(word).second) most = std::max(most, ++in_bank[word % 32]);
            }
        cycles += most - 1;
    }
    return cycles;
}

void count_conflicts(int warp) {
    Context& c = *context;
    for (auto& [pc, here] : c.accesses[warp])
        for (const Accesses::Together& together : here.kth) c.counts.access_conflicts += conflicts(together, here.words);
    c.accesses[warp].clear();
}

// -- what the instrumentation calls ---------------------------------------------------------------------------

static inline void hook(const void* address, int bytes, bool write, const void* caller) {
    if (current == nullptr || context == nullptr) return;
    if (context->mode.counts_alone) return count_access(address, bytes, write);
    if (!context->mode.checked) return;
    Context& c = *context;
    const char* p = static_cast<const char*>(address);
    const bool shared = c.is_shared(p);
    if (shared || is_device_address(p))
        return check_access(current->linear, p, bytes, write, offset_of_caller(caller));
    // What a thread keeps for itself, parameters and constants. Another thread's stack is nobody's business.
    const Fiber& f = running();
    if (p >= c.stacks && p < c.stacks + (STACK_BYTES + 4096) * size_t(c.threads) && (p < f.stack_low || p >= f.stack_high + 64))
        note("FOREIGN STACK: block %u thread %d at @0x%x", c.block, current->linear, offset_of_caller(caller));
    if (c.hopper.products_pending > 0 && belongs_to_a_product(p, write)) {
        const uint32_t pc = offset_of_caller(caller);
        if (c.reported.insert({pc, 1}).second)
            note("REGISTERS of a product that nobody has waited for: block %u thread %d at @0x%x", c.block,
                 current->linear, pc);
    }
}

// A thread counts: it learns from those who have, and tells those who will.
static void hook_of_counter(const void* counter, const void* caller) {
    if (current == nullptr || context == nullptr) return;
    Context& c = *context;
    if (c.mode.counts_alone) return count_access(counter, 4, true);
    if (!c.mode.checked) return;
    const int thread = current->linear;
    Place where;
    if (cells_of(static_cast<const char*>(counter), 4, where, true, thread, offset_of_caller(caller)) == nullptr) return;
    count(false, true, 4);
    uint32_t* own = c.clock_of(thread);
    std::vector<Told>& told = c.told[counter];
    for (const Told& before : told)
        if (before.block != c.block) c.learnt[before.block] = {before.clocks, thread, own[thread]};
    told.push_back({c.block, std::vector<uint32_t>(own, own + c.actors)});
    ++own[thread];
}

}  // namespace simt

#define CALLER __builtin_return_address(0)
#define HOOKS(n)                                                                                     \
    void __tsan_read##n(void* p) { simt::hook(p, n, false, CALLER); }                                \
    void __tsan_write##n(void* p) { simt::hook(p, n, true, CALLER); }                                \
    void __tsan_unaligned_read##n(void* p) { simt::hook(p, n, false, CALLER); }                      \
    void __tsan_unaligned_write##n(void* p) { simt::hook(p, n, true, CALLER); }                      \
    void __tsan_volatile_read##n(void* p) { simt::hook(p, n, false, CALLER); }                       \
    void __tsan_volatile_write##n(void* p) { simt::hook(p, n, true, CALLER); }
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
unsigned __tsan_atomic32_fetch_add(volatile unsigned* p, unsigned more, int) {
    simt::hook_of_counter(const_cast<const unsigned*>(p), CALLER);
    return __atomic_fetch_add(p, more, __ATOMIC_ACQ_REL);
}
void __tsan_read_range(void* p, unsigned long n) { simt::hook(p, int(n), false, CALLER); }
void __tsan_write_range(void* p, unsigned long n) { simt::hook(p, int(n), true, CALLER); }
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
    simt::hook(from, int(n), false, CALLER);
    simt::hook(to, int(n), true, CALLER);
    return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int byte, unsigned long n) {
    simt::hook(to, int(n), true, CALLER);
    return memset(to, byte, n);
}
}
