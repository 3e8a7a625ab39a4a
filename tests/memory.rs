//! Whether the bytes of the plan are the bytes of the run: every allocation counted, on the CPU backend.
//!
//! In a binary of its own: it counts what the whole process allocates.

#[path = "support/golden.rs"]
mod golden;
#[path = "support/requests.rs"]
mod requests;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use golden::{demo, open, open_mapped, widen};
use requests::{guidance, request, through_the_unet};
use unguide::backend::Stop;
use unguide::cpu::Cpu;
use unguide::ir::{self, Node, Op};
use unguide::pipeline::programs::Steering;
use unguide::pipeline::{
    Blueprint, GeneratedImage, Memory, Method, Model, Observer, Request, StepReport, Trace, generate,
    required_memory,
};
use unguide::plan::ALIGN;
use unguide::tensor::Tensor;

/// The system's allocator with a meter.
struct Meter;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches two atomics and no memory.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the block came from `alloc` above, that is from the system, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static METER: Meter = Meter;

/// What a program and its plan are made of besides numbers (nodes, names, places), texts, and the latents that
/// the host looks at: not in the plan, small, and the same whatever the size of the image.
const STRUCTURES: usize = 3_000_000;

/// Tests that count run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_run_takes_what_its_plan_says() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let model = open(&demo());
    let safe = || Method::SafeSampling(guidance());
    for (method, batch) in [(Method::None, 1), (safe(), 1), (safe(), 3), (through_the_unet(), 1)] {
        count(&model, &request(method, batch));
    }
    // Everything that the process had at any time: the demo is meant to do with 300 MB.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
        let kilobytes: usize = most.trim().trim_end_matches("kB").trim().parse().expect("a number");
        assert!(kilobytes * 1024 <= 300_000_000, "{kilobytes} KiB");
    }
}

#[test]
fn mapped_weights_stay_in_their_files_and_change_no_bit() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = tempfile::tempdir().expect("a temporary directory");
    widen(&demo(), place.path());
    let (read, mapped) = (open(place.path()), open_mapped(place.path()));
    for method in [Method::SafeSampling(guidance()), through_the_unet()] {
        let request = request(method, 1);
        let (of_read, of_mapped) = (count(&read, &request), count(&mapped, &request));
        assert_eq!(of_read.mapped_bytes, 0);
        assert_eq!(of_mapped.weights_bytes + of_mapped.mapped_bytes, of_read.weights_bytes);
        assert_eq!(of_mapped.weights_bytes, packed_bytes(&read, &request));
        let trace = |model: &Model| {
            let mut trace = Trace::default();
            generate(model, &Cpu::<f32>::new(), &request, &mut trace, &Stop::default()).expect("a run");
            let bits = |tensor: &Tensor<f32>| tensor.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            trace.tensors().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect::<Vec<_>>()
        };
        assert!(trace(&read) == trace(&mapped), "the bits of a run");
    }
    // Nothing in the files of the demo is f32: all of it is read.
    let halves = open_mapped(&demo());
    let memory = required_memory(&halves, &Cpu::<f32>::new(), &request(Method::None, 1)).expect("a plan");
    assert_eq!(memory.mapped_bytes, 0);
}

/// Bytes of a run's images' weights that checkpoints store otherwise: filters tap by tap, and stacks in parts.
fn packed_bytes(model: &Model, request: &Request) -> usize {
    let blueprint = Blueprint::of(model);
    let guard = blueprint.guard().expect("a guard");
    let steering = match request.method {
        Method::SafeSampling(_) => Steering::X0(guard),
        _ => Steering::Xt { guard, frozen: false },
    };
    let spec = blueprint.step_spec(steering, (request.width, request.height), 1);
    let graph = blueprint.step(&spec).expect("a step");
    let packed = |node: &Node| {
        let Op::Param { layout, parts, .. } = &node.op else { return None };
        let shape = graph.shape(node.outputs[0]);
        let has_taps = *layout == ir::Layout::Filter && shape[1] * shape[2] > 1;
        (has_taps || parts.len() > 1).then(|| shape.count() * size_of::<f32>())
    };
    graph.nodes.iter().filter_map(packed).sum()
}

/// Runs a request on the CPU, holds its allocations against its plan, and returns the plan's figures.
fn count(model: &Model, request: &Request) -> Memory {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let run = |backend: &Cpu<f32>, watch: &mut Watch| {
        let result =
            pool.install(|| generate(model, backend, request, &mut Seen(backend, watch), &Stop::default()));
        result.expect("a run");
    };
    // Threads, tables and the matrix library's panels are there from now on.
    run(&Cpu::new(), &mut Watch::default());

    let backend = Cpu::new().poisoned();
    let plan = pool.install(|| required_memory(model, &backend, request)).expect("a plan");
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let mut watch = Watch::default();
    run(&backend, &mut watch);
    let most = MOST.load(Relaxed) - before;

    // Every byte of the arena up to the planned end is written, and none beyond.
    let arena = plan.kept_bytes + plan.live_bytes + plan.waste_bytes;
    assert!(watch.touched <= arena && watch.touched + ALIGN > arena, "{} of {arena}", watch.touched);
    // Between two steps: weights, arena, buffers.
    let resting = plan.weights_bytes + arena + plan.buffer_bytes;
    let rest = watch.resting - before;
    assert!(rest >= resting && rest <= resting + STRUCTURES, "{rest} at rest, planned {resting}");
    // And never more than with everything that operations may take for themselves.
    assert!(most <= plan.total_bytes(), "{most} at most, planned {}", plan.total_bytes());
    assert!(most >= plan.total_bytes() * 9 / 10, "{most} at most, planned {}", plan.total_bytes());
    assert_eq!(backend.touched_bytes(), 0, "the arena went with the programs");
    plan
}

/// What was seen while a run went on.
#[derive(Default)]
struct Watch {
    touched: usize,
    resting: usize,
}

struct Seen<'a>(&'a Cpu<f32>, &'a mut Watch);

impl Observer for Seen<'_> {
    fn step(&mut self, _: &StepReport) -> unguide::Result<()> {
        self.1.touched = self.1.touched.max(self.0.touched_bytes());
        self.1.resting = NOW.load(Relaxed);
        Ok(())
    }

    fn image(&mut self, _: &GeneratedImage) -> unguide::Result<()> {
        self.1.touched = self.1.touched.max(self.0.touched_bytes());
        Ok(())
    }
}
