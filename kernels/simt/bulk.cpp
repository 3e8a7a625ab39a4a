// sm_90: bulk copies of tensors, either way.
//
// Copies are agents of their own: they access memory at a clock that nobody knows until he has waited for them. A lazy
// copy to shared memory comes when nobody else can go on. One from there reads and writes when its thread waits for that.
#include "runtime.h"

namespace simt {

static bool checked() { return context->mode.checked; }

#define CALLER offset_of_caller(__builtin_return_address(0))

// Rows of W bytes, at least 16: the number of a chunk in its row and the number of a row of 128 bytes, xored.
uint32_t swizzled(uint32_t address, int w) { return address ^ (address >> 7 & (w / 16 - 1)) << 4; }

// As src/simt/tensor_map.rs encodes it: innermost dimensions first.
struct Map {
    const char* base;
    int rank, element, swizzle;
    uint64_t extent[5], stride[5];
    uint32_t box[5];

    explicit Map(const uint64_t* word) {
        base = reinterpret_cast<const char*>(word[0]);
        rank = int(word[1] & 255);
        element = int(word[1] >> 8 & 255);
        swizzle = std::max(16, int(word[1] >> 16 & 255));
        for (int i = 0; i < 5; ++i) {
            extent[i] = word[2 + i];
            stride[i] = i == 0 ? uint64_t(element) : word[6 + i];
            box[i] = uint32_t(word[11 + i / 2] >> i % 2 * 32);
        }
    }
    uint32_t bytes() const { return box[0] * box[1] * box[2] * box[3] * box[4] * element; }
};
constexpr uint64_t MAP_MARK = 0x756e6775;  // the upper half of a map's second word

// Calls visit(offset in shared memory before the swizzle, first byte in global memory, elements that are inside) for
// every 16 bytes of a box. Where the box leaves the tensor in the middle of a chunk, the elements inside are a run.
template <typename Visit>
static void for_chunks(const Map& map, const int* at, Visit visit) {
    const int per_chunk = 16 / map.element;
    const uint32_t rows = map.box[1] * map.box[2] * map.box[3] * map.box[4], chunks = map.box[0] / per_chunk;
    for (uint32_t row = 0; row < rows; ++row) {
        bool inside = true;
        int64_t offset = 0;
        uint32_t rest = row;
        for (int i = 1; i < 5; ++i) {
            const int64_t x = int64_t(at[i]) + rest % map.box[i];
            rest /= map.box[i];
            inside = inside && x >= 0 && x < int64_t(map.extent[i]);
            offset += x * int64_t(map.stride[i]);
        }
        for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t first = int64_t(at[0]) + chunk * per_chunk;
            const int64_t low = std::max<int64_t>(first, 0);
            const int64_t high = std::min<int64_t>(first + per_chunk, int64_t(map.extent[0]));
            const int count = inside && high > low ? int(high - low) : 0;
            const int64_t skipped = count > 0 ? low - first : 0;
            visit((row * chunks + chunk) * 16 + uint32_t(skipped) * map.element,
                  map.base + offset + (first + skipped) * map.element, count);
        }
    }
}

static void perform(const BulkCopy& copy) {
    Context& c = *context;
    const Map map(copy.map);
    for_chunks(map, copy.at, [&](uint32_t offset, const char* from, int count) {
        const uint32_t to = copy.to + offset, chunk = swizzled(to & ~15u, map.swizzle);
        memset(c.shared + chunk, 0, 16);
        memcpy(c.shared + chunk + to % 16, from, count * map.element);
    });
    Mbarrier& m = c.hopper.mbarriers.at(copy.mbarrier);
    m.bytes -= map.bytes();
    if (checked()) {
        m.arriving.clocks.resize(c.actors, 0);
        uint32_t& known = m.arriving.clocks[copy.agent];
        known = std::max(known, copy.clock);
    }
    end_phase_if_complete(m);
}

bool perform_a_copy() {
    Context& c = *context;
    auto& copies = c.hopper.copies;
    if (copies.empty()) return false;
    const size_t i = c.mode.copies == RANDOM ? random_bits() % copies.size() : 0;
    const BulkCopy copy = copies[i];
    copies.erase(copies.begin() + i);
    perform(copy);
    return true;
}

// rank 0: any.
static Map map_of(const uint64_t* words, int rank, uint32_t pc) {
    const Map map(words);
    if (words[1] >> 32 != MAP_MARK || (rank != 0 && map.rank != rank) || reinterpret_cast<uintptr_t>(words) % 64 != 0)
        fail("BULK COPY of rank %d with something else than a map of that rank; @0x%x", rank, pc);
    return map;
}

// Moves nothing that anybody could see.
void bulk_prefetch(const uint64_t* words, int rank) {
    map_of(words, rank, CALLER);
    if (rank > 0) ++context->counts.bulk_prefetches;
}

