// The checked build's eyes: what the compiler's thread-sanitizer instrumentation calls, answered by us.
//
// Kernels are compiled once more with -fsanitize=thread, but the sanitizer's library is not linked: its
// functions are here. Every access is compared with what is known about those bytes. Order between threads of a
// block comes from barriers alone; shuffles, ldmatrix and mma promise none. Between blocks there is no order.
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
static uint32_t offset_of_caller(const void* pc) {
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
    c.shared_cells.assign(SHARED_BYTES / GRANULE, Cell{});
    c.clocks.assign(size_t(c.threads) * c.threads, 0);
    for (int t = 0; t < c.threads; ++t) c.clock_of(t)[t] = 1;
}

// Everything that one of them did happens before everything that any of them will do.
void join_clocks(const std::vector<int>& threads) {
    Context& c = *context;
    std::vector<uint32_t> latest(c.threads, 0);
    for (int t : threads)
        for (int i = 0; i < c.threads; ++i) latest[i] = std::max(latest[i], c.clock_of(t)[i]);
    for (int t : threads) {
        memcpy(c.clock_of(t), latest.data(), latest.size() * 4);
        ++c.clock_of(t)[t];
    }
}

struct Place {
    const char* space;
    long long offset, size;
};

static void report(const char* kind, const Place& where, int thread, uint32_t pc) {
    if (!context->reported.insert({pc, 0}).second) return;
    note("%s: %s byte %lld of %lld; block %u thread %d at @0x%x", kind, where.space, where.offset, where.size,
         context->block, thread, pc);
}

static void report_pair(const char* kind, const Place& where, int thread, uint32_t pc, int other, uint32_t other_pc) {
    if (!context->reported.insert({pc, other_pc}).second) return;
    note("%s: %s byte %lld of %lld; block %u thread %d at @0x%x and thread %d at @0x%x", kind, where.space, where.offset,
         where.size, context->block, thread, pc, other, other_pc);
}

static Cell* cells_of(const char* p, int bytes, Place& where, bool write, int thread, uint32_t pc) {
    Context& c = *context;
    if (p >= c.shared && p < c.shared + SHARED_BYTES) {
        const uint32_t at = uint32_t(p - c.shared);
        where = {"shared memory", at, c.shared_used};
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
    if (b->cells == nullptr)
        b->cells = static_cast<Cell*>(calloc((b->high - b->low + GRANULE - 1) / GRANULE, sizeof(Cell)));
    return b->cells + (p - b->low) / GRANULE;
}

static void count(bool shared, bool write, int bytes) {
    Counts& n = context->counts;
    (shared ? (write ? n.shared_written_bytes : n.shared_read_bytes)
            : (write ? n.global_written_bytes : n.global_read_bytes)) += bytes;
}

static void access(int thread, const void* address, int bytes, bool write, Cell::State becomes, uint32_t pc) {
    Context& c = *context;
    const char* p = static_cast<const char*>(address);
    const bool shared = p >= c.shared && p < c.shared + SHARED_BYTES;
    Place where;
    Cell* cell = cells_of(p, bytes, where, write, thread, pc);
    if (cell == nullptr) return;
    count(shared, write, bytes);
    const uint32_t* known = c.clock_of(thread);
    for (int left = (bytes + GRANULE - 1) / GRANULE; left > 0; --left, ++cell, where.offset += GRANULE) {
        const bool other_block = !shared && cell->write_block != c.block;
        const bool unordered =
            other_block || (cell->writer != thread && cell->write_clock > known[cell->writer]);
        if (cell->state == Cell::PENDING && !(other_block && shared))
            report_pair(write ? "RACE write over a copy in flight" : "READ BEFORE WAIT of an asynchronous copy", where,
                        thread, pc, cell->writer, cell->write_pc);
        else if (cell->state != Cell::UNKNOWN && unordered)
            report_pair(write ? "RACE write after write" : "RACE read after write", where, thread, pc, cell->writer,
                        cell->write_pc);
        if (!write && shared && cell->state == Cell::UNKNOWN) report("UNINITIALISED read", where, thread, pc);
        if (write) {
            for (int i = 0; i < cell->readers; ++i) {
                const bool elsewhere = !shared && cell->read_block[i] != c.block;
                if (elsewhere || (cell->reader[i] != thread && cell->read_clock[i] > known[cell->reader[i]]))
                    report_pair("RACE write after read", where, thread, pc, cell->reader[i], cell->read_pc[i]);
            }
            cell->state = becomes;
            cell->writer = uint16_t(thread);
            cell->write_clock = known[thread];
            cell->write_block = c.block;
            cell->write_pc = pc;
            cell->readers = 0;
        } else {
            int slot = -1;
            for (int i = 0; i < cell->readers; ++i)
                if (cell->reader[i] == thread && cell->read_block[i] == c.block) slot = i;
            // A thread that reads again takes no second place: a place without a reader would be block 0's thread 0.
            if (slot < 0) slot = cell->readers < 2 ? cell->readers++ : int(random_bits() % 2);
            cell->reader[slot] = uint16_t(thread);
            cell->read_clock[slot] = known[thread];
            cell->read_block[slot] = c.block;
            cell->read_pc[slot] = pc;
        }
    }
}

void check_access(int thread, const void* address, int bytes, bool write, uint32_t pc) {
    access(thread, address, bytes, write, Cell::WRITTEN, pc);
}

void check_copy_issued(uint32_t to, const void* from, int bytes, uint32_t pc) {
    const int thread = current->linear;
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

// -- what the instrumentation calls ---------------------------------------------------------------------------

static inline void hook(const void* address, int bytes, bool write, const void* caller) {
    if (current == nullptr || context == nullptr || !context->mode.checked) return;
    Context& c = *context;
    const char* p = static_cast<const char*>(address);
    const bool shared = p >= c.shared && p < c.shared + SHARED_BYTES;
    if (shared || is_device_address(p))
        return access(current->linear, p, bytes, write, Cell::WRITTEN, offset_of_caller(caller));
    // What a thread keeps for itself, parameters and constants. Another thread's stack is nobody's business.
    const Fiber& f = running();
    if (p >= c.stacks && p < c.stacks + (STACK_BYTES + 4096) * size_t(c.threads) && (p < f.stack_low || p >= f.stack_high + 64))
        note("FOREIGN STACK: block %u thread %d at @0x%x", c.block, current->linear, offset_of_caller(caller));
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
