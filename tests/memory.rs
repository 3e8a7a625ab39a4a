//! Whether the bytes of the plan are the bytes of the run: every allocation counted, on the CPU backend.
//!
//! In a binary of its own: it counts what the whole process allocates.

#[path = "support/golden.rs"]
mod golden;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use golden::{demo, open};
use unguide::backend::Stop;
use unguide::cpu::Cpu;
use unguide::pipeline::{
    GeneratedImage, Guidance, Method, Observer, Request, StepReport, generate, required_memory,
};
use unguide::plan::ALIGN;
use unguide::safety::{GammaSchedule, Reduce};
use unguide::sampler::Rng;

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

#[test]
fn a_run_takes_what_its_plan_says() {
    let model = open(&demo());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let safe = Method::SafeSampling(guidance());
    let through_the_unet =
        Method::ClassifierGuidance { guidance: guidance(), frozen_unet: false, gated: false };
    for (method, batch) in [(Method::None, 1), (safe.clone(), 1), (safe, 3), (through_the_unet, 1)] {
        let request = request(method, batch);
        let run = |backend: &Cpu<f32>, watch: &mut Watch| {
            let result = pool
                .install(|| generate(&model, backend, &request, &mut Seen(backend, watch), &Stop::default()));
            result.expect("a run");
        };
        // Threads, tables and the matrix library's panels are there from now on.
        run(&Cpu::new(), &mut Watch::default());

        let backend = Cpu::new().poisoned();
        let plan = pool.install(|| required_memory(&model, &backend, &request)).expect("a plan");
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
    }
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

fn guidance() -> Guidance {
    Guidance {
        concepts: ["a weapon", "violence", "fire", "a skull"].map(str::to_owned).to_vec(),
        threshold: -1.0,
        above_threshold: false,
        gamma: 0.5,
        gamma_schedule: GammaSchedule::Constant,
        window: None,
        reduce: Reduce::LogMean,
        top_k: None,
        mean: [0.5; 3],
        std: [0.25; 3],
        gradient_scale_log2: 16,
    }
}

fn request(method: Method, batch: usize) -> Request {
    Request {
        prompts: vec!["a skull".into()],
        negative_prompt: String::new(),
        images_per_prompt: batch,
        batch_size: batch,
        steps: 2,
        guidance_scale: 5.0,
        seed: 1,
        width: 48,
        height: 48,
        eta: 0.0,
        rng: Rng::Cpu,
        latents: None,
        method,
    }
}
