//! A step as one graph of the driver: submitted with one call, and branching without the host.
//!
//! Nodes stand one after the other, as the launches do. A loop over samples is a WHILE node, a branch an IF node;
//! before each stands a launch of `condition`, which sets its value from the state or a flag, and at the end of a
//! loop's body one that goes on to the next sample. Nothing is captured: nodes are added one by one, and a body is a
//! graph of its own that the driver makes with its node.
//!
//! From sm_90 on a launch may begin before the one in front has ended: its blocks are there when it has, and wait until
//! then by themselves (kernels/include/ptx_launch.cuh).

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cudarc::driver::sys;
use sys::CUgraphConditionalNodeType_enum::{CU_GRAPH_COND_TYPE_IF, CU_GRAPH_COND_TYPE_WHILE};
use sys::CUgraphDependencyType_enum::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
use sys::CUgraphNodeType_enum::{CU_GRAPH_NODE_TYPE_CONDITIONAL, CU_GRAPH_NODE_TYPE_KERNEL};

use super::driver::{Answer, Driver, Failure, GraphCalls};
use super::handles::{Context, Params};
use super::program::Shared;
use crate::error::{Error, Result};
use crate::ir::{BufferId, Flag};
use crate::launch::params::{Condition, ConditionParams, DevicePtr};
use crate::launch::{Launch, LaunchProgram, LaunchStage};

/// A step that the driver has as a whole.
pub struct Graph {
    context: Arc<Context>,
    calls: &'static GraphCalls,
    raw: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: usize,
    /// Nodes that may begin before the one in front has ended.
    overlapping: usize,
}

// SAFETY: the driver takes graphs' handles from any thread, one at a time; whoever has the graph is that one.
unsafe impl Send for Graph {}

impl Graph {
    /// From launches with addresses; `flag` is where a buffer of flags is.
    pub(super) fn new(
        shared: &Shared,
        program: &LaunchProgram,
        state: DevicePtr,
        flag: &dyn Fn(BufferId) -> DevicePtr,
    ) -> Result<Self> {
        if waits_by_itself(program.target) && shared.overlaps.load(Relaxed) {
            match Self::build(shared, program, state, flag, true) {
                Err(Error::Launch(failure)) => {
                    tracing::warn!("launches do not overlap on this driver: {}", failure.problem);
                }
                Err(error) => tracing::warn!("launches do not overlap on this driver: {error}"),
                graph => return graph,
            }
            shared.overlaps.store(false, Relaxed);
        }
        Self::build(shared, program, state, flag, false)
    }

    fn build(
        shared: &Shared,
        program: &LaunchProgram,
        state: DevicePtr,
        flag: &dyn Fn(BufferId) -> DevicePtr,
        overlaps: bool,
    ) -> Result<Self> {
        let context = &shared.context;
        let driver: &'static Driver = context.driver;
        let calls =
            driver.graphs.as_ref().ok_or_else(|| shared.error("the driver has no conditional graphs"))?;
        shared.answer(context.bind())?;
        let mut graph = Self {
            context: Arc::clone(context),
            calls,
            raw: ptr::null_mut(),
            exec: ptr::null_mut(),
            nodes: 0,
            overlapping: 0,
        };
        // SAFETY: the result has a place.
        let code = unsafe { (calls.create)(&mut graph.raw, 0) };
        shared.answer(driver.check("cuGraphCreate", code))?;
        let mut builder = Builder { shared, calls, state, flag, overlaps, nodes: 0, overlapping: 0 };
        builder.stages(graph.raw, &mut None, &program.body)?;
        (graph.nodes, graph.overlapping) = (builder.nodes, builder.overlapping);
        // SAFETY: the result has a place, and the graph is whole.
        let code = unsafe { (calls.instantiate)(&mut graph.exec, graph.raw, 0) };
        shared.answer(driver.check("cuGraphInstantiateWithFlags", code))?;
        tracing::debug!(nodes = graph.nodes, overlapping = graph.overlapping, "graph");
        Ok(graph)
    }

