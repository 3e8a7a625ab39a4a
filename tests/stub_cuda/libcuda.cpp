// A stand-in for the CUDA driver: its memory is the process' own, its kernels do nothing or what a test gives it, and
// it fails when it is told to. It counts what it handed out, and writes at exit what never came back.
//
//     STUB_VERSION      of the driver, 12080          STUB_DEVICES       how many GPUs, 1
//     STUB_CAPABILITY   of each, 90 is 9.0            STUB_MEMORY        bytes of each, 8 GiB
//     STUB_MULTIPROCESSORS  of each, 132
//     STUB_FAIL_ALLOC   this allocation finds no memory
//     STUB_FAIL_LAUNCH  this launch is refused
//     STUB_STICKY       after so many launches everything fails, as after an illegal address
//     STUB_NO_OVERLAP   1: an edge of a graph says order and no more
//     STUB_LAUNCH_US    what a launch takes by its clock, 50
//     STUB_REPORT       the file for the counts
//
// Compiled with WITHOUT_PINNED it lacks a function that everything needs, with WITHOUT_GRAPHS one that graphs need.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

enum Code { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, ILLEGAL_ADDRESS = 700,
            LAUNCH_OUT_OF_RESOURCES = 701, NOT_SUPPORTED = 801 };

uint64_t setting(const char* name, uint64_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

struct Function {
    std::string name;
    size_t params_bytes;
};

struct Graph;
struct Node {
    const Function* function = nullptr;
    uint32_t grid[3];
    std::vector<uint64_t> params;
    uint32_t* value = nullptr;  // a conditional node's
    bool loops = false;
    Graph* body = nullptr;
    const Node* before = nullptr;
};
struct Graph {
    std::vector<Node*> nodes;
    std::vector<uint32_t*> values;
    ~Graph() {
        for (Node* node : nodes) {
            delete node->body;
            delete node;
        }
        for (uint32_t* value : values) delete value;
    }
};

typedef size_t (*SizeOf)(const char* kernel);
typedef void (*Launcher)(const char* kernel, const uint32_t* grid, const void* params, size_t bytes);
SizeOf size_of_params = nullptr;
Launcher launcher = nullptr;

struct Counts {
    long contexts, memory, bytes, pinned, streams, events, modules, graphs, execs;  // alive
    long allocations, launches, graph_launches, overlaps, mistakes;                 // ever
} counts;
std::map<uint64_t, size_t> memory;

struct Reporter {
    ~Reporter() {
        const char* path = getenv("STUB_REPORT");
        FILE* file = path ? fopen(path, "w") : nullptr;
        if (!file) return;
        fprintf(file, "contexts %ld\nmemory %ld\nbytes %ld\npinned %ld\nstreams %ld\nevents %ld\nmodules %ld\n"
                "graphs %ld\nexecs %ld\nmistakes %ld\nallocations %ld\nlaunches %ld\ngraph_launches %ld\n"
                "overlaps %ld\n",
                counts.contexts, counts.memory, counts.bytes, counts.pinned, counts.streams, counts.events,
                counts.modules, counts.graphs, counts.execs, counts.mistakes, counts.allocations, counts.launches,
                counts.graph_launches, counts.overlaps);
        fclose(file);
    }
} reporter;

// What every call answers first: nothing goes on after a kernel went wrong.
int state() {
    static const uint64_t sticky = setting("STUB_STICKY", UINT64_MAX);
    return uint64_t(counts.launches) > sticky ? ILLEGAL_ADDRESS : OK;
}

int mistake() {
    counts.mistakes++;
    return INVALID_VALUE;
}

bool inside(uint64_t address, size_t bytes) {
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
}

int launch(const Function* function, const uint32_t* grid, const void* params) {
    static const uint64_t refused = setting("STUB_FAIL_LAUNCH", 0);
    counts.launches++;
    if (uint64_t(counts.launches) == refused) return LAUNCH_OUT_OF_RESOURCES;
    if (launcher) launcher(function->name.c_str(), grid, params, function->params_bytes);
    return state();
}

int run(const Graph* graph) {
    for (const Node* node : graph->nodes) {
        if (node->function) {
            if (int code = launch(node->function, node->grid, node->params.data())) return code;
        } else if (node->loops) {
            while (*node->value) {
                if (int code = run(node->body)) return code;
            }
        } else if (*node->value) {
            if (int code = run(node->body)) return code;
        }
    }
    return OK;
}

// Nodes must come one after the other: what the stub runs in a row may not be unordered.
int append(Graph* graph, Node* node, Node* const* before, size_t count) {
    const bool ordered = graph->nodes.empty() ? count == 0 : count == 1 && *before == graph->nodes.back();
    graph->nodes.push_back(node);
    return ordered ? state() : mistake();
}

}  // namespace

