// runtime.h - the state of a launch, shared by the parts of the runtime.
//
// Every thread of a block is a fiber with its own stack; the fibers of a block take turns on one thread of the
// operating system, and blocks run one after the other. Those of a cluster run together: threads and warps are counted
// on from block to block, and so are shared addresses, a window each. A warp collective is a meeting: every lane leaves its
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

constexpr uint32_t SHARED_BYTES = 232448;  // 227 KiB, as on H100
constexpr int MOST_BLOCKS = 8;             // of a cluster
constexpr uint32_t WINDOW = 1 << 18;       // of shared addresses: each block of a cluster has the next
constexpr uint32_t RED_ZONE = 64;          // between two objects in shared memory
constexpr size_t STACK_BYTES = 32768;      // of a fiber, besides a guard page
constexpr int GRANULE = 2;                 // bytes that the checks tell apart

enum Schedule { FIFO = 0, LIFO = 1, PRIORITIES = 2 };
enum Copies { EAGER = 0, LAZY = 1, RANDOM = 2 };

// As in src/simt/mod.rs. Counts alone: the instrumented build looks at nothing and products are not computed.
struct Mode {
    int32_t schedule, copies, checked, counts_alone;
    uint64_t seed;
    uint32_t first_block, blocks;  // which of the grid's blocks this context runs
};
struct Counts {
    uint64_t threads, switches, barriers, collectives, ldmatrix, bank_conflicts, mma, async_bytes;
    uint64_t global_read_bytes, global_written_bytes, shared_read_bytes, shared_written_bytes;
    uint64_t access_conflicts, wgmma, bulk_copies, bulk_prefetches, bulk_stores;
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

// From shared memory: of the agent's clock the first half is reading, the second writing.
struct BulkStore {
    uint32_t from, clock;
    uint64_t map[16];
    int at[5], agent, group;
    std::vector<char> read;  // what it has read, once it has
    bool written;
};

struct Fiber {
    Lane lane;
    void* stack_pointer;
    char *stack_low, *stack_high;
    enum State { READY, WAITING, DONE } state;
    const char* waits_for;
    Site waits_at;
    std::vector<Copy> copies;
    int group;     // of cp.async, the one being filled
    std::vector<BulkStore> stores;
    int store_group;
    bool follows;  // has waited for the launch in front
};

typedef void (*Meeting)(void** arguments);
struct Warp {
    uint32_t arrived, live;
    Meeting meeting;
    void* arguments[32];
    const char* name;
    Site site;
};

// What the lanes of a warp did at one place since the warp last met: for every lane how often, and the k-th times of
// all lanes side by side, as one instruction of the warp.
struct Accesses {
    struct Together {
        uint32_t lanes, address[32];
    };
    int words;
    uint32_t times[32];
    std::vector<Together> kth;
};

// What somebody knows of every actor: up to which of its clocks, and up to which of a thread's clocks its writes are
// behind a proxy fence.
struct Knowledge {
    std::vector<uint32_t> clocks, fenced;
};

// What a thread of a block knew of its block when it counted.
struct Told {
    uint32_t block;
    std::vector<uint32_t> clocks;
};
// The same, learnt by a thread of this block at that hour of its own.
struct Learnt {
    std::vector<uint32_t> clocks;
    int thread;
    uint32_t since;
};

// Actors besides threads: the products of each warp, then bulk copies in turn.
constexpr int COPY_AGENTS = 32;

// In shared memory; arrivals release, waits acquire.
struct Mbarrier {
    uint32_t count, missing, phase;  // arrivals of a phase, of this one those to come, phases that have ended
    int64_t bytes;                   // announced and not yet there
    int initialiser;
    uint32_t clock;  // of its initialisation
    bool fenced;
    Knowledge arriving, ended;  // of those who arrive in this phase, who arrived in the last one
    std::vector<int> waiting;
};

struct BulkCopy {
    uint32_t to, mbarrier;
    uint64_t map[16];
    int at[5], agent;
    uint32_t clock;
};

// Of all threads of a cluster; arrivals release, waits acquire.
struct ClusterBarrier {
    int arrived;
    uint32_t phase;
    std::vector<uint32_t> phase_of;  // a thread's: that which it has arrived in, plus one
    Knowledge arriving, ended;
    std::vector<int> waiting;
};

struct NamedBarrier {
    int threads, arrived;
    std::vector<int> waiting;
    Knowledge known;
};

// A product as one warp has issued it: its 16 rows.
struct Product {
    Wgmma whole;
    float* d[32];
    const uint32_t* a_at[32];
    uint32_t a[32][4];
    uint32_t group, clock, pc;
    bool done;
};
struct ProductsOfWarp {
    std::vector<Product> pending;
    std::vector<std::pair<uint32_t, uint32_t>> groups;  // number and clock of those that nobody has waited for
    uint32_t group, issued, clock;
    bool fenced;
    std::vector<float> left;  // what the last product left in the registers
    float* left_in[32];
};

// What sm_90 adds to a block's state; empty where a kernel uses none of it.
struct Hopper {
    bool used;
    std::map<uint32_t, Mbarrier> mbarriers;
    std::vector<BulkCopy> copies;
    NamedBarrier named[MOST_BLOCKS][16];
    std::vector<ProductsOfWarp> warps;
    std::vector<std::vector<Wgmma>> issued;  // by every warpgroup
    uint32_t agent_clocks[COPY_AGENTS];
    int next_agent, products_pending;
};

struct Context {
    std::vector<Buffer> buffers;  // by address
    // The launch.
    Mode mode;
    Counts counts;
    Entry entry;
    const void* params;
    uint32_t block;              // its number; of a cluster, the first one's
    int blocks, block_threads;   // that run together, and threads of each
    int threads, live;           // of all of them
    int live_of[MOST_BLOCKS];    // of each
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<int> at_barrier[MOST_BLOCKS];
    Site barrier_site[MOST_BLOCKS];
    ClusterBarrier cluster_barrier;
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
    uint32_t shared_used[MOST_BLOCKS];
    std::map<std::pair<int, const void*>, uint32_t> objects;  // by block
    std::vector<std::pair<uint32_t, uint32_t>> regions;  // begin, end
    std::vector<Cell> shared_cells;
    int actors;                    // threads, and agents where there are any
    std::vector<uint32_t> clocks;  // [threads, actors]
    std::vector<uint32_t> fenced;  // [threads, actors]: which writes of threads agents see; empty without agents
    std::vector<std::map<uint32_t, Accesses>> accesses;  // of every warp, by place
    std::map<const void*, std::vector<Told>> told;       // of a launch, by counter
    std::map<uint32_t, Learnt> learnt;                   // by this block, of others
    Hopper hopper;