    /// Runs it once behind what is queued, without waiting.
    pub(super) fn queue(&self, shared: &Shared) -> Answer<()> {
        self.context.bind()?;
        // SAFETY: an instantiated graph and a stream of one context. What its kernels use is held by the
        // program whose graph it is.
        let code = unsafe { (self.calls.launch)(self.exec, shared.stream.raw()) };
        self.context.driver.check("cuGraphLaunch", code)
    }

    /// Runs it once, and waits.
    pub(super) fn run(&self, shared: &Shared) -> Result<()> {
        self.queue(shared).and_then(|()| shared.stream.wait()).map_err(|failure: Failure| {
            shared.error(format!(
                "{failure}, in a step of {} launches; CUDA_LAUNCH_BLOCKING=1 runs them one by one and tells in which",
                self.nodes
            ))
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: each was made once and is destroyed once, if it was made; every run was waited for. The graphs of
        // bodies go with their nodes.
        unsafe {
            if !self.exec.is_null() {
                (self.calls.exec_destroy)(self.exec);
            }
            if !self.raw.is_null() {
                (self.calls.destroy)(self.raw);
            }
        }
    }
}

struct Builder<'a> {
    shared: &'a Shared,
    calls: &'static GraphCalls,
    state: DevicePtr,
    flag: &'a dyn Fn(BufferId) -> DevicePtr,
    /// Whether kernels of this target may.
    overlaps: bool,
    nodes: usize,
    overlapping: usize,
}

/// The node that the next one waits for, and what it is.
type Before = Option<(sys::CUgraphNode, sys::CUgraphNodeType)>;

/// Whether the entry points of binaries for a target wait for the launch in front. Those of `compute_80` do not,
/// whatever they run on.
fn waits_by_itself(target: &str) -> bool {
    matches!(target, "sm_90a" | "sm_100" | "sm_120")
}

impl Builder<'_> {
    fn stages(&mut self, graph: sys::CUgraph, before: &mut Before, stages: &[LaunchStage]) -> Result<()> {
        for stage in stages {
            match stage {
                LaunchStage::Run(run) => {
                    for step in run {
                        self.kernel(graph, before, &step.launch)
                            .map_err(|error| self.shared.launch_error(step, reason(error)))?;
                    }
                }
                LaunchStage::ForEachSample { samples, body } => {
                    let samples = *samples;
                    let handle = self.handle(graph)?;
                    self.condition(graph, before, handle, Condition::First { samples })?;
                    let inner = self.conditional(graph, before, handle, CU_GRAPH_COND_TYPE_WHILE)?;
                    let mut last = None;
                    self.stages(inner, &mut last, body)?;
                    self.condition(inner, &mut last, handle, Condition::Next { samples })?;
                }
                LaunchStage::If(flag, body) => {
                    let condition = match flag {
                        // The host runs it, before the graph.
                        Flag::Once(_) => continue,
                        Flag::Window => Condition::Window,
                        Flag::Sample(buffer) => Condition::Flag { flags: (self.flag)(*buffer) },
                    };
                    let handle = self.handle(graph)?;
                    self.condition(graph, before, handle, condition)?;
                    let inner = self.conditional(graph, before, handle, CU_GRAPH_COND_TYPE_IF)?;
                    self.stages(inner, &mut None, body)?;
                }
            }
        }
        Ok(())
    }

    /// A value that a node of this graph will ask for.
    fn handle(&self, graph: sys::CUgraph) -> Result<sys::CUgraphConditionalHandle> {
        let (context, mut handle) = (&self.shared.context, 0);
        // SAFETY: the result has a place; the graph is being built, in this context.
        let code = unsafe { (self.calls.condition)(&mut handle, graph, context.raw(), 0, 0) };
        self.shared.answer(context.driver.check("cuGraphConditionalHandleCreate", code))?;
        Ok(handle)
    }

    /// A launch that sets such a value.
    fn condition(
        &mut self,
        graph: sys::CUgraph,
        before: &mut Before,
        handle: sys::CUgraphConditionalHandle,
        condition: Condition,
    ) -> Result<()> {
        let params = ConditionParams::new(condition, self.state, handle);
        let launch = Launch::new("condition_f32", [1, 1, 1], &params)?;
        self.kernel(graph, before, &launch)
    }