extern "C" {

// For a test in the same process: what kernels do.
void stub_kernels(SizeOf sizes, Launcher launches) {
    size_of_params = sizes;
    launcher = launches;
}

long stub_count(const char* name) {
    if (!strcmp(name, "launches")) return counts.launches;
    if (!strcmp(name, "graph_launches")) return counts.graph_launches;
    if (!strcmp(name, "allocations")) return counts.allocations;
    if (!strcmp(name, "mistakes")) return counts.mistakes;
    return counts.contexts + counts.memory + counts.pinned + counts.streams + counts.events + counts.modules +
           counts.graphs + counts.execs;
}

int cuDriverGetVersion(int* version) {
    *version = int(setting("STUB_VERSION", 12080));
    return OK;
}
int cuInit(unsigned) { return setting("STUB_DEVICES", 1) ? OK : NO_DEVICE; }
int cuGetErrorName(int code, const char** name) {
    switch (code) {
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return OK;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return OK;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return OK;
        case LAUNCH_OUT_OF_RESOURCES: *name = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; return OK;
        default: *name = nullptr; return INVALID_VALUE;
    }
}
int cuGetErrorString(int code, const char** words) {
    int known = cuGetErrorName(code, words);
    if (known == OK) *words = "as the stub was told";
    return known;
}
int cuDeviceGetCount(int* count) {
    *count = int(setting("STUB_DEVICES", 1));
    return OK;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = 40 + ordinal;
    return OK;
}
int cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, bytes, "Stub");
    return OK;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = setting("STUB_MEMORY", uint64_t(8) << 30);
    return OK;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = int(setting("STUB_CAPABILITY", 90));
    switch (attribute) {
        case 16: *value = int(setting("STUB_MULTIPROCESSORS", 132)); return OK;
        case 75: *value = capability / 10; return OK;
        case 76: *value = capability % 10; return OK;
        case 97: *value = 227 << 10; return OK;
        case 13: *value = 1980000; return OK;  // kHz
        case 36: *value = 2619000; return OK;
        case 38: *value = 32 << 10; return OK;  // L2
        default: return mistake();
    }
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    counts.contexts++;
    *context = reinterpret_cast<void*>(uintptr_t(device));
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    counts.contexts--;
    return state();
}
static thread_local void* current = nullptr;
int cuCtxSetCurrent(void* context) {
    current = context;
    return state();
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = setting("STUB_MEMORY", uint64_t(8) << 30);
    *free = *total - counts.bytes;
    return current ? state() : mistake();
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    static const uint64_t refused = setting("STUB_FAIL_ALLOC", 0);
    if (!current || bytes == 0) return mistake();
    if (int code = state()) return code;
    counts.allocations++;
    if (uint64_t(counts.allocations) == refused || counts.bytes + bytes > setting("STUB_MEMORY", uint64_t(8) << 30)) {
        return OUT_OF_MEMORY;
    }
    void* piece = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!piece) return OUT_OF_MEMORY;
    memset(piece, 0, bytes);
    *address = reinterpret_cast<uint64_t>(piece);
    memory[*address] = bytes;
    counts.memory++;
    counts.bytes += bytes;
    return OK;
}
int cuMemFree_v2(uint64_t address) {
    auto found = memory.find(address);
    if (!current || found == memory.end()) return mistake();
    counts.memory--;
    counts.bytes -= found->second;
    // Never handed out again, and NaN to whoever still reads it.
    memset(reinterpret_cast<void*>(address), 0xff, found->second);
    memory.erase(found);
    return state();
}
#ifndef WITHOUT_PINNED
int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    if (int code = state()) return code;
    *address = malloc(bytes);
    counts.pinned++;
    return OK;
}
#endif
int cuMemFreeHost(void* address) {
    free(address);
    counts.pinned--;
    return state();
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    if (!current || !stream || !inside(to, bytes)) return mistake();
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return state();
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    if (!current || !stream || !inside(from, bytes)) return mistake();
    memcpy(to, reinterpret_cast<void*>(from), bytes);
    return state();
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void* stream) {
    if (!current || !stream || !inside(at, bytes)) return mistake();
    memset(reinterpret_cast<void*>(at), value, bytes);
    return state();
}
int cuMemsetD32Async(uint64_t at, unsigned value, size_t words, void* stream) {
    if (!current || !stream || at % 4 != 0 || !inside(at, 4 * words)) return mistake();
    for (size_t i = 0; i < words; i++) reinterpret_cast<unsigned*>(at)[i] = value;
    return state();
}
int cuStreamCreate(void** stream, unsigned) {
    counts.streams++;
    *stream = malloc(1);
    return current ? state() : mistake();
}
int cuStreamDestroy_v2(void* stream) {
    free(stream);
    counts.streams--;
    return state();
}
int cuStreamSynchronize(void* stream) { return stream ? state() : mistake(); }
int cuEventCreate(void** event, unsigned) {
    if (int code = state()) return code;
    counts.events++;
    *event = malloc(sizeof(long));
    return OK;
}
int cuEventDestroy_v2(void* event) {
    free(event);
    counts.events--;
    return state();
}
// The clock: so many launches have ended.
int cuEventRecord(void* event, void* stream) {
    if (!event || !stream) return mistake();
    *static_cast<long*>(event) = counts.launches;
    return state();
}
int cuEventSynchronize(void* event) { return event ? state() : mistake(); }
// A launch takes so many microseconds.
int cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
    if (!begin || !end) return mistake();
    static const uint64_t launch_us = setting("STUB_LAUNCH_US", 50);
    *milliseconds = float(*static_cast<long*>(end) - *static_cast<long*>(begin)) * float(launch_us) / 1000.f;
    return state();
}