void bulk_copy(uint32_t to, const uint64_t* words, uint32_t mbarrier, int rank, const int* at) {
    Context& c = *context;
    const uint32_t pc = CALLER;
    const int self = current->linear;
    const Map map = map_of(words, rank, pc);
    if (to % 128 != 0 || !is_own(to, map.bytes()))
        fail("BULK COPY of %u bytes to the address 0x%x; @0x%x", map.bytes(), to, pc);
    const Mbarrier& m = mbarrier_at(mbarrier, pc);
    ++c.counts.bulk_copies;
    c.counts.async_bytes += map.bytes();
    if (c.mode.counts_alone) {
        c.counts.shared_written_bytes += map.bytes();
        for_chunks(map, at, [&](uint32_t, const char* from, int count) { count_access(from, count * map.element, false); });
    }
    BulkCopy copy = {to, mbarrier, {}, {}, 0, 0};
    memcpy(copy.map, words, sizeof copy.map);
    memcpy(copy.at, at, sizeof copy.at);
    if (checked()) {
        if (!m.fenced)
            note("MISSING PROXY FENCE after the initialisation of an mbarrier: block %u thread %d at @0x%x", c.block, self, pc);
        const int agent = c.hopper.next_agent++ % COPY_AGENTS;
        copy.agent = first_copy_agent() + agent;
        copy.clock = ++c.hopper.agent_clocks[agent];
        std::vector<uint32_t> known(c.clock_of(self), c.clock_of(self) + c.actors);
        known[copy.agent] = copy.clock;
        const Actor actor = {copy.agent, copy.clock, known.data(), c.fenced_of(self)};
        for_chunks(map, at, [&](uint32_t offset, const char* from, int count) {
            if (count > 0) check_agent(actor, from, count * map.element, false, pc);
            check_agent(actor, c.shared + swizzled((to + offset) & ~15u, map.swizzle), 16, true, pc);
        });
    }
    if (happens_at_once())
        perform(copy);
    else
        c.hopper.copies.push_back(copy);
}

// Copies the other way. A thread's own groups: what is read is known to it by then, and so is what is written. Lazy ones
// read and write when their thread waits for it.
static void read_box(BulkStore& store) {
    Context& c = *context;
    const Map map(store.map);
    store.read.resize(map.bytes());
    for (uint32_t at = 0; at < map.bytes(); at += 16)
        memcpy(store.read.data() + at, c.shared + swizzled(store.from + at, map.swizzle), 16);
}

static void write_box(BulkStore& store) {
    const Map map(store.map);
    store.written = true;
    for_chunks(map, store.at, [&](uint32_t offset, const char* to, int count) {
        memcpy(const_cast<char*>(to), store.read.data() + offset, count * map.element);
    });
}

void bulk_store(const uint64_t* words, uint32_t from, int rank, const int* at) {
    begin_hopper();
    Context& c = *context;
    const uint32_t pc = CALLER;
    const int self = current->linear;
    const Map map = map_of(words, rank, pc);
    if (from % 128 != 0 || !is_own(from, map.bytes()))
        fail("BULK STORE of %u bytes from the address 0x%x; @0x%x", map.bytes(), from, pc);
    ++c.counts.bulk_stores;
    if (c.mode.counts_alone) {
        c.counts.shared_read_bytes += map.bytes();
        for_chunks(map, at, [&](uint32_t, const char* to, int count) { count_access(to, count * map.element, true); });
    }
    BulkStore store = {from, 0, {}, {}, 0, running().store_group, {}, false};
    memcpy(store.map, words, sizeof store.map);
    memcpy(store.at, at, sizeof store.at);
    if (checked()) {
        const int agent = c.hopper.next_agent++ % COPY_AGENTS;
        store.agent = first_copy_agent() + agent;
        store.clock = c.hopper.agent_clocks[agent] += 2;
        std::vector<uint32_t> known(c.clock_of(self), c.clock_of(self) + c.actors);
        known[store.agent] = store.clock;
        const Actor reads = {store.agent, store.clock - 1, known.data(), c.fenced_of(self)};
        const Actor writes = {store.agent, store.clock, known.data(), c.fenced_of(self)};
        for (uint32_t i = 0; i < map.bytes(); i += 16)
            check_agent(reads, c.shared + swizzled(from + i, map.swizzle), 16, false, pc);
        for_chunks(map, at, [&](uint32_t, const char* to, int count) {
            if (count > 0) check_agent(writes, to, count * map.element, true, pc);
        });
    }
    if (happens_at_once()) {
        read_box(store);
        write_box(store);
    }
    running().stores.push_back(store);
}

void bulk_commit() { ++running().store_group; }

void bulk_wait(int groups_left, bool only_read) {
    Context& c = *context;
    Fiber& f = running();
    std::vector<BulkStore> kept;
    for (BulkStore& store : f.stores) {
        const bool waited = store.group < f.store_group - groups_left;
        if (waited && store.read.empty()) read_box(store);
        if (waited && !only_read && !store.written) write_box(store);
        if (waited && checked()) {
            uint32_t& known = c.clock_of(current->linear)[store.agent];
            known = std::max(known, only_read ? store.clock - 1 : store.clock);
        }
        if (!waited || only_read) kept.push_back(store);
    }
    f.stores.swap(kept);
}

}  // namespace simt