    fn kernel(&mut self, graph: sys::CUgraph, before: &mut Before, launch: &Launch) -> Result<()> {
        let function = self.shared.kernels.function(launch.kernel)?;
        let encoded = launch.encoded(|at, map| self.shared.context.tensor_map(at, map));
        let params = Params::new(&self.shared.answer(encoded)?);
        let mut pointer = params.pointer();
        let [x, y, z] = launch.grid;
        let mut node = node_of(CU_GRAPH_NODE_TYPE_KERNEL);
        node.__bindgen_anon_1.kernel = sys::CUDA_KERNEL_NODE_PARAMS_v3 {
            func: function.raw,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: function.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: function.shared_bytes,
            kernelParams: &mut pointer,
            extra: ptr::null_mut(),
            kern: ptr::null_mut(),
            ctx: ptr::null_mut(),
        };
        // The kernel takes one struct, which the driver copies before it returns; its function is loaded as long as
        // the device, which outlives the graph.
        self.add(graph, before, &mut node)
    }

    /// Adds a node behind the one before.
    fn add(
        &mut self,
        graph: sys::CUgraph,
        before: &mut Before,
        node: &mut sys::CUgraphNodeParams,
    ) -> Result<()> {
        const AT_ITS_START: sys::CUgraphEdgeData = sys::CUgraphEdgeData {
            from_port: sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
            to_port: 0,
            type_: CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
            reserved: [0; 5],
        };
        let kernels =
            [Some(node.type_), before.map(|(_, kind)| kind)] == [Some(CU_GRAPH_NODE_TYPE_KERNEL); 2];
        let overlaps = self.overlaps && kernels;
        let edge = if overlaps { ptr::from_ref(&AT_ITS_START) } else { ptr::null() };
        let (at, count) = before.as_ref().map_or((ptr::null(), 0), |(node, _)| (ptr::from_ref(node), 1));
        let mut added = ptr::null_mut();
        // SAFETY: the graph is being built, the node before is its own, and there are as many edges as nodes before, or
        // none that says more than order. What the params point to lives until the driver has copied it.
        let code = unsafe { (self.calls.add_node)(&mut added, graph, at, edge, count, node) };
        self.shared.answer(self.shared.context.driver.check("cuGraphAddNode", code))?;
        *before = Some((added, node.type_));
        self.nodes += 1;
        self.overlapping += usize::from(overlaps);
        Ok(())
    }

    /// Adds a node that runs its body once or while its value is not zero, and returns the body, still empty.
    fn conditional(
        &mut self,
        graph: sys::CUgraph,
        before: &mut Before,
        handle: sys::CUgraphConditionalHandle,
        kind: sys::CUgraphConditionalNodeType,
    ) -> Result<sys::CUgraph> {
        let mut node = node_of(CU_GRAPH_NODE_TYPE_CONDITIONAL);
        node.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
            handle,
            type_: kind,
            size: 1,
            phGraph_out: ptr::null_mut(),
            ctx: self.shared.context.raw(),
        };
        self.add(graph, before, &mut node)?;
        // SAFETY: the driver has set the conditional's field to an array of `size` graphs, which lives with its node.
        let body = unsafe {
            let bodies = node.__bindgen_anon_1.conditional.phGraph_out;
            if bodies.is_null() { ptr::null_mut() } else { *bodies }
        };
        if body.is_null() {
            return Err(Error::Bug("a conditional node without a body".to_owned()));
        }
        Ok(body)
    }
}

/// What a driver said, without the device that it said it of.
fn reason(error: Error) -> String {
    match error {
        Error::Device { problem, .. } => problem,
        other => other.to_string(),
    }
}

/// Params of a node of that kind, empty.
fn node_of(kind: sys::CUgraphNodeType) -> sys::CUgraphNodeParams {
    // SAFETY: integers and pointers in an order that C chose; all zeros is the state that cuda.h asks for.
    let mut node: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
    node.type_ = kind;
    node
}
