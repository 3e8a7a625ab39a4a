// Shared memory, asynchronous copies, and buffers that catch every access beyond their ends.
#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "runtime.h"

namespace simt {

// -- shared memory -------------------------------------------------------------------------------------------

void* dynamic_shared() { return context->window(own_block()); }
uint32_t shared_address(const void* p) { return uint32_t(static_cast<const char*>(p) - context->shared); }

void* shared_object(const void* key, size_t bytes, size_t align) {
    Context& c = *context;
    const int block = own_block();
    auto found = c.objects.find({block, key});
    if (found == c.objects.end()) {
        const uint32_t step = uint32_t(std::max<size_t>(align, 16));
        uint32_t& used = c.shared_used[block];
        const uint32_t begin = (used + RED_ZONE + step - 1) / step * step;
        if (!is_own(begin, uint32_t(bytes))) fail("shared memory: more than %u bytes in a block", SHARED_BYTES);
        used = begin + uint32_t(bytes);
        c.regions.push_back({begin, used});
        found = c.objects.emplace(std::make_pair(block, key), begin).first;
    }
    return c.shared + found->second;
}

// Every lane for itself; the checks put a warp's accesses together to count bank conflicts.
void shared_access(uint32_t address, uint32_t* words, int count, bool write) {
    Context& c = *context;
    if (address % (4 * count) != 0 || !is_own(address, 4 * count))
        fail("%d bytes of shared memory at the address 0x%x", 4 * count, address);
    char* p = c.shared + address;
    if (c.mode.checked) {
        const uint32_t pc = offset_of_caller(__builtin_return_address(0));
        check_access(current->linear, p, 4 * count, write, pc);
        note_shared_access(address, count, pc);
    } else if (c.mode.counts_alone) {
        count_access(p, 4 * count, write);
        note_shared_access(address, count, offset_of_caller(__builtin_return_address(0)));
    }
    if (write)
        memcpy(p, words, 4 * count);
    else
        memcpy(words, p, 4 * count);
}

// -- asynchronous copies -------------------------------------------------------------------------------------

static void perform(Copy& copy) {
    char* to = context->shared + copy.to;
    memcpy(to, copy.from, copy.bytes);
    memset(to + copy.bytes, 0, 16 - copy.bytes);
    copy.done = true;
}

void cp_async(uint32_t to, const void* from, int bytes) {
    Context& c = *context;
    if (to % 16 != 0 || !is_own(to, 16) || bytes < 0 || bytes > 16)
        fail("cp.async: %d bytes to the address 0x%x", bytes, to);
    if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("cp.async: the source %p is not aligned", from);
    const uint32_t pc = c.mode.checked ? offset_of_caller(__builtin_return_address(0)) : 0;
    if (c.mode.checked) check_copy_issued(to, from, bytes, pc);
    if (c.mode.counts_alone) {
        count_access(from, bytes, false);
        count_access(c.shared + to, 16, true);
    }
    c.counts.async_bytes += bytes;
    Fiber& f = running();
    f.copies.push_back({to, pc, from, bytes, f.group, false});
    if (c.mode.copies == EAGER || (c.mode.copies == RANDOM && random_bits() % 2 == 0)) perform(f.copies.back());
}

void cp_async_commit() { ++running().group; }

void cp_async_wait(int groups_left) {
    Fiber& f = running();
    size_t kept = 0;
    for (Copy& copy : f.copies) {
        if (copy.group >= f.group - groups_left) {
            f.copies[kept++] = copy;
            continue;
        }
        if (!copy.done) perform(copy);
        if (context->mode.checked) check_copy_done(copy.to, 16);
    }
    f.copies.resize(kept);
}

// -- buffers -------------------------------------------------------------------------------------------------

// Every buffer has 8 GiB of address space for itself, its end at the end of a page: whatever a 32-bit index
// makes of its address faults.
constexpr size_t SLOT = size_t(8) << 30, PAGE = 4096;
constexpr int SLOTS = 4096;
constexpr unsigned char CANARY = 0xc5;
static std::mutex slots_lock;
static char* slots;
static std::vector<int> free_slots;
static int next_slot;

static int take_slot() {
    std::lock_guard<std::mutex> lock(slots_lock);
    if (slots == nullptr) {
        void* got = mmap(nullptr, SLOT * SLOTS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED) return -1;
        slots = static_cast<char*>(got);
    }
    if (free_slots.empty()) return next_slot < SLOTS ? next_slot++ : -1;
    const int slot = free_slots.back();
    free_slots.pop_back();
    return slot;
}

bool is_device_address(const char* p) { return slots != nullptr && p >= slots && p < slots + SLOT * SLOTS; }

Buffer* buffer_at(const char* p) {
    auto& all = context->buffers;
    auto after = std::upper_bound(all.begin(), all.end(), p, [](const char* q, const Buffer& b) { return q < b.low; });
    if (after == all.begin()) return nullptr;
    Buffer& b = *--after;
    return p < b.high ? &b : nullptr;
}

void forget_buffers() {
    for (Buffer& b : context->buffers) {
        free(b.cells);
        b.cells = nullptr;
    }
}

// Bytes around a buffer that share its pages and were overwritten.
const char* broken_canary() {
    for (Buffer& b : context->buffers) {
        for (char* p = b.page_low; p < b.low; ++p)
            if (static_cast<unsigned char>(*p) != CANARY) return p;
        for (char* p = b.high; p < b.page_high; ++p)
            if (static_cast<unsigned char>(*p) != CANARY) return p;
    }
    return nullptr;
}

extern "C" void* simt_alloc(Context* owner, size_t bytes) {
    const int slot = take_slot();
    if (slot < 0) return nullptr;
    const size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE + (bytes == 0 ? PAGE : 0);
    char* page_low = slots + SLOT * slot + SLOT / 2;
    if (mapped > SLOT / 4 || mprotect(page_low, mapped, PROT_READ | PROT_WRITE) != 0) return nullptr;
    char* low = page_low + mapped - (bytes + 15) / 16 * 16;
    memset(page_low, CANARY, mapped);
    memset(low, 0xff, bytes);
    Buffer made = {low, low + bytes, page_low, page_low + mapped, slot, nullptr};
    auto& all = owner->buffers;
    all.insert(std::upper_bound(all.begin(), all.end(), low, [](char* q, const Buffer& b) { return q < b.low; }), made);
    return low;
}

// Whole pages of zeros that take no memory before somebody writes to them.
extern "C" void* simt_alloc_untouched(Context* owner, size_t bytes) {
    const int slot = take_slot();
    if (slot < 0) return nullptr;
    const size_t mapped = (std::max<size_t>(bytes, 1) + PAGE - 1) / PAGE * PAGE;
    char* low = slots + SLOT * slot + PAGE;
    if (mapped > SLOT - 2 * PAGE || mprotect(low, mapped, PROT_READ | PROT_WRITE) != 0) return nullptr;
    Buffer made = {low, low + mapped, low, low + mapped, slot, nullptr};
    auto& all = owner->buffers;
    all.insert(std::upper_bound(all.begin(), all.end(), low, [](char* q, const Buffer& b) { return q < b.low; }), made);
    return low;
}

static void release(const Buffer& b) {
    free(b.cells);
    madvise(b.page_low, b.page_high - b.page_low, MADV_DONTNEED);
    mprotect(b.page_low, b.page_high - b.page_low, PROT_NONE);
    std::lock_guard<std::mutex> lock(slots_lock);
    free_slots.push_back(b.slot);
}

extern "C" Context* simt_create() {
    Context* made = new Context();
    void* shared = mmap(nullptr, size_t(MOST_BLOCKS) * WINDOW, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (shared == MAP_FAILED) {
        delete made;
        return nullptr;
    }
    made->shared = static_cast<char*>(shared);
    return made;
}

extern "C" void simt_destroy(Context* c) {
    for (const Buffer& b : c->buffers) release(b);
    if (c->stacks != nullptr) munmap(c->stacks, (STACK_BYTES + PAGE) * size_t(c->stacks_for));
    munmap(c->shared, size_t(MOST_BLOCKS) * WINDOW);
    free(c->handler_stack);
    delete c;
}

// -- faults --------------------------------------------------------------------------------------------------

static struct sigaction before[2];

static void on_fault(int signal_number, siginfo_t* info, void* machine) {
    if (context == nullptr || current == nullptr) {
        // Not a kernel's: whoever was here first decides.
        struct sigaction& old = before[signal_number == SIGBUS];
        if (old.sa_flags & SA_SIGINFO)
            old.sa_sigaction(signal_number, info, machine);
        else
            sigaction(signal_number, &old, nullptr);
        return;
    }
    const char* p = static_cast<char*>(info->si_addr);
    uint32_t pc = 0;
#if defined(__x86_64__)
    const void* at = reinterpret_cast<void*>(static_cast<ucontext_t*>(machine)->uc_mcontext.gregs[REG_RIP]);
    pc = module_offset(at) + 1;
#endif
    const Fiber& f = running();
    if (p < f.stack_low && p >= f.stack_low - PAGE)
        fail("STACK of thread %d in block %u is full at @0x%x", current->linear, context->block, pc);
    const Buffer* near = nullptr;
    for (const Buffer& b : context->buffers)
        if (near == nullptr || llabs(p - b.low) < llabs(p - near->low)) near = &b;
    if (near != nullptr && is_device_address(p))
        fail("FAULT thread %d of block %u at @0x%x: byte %lld of a buffer of %lld bytes", current->linear,
             context->block, pc, static_cast<long long>(p - near->low), static_cast<long long>(near->high - near->low));
    fail("FAULT thread %d of block %u at @0x%x: address %p", current->linear, context->block, pc, p);
}

void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
    });
}

}  // namespace simt