struct Module {
    std::vector<Function*> functions;
};
int cuModuleLoadData(Module** module, const void* image) {
    if (!current) return mistake();
    if (int code = state()) return code;
    const bool elf = !memcmp(image, "\x7f" "ELF", 4);
    if (!elf && !strstr(static_cast<const char*>(image), ".version")) return INVALID_IMAGE;
    *module = new Module;
    counts.modules++;
    return OK;
}
int cuModuleUnload(Module* module) {
    for (Function* function : module->functions) delete function;
    delete module;
    counts.modules--;
    return state();
}
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    *function = new Function{name, size_of_params ? size_of_params(name) : 0};
    module->functions.push_back(*function);
    return state();
}
int cuFuncSetAttribute(Function* function, int, int) { return function ? state() : mistake(); }
int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned,
                   void* stream, void** params, void** extra) {
    if (!current || !function || !stream || !params || extra || x * y * z * threads == 0) return mistake();
    if (int code = state()) return code;
    const uint32_t grid[3] = {x, y, z};
    return launch(function, grid, params[0]);
}

// As the simulated device encodes them: bases, extents and boxes of 16-bit elements, one after the other.
int cuTensorMapEncodeTiled(uint64_t* map, int kind, unsigned rank, uint64_t base, const uint64_t* extents,
                           const uint64_t* strides, const unsigned* box, const unsigned* steps, int interleave, int swizzle,
                           int, int fill) {
    const unsigned widths[4] = {0, 32, 64, 128};
    if (kind != 1 || rank < 1 || rank > 5 || base % 16 != 0 || !inside(base, 1) || interleave != 0 || swizzle < 0 ||
        swizzle > 3 || fill != 0 || (swizzle != 0 && box[0] * 2 != widths[swizzle])) {
        return mistake();
    }
    memset(map, 0, 128);
    map[0] = base;
    map[1] = rank | 2 << 8 | widths[swizzle] << 16 | uint64_t(0x756e6775) << 32;
    for (unsigned i = 0; i < 5; i++) {
        if (i < rank && (steps[i] != 1 || box[i] < 1 || box[i] > 256 || extents[i] < 1)) return mistake();
        if (i > 0 && i < rank && strides[i - 1] % 16 != 0) return mistake();
        map[2 + i] = i < rank ? extents[i] : 1;
        if (i > 0 && i < rank) map[6 + i] = strides[i - 1];
        map[11 + i / 2] |= uint64_t(i < rank ? box[i] : 1) << (i % 2 * 32);
    }
    return state();
}

