// sm_90: barriers of some threads, barriers in shared memory, and products of a warpgroup.
//
// Products are agents of their own: they access memory at a clock that nobody knows until he has waited for them, each
// warp's part for itself. A lazy one comes when its warp waits for it. Products of the four warps of a group need not
// meet: nothing orders the warps.
#include "runtime.h"

namespace simt {

static bool checked() { return context->mode.checked; }

void begin_hopper() {
    Context& c = *context;
    if (checked()) add_agents();
    if (c.hopper.used) return;
    c.hopper.used = true;
    c.hopper.warps.assign(c.threads / 32, ProductsOfWarp{});
    c.hopper.issued.assign((c.threads + 127) / 128, {});
}

bool happens_at_once() {
    const Mode& mode = context->mode;
    return mode.copies == EAGER || (mode.copies == RANDOM && random_bits() % 2 == 0);
}

#define CALLER offset_of_caller(__builtin_return_address(0))

// -- barriers of some threads --------------------------------------------------------------------------------

void named_barrier(int id, int threads, bool wait, Site site) {
    begin_hopper();
    Context& c = *context;
    if (id < 1 || id > 15 || threads % 32 != 0 || threads < 32 || threads > c.block_threads)
        fail("bar.sync: barrier %d of %d threads in a block of %d, at %s", id, threads, c.block_threads,
             place(site).c_str());
    NamedBarrier& b = c.hopper.named[own_block()][id];
    if (b.arrived > 0 && b.threads != threads)
        fail("bar.sync: barrier %d is of %d threads, and of %d at %s", id, b.threads, threads, place(site).c_str());
    b.threads = threads;
    const int self = current->linear;
    if (checked()) release(self, b.known);
    if (wait) b.waiting.push_back(self);
    if (++b.arrived < threads) return wait ? wait_for("a named barrier", site) : void();
    ++c.counts.barriers;
    for (int thread : b.waiting) {
        if (checked()) acquire(thread, b.known);
        if (thread != self) make_ready(thread);
    }
    b = NamedBarrier{};
    if (c.mode.schedule != FIFO) give_way();
}

// Always the same lane of a launch; which one is nobody's business.
static void do_elect(void** lanes) {
    const int chosen = context->mode.schedule == FIFO ? 0 : 31;
    for (int i = 0; i < 32; ++i) *static_cast<bool*>(lanes[i]) = i == chosen;
}
bool elect(Site site) {
    bool elected = false;
    meet(do_elect, &elected, "elect.sync", site);
    return elected;
}

// -- barriers in shared memory -------------------------------------------------------------------------------

Mbarrier& mbarrier_at(uint32_t address, uint32_t pc) {
    Context& c = *context;
    auto found = c.hopper.mbarriers.find(address);
    if (found == c.hopper.mbarriers.end())
        fail("MBARRIER at the address 0x%x was never initialised; block %u thread %d at @0x%x", address, c.block,
             current->linear, pc);
    Mbarrier& m = found->second;
    const int self = current->linear;
    if (checked() && self != m.initialiser && m.clock > c.clock_of(self)[m.initialiser])
        note("RACE use of an mbarrier that thread %d initialises: block %u thread %d at @0x%x", m.initialiser, c.block,
             self, pc);
    return m;
}

void end_phase_if_complete(Mbarrier& m) {
    if (m.missing != 0 || m.bytes != 0) return;
    ++m.phase;
    m.missing = m.count;
    m.ended = m.arriving;
    m.arriving = Knowledge{};
    for (int thread : m.waiting) make_ready(thread);
    m.waiting.clear();
}

void mbarrier_init(uint32_t address, uint32_t count) {
    begin_hopper();
    Context& c = *context;
    const uint32_t pc = CALLER;
    const int self = current->linear;
    if (address % 8 != 0 || !is_own(address, 8) || count == 0 || count >= 1u << 20)
        fail("MBARRIER of %u arrivals at the address 0x%x; @0x%x", count, address, pc);
    Mbarrier m = {};
    m.count = m.missing = count;
    m.initialiser = self;
    if (checked()) {
        check_access(self, c.shared + address, 8, true, pc);
        m.clock = c.clock_of(self)[self];
    }
    if (!c.hopper.mbarriers.emplace(address, m).second)
        fail("MBARRIER at the address 0x%x is initialised twice; @0x%x", address, pc);
}

void fence_mbarrier_init() {
    for (auto& [address, m] : context->hopper.mbarriers)
        if (m.initialiser == current->linear) m.fenced = true;
}

void mbarrier_arrive(uint32_t address, uint32_t bytes) {
    const uint32_t pc = CALLER;
    Mbarrier& m = mbarrier_at(address, pc);
    if (m.missing == 0)
        fail("MBARRIER at the address 0x%x has more than %u arrivals; block %u thread %d at @0x%x", address, m.count,
             context->block, current->linear, pc);
    if (checked()) release(current->linear, m.arriving);
    m.bytes += bytes;
    --m.missing;
    const bool wakes = !m.waiting.empty();
    end_phase_if_complete(m);
    // Who has waited may be quicker than who comes last.
    if (wakes && m.waiting.empty() && context->mode.schedule != FIFO) give_way();
}

void mbarrier_wait(uint32_t address, uint32_t parity, Site site) {
    const uint32_t pc = CALLER;
    const int self = current->linear;
    Mbarrier& m = mbarrier_at(address, pc);
    if (context->mode.schedule == PRIORITIES && random_bits() % 4 == 0) give_way();
    while ((m.phase & 1) == (parity & 1)) {
        m.waiting.push_back(self);
        wait_for("an mbarrier", site);
    }
    if (checked()) acquire(self, m.ended);
}

std::string waiting_mbarriers() {
    std::string all;
    for (auto& [address, m] : context->hopper.mbarriers) {
        if (m.waiting.empty()) continue;
        char text[160];
        snprintf(text, sizeof text, " the mbarrier at 0x%x is in phase %u and lacks %u of %u arrivals and %lld bytes;",
                 address, m.phase, m.missing, m.count, static_cast<long long>(m.bytes));
        all += text;
    }
    return all;
}

// Counts for what this thread has written itself.
void fence_proxy_async() {
    begin_hopper();
    fence_mbarrier_init();
    if (!checked()) return;
    const int self = current->linear;
    context->fenced_of(self)[self] = context->clock_of(self)[self]++;
}

// -- products of a warpgroup ---------------------------------------------------------------------------------

// Where chunk `chunk` of 16 bytes in line `line` of an operand lies: lines are rows with 2 chunks of k, or k with
// chunks of 8 rows.
static uint32_t chunk_address(uint64_t descriptor, bool mn_major, int line, int chunk) {
    static const int WIDTH[4] = {16, 128, 64, 32};
    const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, leading = uint32_t(descriptor >> 16 & 0x3fff) << 4,
                   stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
    const int w = WIDTH[descriptor >> 62], across = w / 16;
    uint32_t address = start + line % 8 * w;
    if (w == 16)
        address += mn_major ? chunk * stride + line / 8 * leading : line / 8 * stride + chunk * leading;
    else if (mn_major)
        address += chunk / across * leading + chunk % across * 16 + line / 8 * stride;
    else
        address += line / 8 * stride + chunk * 16;
    return swizzled(address, w);
}

// Calls visit(row, k, address) for the chunks of an operand's rows [first, first + rows), 8 elements each.
template <typename Visit>
static void for_operand(uint64_t descriptor, bool mn_major, int first, int rows, Visit visit) {
    for (int line = 0; line < (mn_major ? 16 : rows); ++line)
        for (int chunk = 0; chunk < (mn_major ? rows / 8 : 2); ++chunk) {
            const uint32_t at = mn_major ? chunk_address(descriptor, true, line, first / 8 + chunk)
                                         : chunk_address(descriptor, false, first + line, chunk);
            visit(mn_major ? chunk * 8 : line, mn_major ? line : chunk * 8, at);
        }
}

static void check_descriptor(uint64_t descriptor, int lines, bool mn_major, uint32_t pc) {
    static const uint32_t PATTERN[4] = {0, 0x380, 0x180, 0x80};
    const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, base_offset = uint32_t(descriptor >> 49 & 7);
    bool outside = false;
    for_operand(descriptor, mn_major, 0, lines, [&](int, int, uint32_t at) { outside = outside || at + 16 > SHARED_BYTES; });
    if (outside || base_offset != 0 || (start & PATTERN[descriptor >> 62]) != 0)
        fail("WGMMA with the descriptor 0x%llx, which leaves shared memory or starts inside a swizzle's rows; @0x%x",
             static_cast<unsigned long long>(descriptor), pc);
}

// The 16 rows of one warp.
static void perform(const Product& p, int warp) {
    Context& c = *context;
    if (c.mode.counts_alone) return;
    const char* window = c.window(c.block_of(warp * 32));
    static thread_local float a[16][16], b[16][256], d[16][256];
    const Wgmma& whole = p.whole;
    const auto load = [&](uint64_t descriptor, bool mn_major, int first, int rows, auto put) {
        for_operand(descriptor, mn_major, first, rows, [&](int row, int k, uint32_t at) {
            uint16_t halves[8];
            memcpy(halves, window + at, 16);
            for (int i = 0; i < 8; ++i)
                put(mn_major ? row + i : row, mn_major ? k : k + i, half_to_float(halves[i], whole.bf16));
        });
    };
    load(whole.b_desc, whole.b_mn_major, 0, whole.n, [&](int row, int k, float x) { b[k][row] = x; });
    if (whole.a == nullptr)
        load(whole.a_desc, whole.a_mn_major, warp % 4 * 16, 16, [&](int row, int k, float x) { a[row][k] = x; });
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4 * 2;
        for (int j = 0; j < 8 && whole.a != nullptr; ++j)
            a[g + j / 2 % 2 * 8][t + j / 4 * 8 + j % 2] =
                half_to_float(uint16_t(p.a[lane][j / 2] >> j % 2 * 16), whole.bf16);
        for (int i = 0; i < whole.n / 2; ++i)
            d[g + i / 2 % 2 * 8][i / 4 * 8 + t + i % 2] = whole.accumulate ? p.d[lane][i] : 0.f;
    }
    for (int i = 0; i < 16; ++i)
        for (int first = 0; first < whole.n; first += 8)
            for (int k = 0; k < 16; ++k)
                for (int j = first; j < first + 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < whole.n / 2; ++i)
            p.d[lane][i] = d[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
}

// Whether nobody can have touched the accumulators since the last product, so that no fence is needed.
static bool untouched(const ProductsOfWarp& warp, const Product& p) {
    if (p.whole.a != nullptr) return false;
    for (const Product& other : warp.pending)
        if (other.d[0] == p.d[0]) return true;
    const size_t count = p.whole.n / 2;
    if (warp.left.size() != 32 * count) return false;
    for (int lane = 0; lane < 32; ++lane)
        if (warp.left_in[lane] != p.d[lane] || memcmp(&warp.left[lane * count], p.d[lane], count * 4) != 0) return false;
    return true;
}

static bool same(const Wgmma& x, const Wgmma& y) {
    return x.a_desc == y.a_desc && x.b_desc == y.b_desc && x.n == y.n && x.accumulate == y.accumulate &&
           x.bf16 == y.bf16 && x.a_mn_major == y.a_mn_major && x.b_mn_major == y.b_mn_major &&
           (x.a == nullptr) == (y.a == nullptr);
}

static void check_product(Product& p, int number) {
    Context& c = *context;
    ProductsOfWarp& warp = c.hopper.warps[number];
    if (!warp.fenced && !untouched(warp, p))
        note("MISSING wgmma.fence: block %u warp %d at @0x%x", c.block, number, p.pc);
    // Every lane must know of what is read.
    const int first = number * 32, actor = c.threads + number;
    std::vector<uint32_t> known(c.clock_of(first), c.clock_of(first) + c.actors);
    std::vector<uint32_t> fenced(c.fenced_of(first), c.fenced_of(first) + c.actors);
    for (int lane = 1; lane < 32; ++lane)
        for (int i = 0; i < c.actors; ++i) {
            known[i] = std::min(known[i], c.clock_of(first + lane)[i]);
            fenced[i] = std::min(fenced[i], c.fenced_of(first + lane)[i]);
        }
    known[actor] = p.clock = ++warp.clock;
    const Actor agent = {actor, p.clock, known.data(), fenced.data()};
    const char* window = c.window(c.block_of(first));
    const auto read = [&](int, int, uint32_t at) { check_agent(agent, window + at, 16, false, p.pc); };
    for_operand(p.whole.b_desc, p.whole.b_mn_major, 0, p.whole.n, read);
    if (p.whole.a == nullptr) for_operand(p.whole.a_desc, p.whole.a_mn_major, number % 4 * 16, 16, read);
}

struct WgmmaArguments {
    const Wgmma* part;
    uint32_t pc;
};
static void do_wgmma(void** lanes) {
    Context& c = *context;
    const int number = current->warp;
    const auto of = [&](int lane) { return static_cast<const WgmmaArguments*>(lanes[lane]); };
    Product p = {*of(0)->part, {}, {}, {}, 0, 0, of(0)->pc, false};
    if (number / 4 * 128 + 128 > c.threads) fail("WGMMA in warp %d of a block of %d threads", number, c.threads);
    for (int lane = 0; lane < 32; ++lane) {
        const Wgmma& part = *of(lane)->part;
        if (!same(part, p.whole)) fail("WGMMA differs between lanes 0 and %d of warp %d; @0x%x", lane, number, p.pc);
        p.d[lane] = part.d;
        p.a_at[lane] = part.a;
        if (part.a != nullptr) memcpy(p.a[lane], part.a, 16);
    }
    if (p.whole.a == nullptr) check_descriptor(p.whole.a_desc, 64, p.whole.a_mn_major, p.pc);
    check_descriptor(p.whole.b_desc, p.whole.n, p.whole.b_mn_major, p.pc);
    // The four warps of a group issue the same products in the same order.
    ProductsOfWarp& warp = c.hopper.warps[number];
    auto& issued = c.hopper.issued[number / 4];
    if (warp.issued == issued.size()) issued.push_back(p.whole);
    if (!same(issued[warp.issued++], p.whole))
        fail("WGMMA differs between warp %d and another of its group; @0x%x", number, p.pc);
    ++c.counts.wgmma;
    p.group = warp.group;
    if (checked()) check_product(p, number);
    warp.pending.push_back(p);
    ++c.hopper.products_pending;
}
// Products of a warp on the same accumulators happen in order: all that are left, or none.
static void perform_products(ProductsOfWarp& warp, int number, uint32_t groups) {
    for (Product& p : warp.pending) {
        if (p.group >= groups || p.done) continue;
        perform(p, number);
        p.done = true;
    }
}
void wgmma(const Wgmma& part, Site site) {
    begin_hopper();
    const WgmmaArguments arguments = {&part, CALLER};
    meet(do_wgmma, const_cast<WgmmaArguments*>(&arguments), "wgmma", site);
}

static void do_fence(void**) { context->hopper.warps[current->warp].fenced = true; }
void wgmma_fence(Site site) {
    begin_hopper();
    meet(do_fence, nullptr, "wgmma.fence", site);
}

static void do_commit(void**) {
    ProductsOfWarp& warp = context->hopper.warps[current->warp];
    warp.groups.push_back({warp.group++, warp.clock});
    if (happens_at_once()) perform_products(warp, current->warp, warp.group);
}
void wgmma_commit(Site site) {
    begin_hopper();
    meet(do_commit, nullptr, "wgmma.commit_group", site);
}

static void do_wait(void** lanes) {
    Context& c = *context;
    const int number = current->warp;
    ProductsOfWarp& warp = c.hopper.warps[number];
    const uint32_t left = uint32_t(*static_cast<int*>(lanes[0])), groups = warp.group > left ? warp.group - left : 0;
    perform_products(warp, number, groups);
    while (!warp.groups.empty() && warp.groups.front().first < groups) {
        for (int lane = 0; checked() && lane < 32; ++lane)
            c.clock_of(number * 32 + lane)[c.threads + number] = warp.groups.front().second;
        warp.groups.erase(warp.groups.begin());
    }
    size_t kept = 0;
    for (const Product& p : warp.pending) {
        if (p.group >= groups) {
            warp.pending[kept++] = p;
            continue;
        }
        warp.fenced = false;
        --c.hopper.products_pending;
        if (!checked()) continue;
        warp.left.clear();
        for (int lane = 0; lane < 32; ++lane) {
            warp.left.insert(warp.left.end(), p.d[lane], p.d[lane] + p.whole.n / 2);
            warp.left_in[lane] = p.d[lane];
        }
    }
    warp.pending.resize(kept);
}
void wgmma_wait(int groups_left, Site site) {
    begin_hopper();
    meet(do_wait, &groups_left, "wgmma.wait_group", site);
}

// Whether this thread's address is an accumulator that a product may still write, or an operand in registers that it
// may still read. The numbers of those are taken when it is issued, so that overwriting them is seen here alone.
bool belongs_to_a_product(const char* address, bool write) {
    for (const Product& p : context->hopper.warps[current->warp].pending) {
        const char* d = reinterpret_cast<const char*>(p.d[current->lane]);
        const char* a = reinterpret_cast<const char*>(p.a_at[current->lane]);
        if (address >= d && address < d + p.whole.n * 2) return true;
        if (write && a != nullptr && address >= a && address < a + 16) return true;
    }
    return false;
}

// -- the end of a block --------------------------------------------------------------------------------------

void finish_hopper() {
    Context& c = *context;
    for (size_t i = 0; i < c.fibers.size(); ++i)
        if (!c.fibers[i].stores.empty())
            note("LEFT IN FLIGHT: block %u ends before the bulk stores of thread %zu", c.block, i);
    if (!c.hopper.copies.empty()) note("LEFT IN FLIGHT: block %u ends before its bulk copies", c.block);
    for (size_t i = 0; i < c.hopper.warps.size(); ++i) {
        const ProductsOfWarp& warp = c.hopper.warps[i];
        if (!warp.pending.empty()) note("LEFT IN FLIGHT: block %u ends before the products of warp %zu", c.block, i);
        if (warp.issued != c.hopper.issued[i / 4].size())
            note("WGMMA: warp %zu of block %u issues %u products, another of its group %zu", i, c.block, warp.issued,
                 c.hopper.issued[i / 4].size());
    }
    c.hopper = Hopper{};
}

}  // namespace simt
