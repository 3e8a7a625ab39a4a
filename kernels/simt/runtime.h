// runtime.h - the state of a launch, shared by the parts of the runtime.
//
// Every thread of a block is a fiber with its own stack; the fibers of a block take turns on one thread of the
// operating system, and blocks run one after the other. A warp collective is a meeting: every lane leaves its
// arguments, the last one computes for all. Whoever cannot go on gives way to a thread that can; if there is
// none, that is a deadlock and a report, not a hang.
#pragma once
#include <setjmp.h>

#include <algorithm>
#include <cstdarg>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "simt.h"

namespace simt {

constexpr int MOST_THREADS = 1024;
constexpr uint32_t SHARED_BYTES = 232448;  // 227 KiB, as on H100
constexpr uint32_t RED_ZONE = 64;          // between two objects in shared memory
constexpr size_t STACK_BYTES = 32768;      // of a fiber, besides a guard page
constexpr int GRANULE = 2;                 // bytes that the checks tell apart

enum Schedule { FIFO = 0, LIFO = 1, PRIORITIES = 2 };
enum Copies { EAGER = 0, LAZY = 1, RANDOM = 2 };

// As in src/simt/mod.rs.
struct Mode {
    int32_t schedule, copies, checked, pad;
    uint64_t seed;
    uint32_t first_block, blocks;  // which of the grid's blocks this context runs
};
struct Counts {
    uint64_t threads, switches, barriers, collectives, ldmatrix, bank_conflicts, mma, async_bytes;
    uint64_t global_read_bytes, global_written_bytes, shared_read_bytes, shared_written_bytes;
};

// What is known about two bytes of memory: who wrote them last, and two of those who read them since.
struct Cell {
    enum State : uint8_t { UNKNOWN, WRITTEN, PENDING };
    uint32_t write_clock, write_block, write_pc;
    uint32_t read_clock[2], read_block[2], read_pc[2];
    uint16_t writer, reader[2];
    uint8_t state, readers;
};

// A buffer in a slot of its own, far from every other.
struct Buffer {
    char *low, *high;            // the caller's bytes
    char *page_low, *page_high;  // what is mapped; the rest of the slot faults
    int slot;
    Cell* cells;
};

struct Copy {
    uint32_t to, pc;
    const void* from;
    int bytes, group;
    bool done;
};

struct Fiber {
    Lane lane;
    void* stack_pointer;
    char *stack_low, *stack_high;
    enum State { READY, WAITING, DONE } state;
    const char* waits_for;
    Site waits_at;
    std::vector<Copy> copies;
    int group;  // of cp.async, the one being filled
};

typedef void (*Meeting)(void** arguments);
struct Warp {
    uint32_t arrived, live;
    Meeting meeting;
    void* arguments[32];
    const char* name;
    Site site;
};

struct Context {
    std::vector<Buffer> buffers;  // by address
    // The launch.
    Mode mode;
    Counts counts;
    Entry entry;
    const void* params;
    uint32_t block;  // its number
    int threads, live;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<int> at_barrier;
    Site barrier_site;
    uint64_t random;
    std::string report;
    std::set<std::pair<uint32_t, uint32_t>> reported;
    // The scheduler.
    std::vector<int> queue;
    size_t head;
    std::vector<uint32_t> priority;  // of a warp
    void* main_stack;
    sigjmp_buf failed;
    // Memory.
    char* stacks;
    int stacks_for;
    char* handler_stack;
    char* shared;
    uint32_t shared_used;
    std::map<const void*, uint32_t> objects;
    std::vector<std::pair<uint32_t, uint32_t>> regions;  // begin, end
    std::vector<Cell> shared_cells;
    std::vector<uint32_t> clocks;  // [threads, threads]

    uint32_t* clock_of(int thread) { return clocks.data() + size_t(thread) * threads; }
};

extern __thread Context* context;  // of the launch that this thread runs

inline Fiber& running() { return context->fibers[current->linear]; }
inline uint64_t random_bits() {
    uint64_t x = context->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return context->random = x;
}

// scheduler.cpp
void make_ready(int thread);
void wait_for(const char* what, Site site);
void give_way();
void run_block(Index grid, Index threads, uint32_t dynamic_bytes);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// memory.cpp
Buffer* buffer_at(const char* address);
bool is_device_address(const char* address);
void install_fault_handler();
const char* broken_canary();
void forget_buffers();

// checks.cpp
void note(const char* format, ...) __attribute__((format(printf, 1, 2)));
uint32_t module_offset(const void* pc);
void start_checks();
void check_access(int thread, const void* address, int bytes, bool write, uint32_t pc);
void check_copy_issued(uint32_t to, const void* from, int bytes, uint32_t pc);
void check_copy_done(uint32_t to, int bytes);
void join_clocks(const std::vector<int>& threads);

}  // namespace simt