    int block_of(int thread) const { return thread / block_threads; }
    char* window(int of) const { return shared + size_t(of) * WINDOW; }
    bool is_shared(const char* p) const { return p >= shared && p < shared + size_t(blocks) * WINDOW; }
    uint32_t* clock_of(int thread) { return clocks.data() + size_t(thread) * actors; }
    uint32_t* fenced_of(int thread) { return fenced.data() + size_t(thread) * actors; }
};

extern __thread Context* context;  // of the launch that this thread runs

inline Fiber& running() { return context->fibers[current->linear]; }
inline int first_copy_agent() { return context->threads + context->threads / 32; }
inline int own_block() { return context->block_of(current->linear); }
// Whether the running thread's own block has these bytes.
inline bool is_own(uint32_t address, uint32_t bytes) {
    return int(address / WINDOW) == own_block() && address % WINDOW + bytes <= SHARED_BYTES;
}
inline uint64_t random_bits() {
    uint64_t x = context->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return context->random = x;
}

// Who accesses memory: a thread, or an operation that goes on while its thread does.
struct Actor {
    int number;
    uint32_t clock;
    const uint32_t *known, *fenced;  // fenced: null for threads
};

// scheduler.cpp
void meet(Meeting meeting, void* arguments, const char* name, Site site);
float half_to_float(uint16_t h, bool bf16);
std::string place(Site site);
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
uint32_t offset_of_caller(const void* pc);
void start_checks();
void check_access(int thread, const void* address, int bytes, bool write, uint32_t pc);
void check_copy_issued(uint32_t to, const void* from, int bytes, uint32_t pc);
void check_copy_done(uint32_t to, int bytes);
void join_clocks(const std::vector<int>& threads);
void add_agents();
void acquire(int thread, const Knowledge& known);
void release(int thread, Knowledge& known);
void check_agent(const Actor& agent, const void* address, int bytes, bool write, uint32_t pc);
void note_shared_access(uint32_t address, int words, uint32_t pc);
void count_conflicts(int warp);
void count_access(const void* address, int bytes, bool write);

// bulk.cpp
bool perform_a_copy();
uint32_t swizzled(uint32_t address, int width);

// hopper.cpp
void begin_hopper();
bool happens_at_once();
Mbarrier& mbarrier_at(uint32_t address, uint32_t pc);
void end_phase_if_complete(Mbarrier& mbarrier);
void finish_hopper();
std::string waiting_mbarriers();
bool belongs_to_a_product(const char* address, bool write);

// cluster.cpp, which also has what ptx_cluster_sm90.cuh calls
int blocks_of_cluster(const char* kernel);
void leave_cluster(int thread);

}  // namespace simt