int cuGraphCreate(Graph** graph, unsigned) {
    *graph = new Graph;
    counts.graphs++;
    return state();
}
int cuGraphDestroy(Graph* graph) {
    delete graph;
    counts.graphs--;
    return state();
}
struct KernelNode {
    Function* function;
    unsigned grid[3], block[3], shared_bytes;
    void** params;
    void** extra;
    void *kernel, *context;
};
struct ConditionalNode {
    uint64_t handle;
    int kind;
    unsigned size;
    Graph** bodies;
    void* context;
};
struct NodeParams {
    int type, reserved[3];
    union {
        KernelNode kernel;
        ConditionalNode conditional;
        uint64_t words[29];
    };
    uint64_t rest;
};
static_assert(sizeof(NodeParams) == 256, "as in cuda.h");
struct Edge {
    uint8_t from_port, to_port, type, reserved[5];
};
#ifndef WITHOUT_GRAPHS
int cuGraphAddNode_v2(Node** added, Graph* graph, Node* const* before, const Edge* edge, size_t count,
                      NodeParams* params) {
    const bool kernel = params->type == 0, conditional = params->type == 13;
    for (size_t i = (kernel ? sizeof(KernelNode) : sizeof(ConditionalNode)) / 8; i < 29; i++) {
        if (params->words[i] != 0) return mistake();
    }
    if (!kernel && !conditional || params->rest != 0) return mistake();
    // A kernel may begin when all blocks of one before have begun.
    if (edge && (!kernel || count != 1 || !before[0]->function || edge->from_port != 1 || edge->type != 1)) return mistake();
    if (edge && setting("STUB_NO_OVERLAP", 0)) return NOT_SUPPORTED;
    counts.overlaps += edge != nullptr;
    Node* node = *added = new Node;
    if (kernel) {
        const KernelNode& given = params->kernel;
        node->function = given.function;
        memcpy(node->grid, given.grid, sizeof(node->grid));
        node->params.resize((given.function->params_bytes + 7) / 8);
        memcpy(node->params.data(), given.params[0], given.function->params_bytes);
    } else {
        if (params->conditional.size != 1 || params->conditional.kind > 1) return mistake();
        node->value = reinterpret_cast<uint32_t*>(params->conditional.handle);
        node->loops = params->conditional.kind == 1;
        node->body = new Graph;
        params->conditional.bodies = &node->body;
    }
    return append(graph, node, before, count);
}
#endif
int cuGraphConditionalHandleCreate(uint64_t* handle, Graph* graph, void* context, unsigned value, unsigned) {
    graph->values.push_back(new uint32_t(value));
    *handle = reinterpret_cast<uint64_t>(graph->values.back());
    return context ? state() : mistake();
}
int cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) {
    *exec = graph;
    counts.execs++;
    return state();
}
int cuGraphExecDestroy(Graph*) {
    counts.execs--;
    return state();
}
int cuGraphLaunch(Graph* exec, void* stream) {
    if (!current || !stream) return mistake();
    counts.graph_launches++;
    return run(exec);
}

}  // extern "C"
