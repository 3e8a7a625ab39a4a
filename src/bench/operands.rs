//! Numbers for the operands of one operation: random, the same in every run, and all of them numbers that the storage
//! type holds, so that the CPU backend and a device start from the same.

use half::{bf16, f16};

use crate::backend::{Program, Stop, WeightSource};
use crate::cpu::{Cpu, CpuProgram};
use crate::error::Result;
use crate::ir::{Builder, Graph, Node, Op, Row};
use crate::launch::Storage;
use crate::plan::{SldState, StepProgram, StepState};
use crate::tensor::{DType, Shape};

/// What an operand is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Normal,
    /// Rows of length one.
    UnitRows,
    /// Indices below.
    Index(usize),
    /// One and zero in turn.
    Gate,
    /// That output of the forward attention of the operands from the fourth on.
    Attention {
        output: usize,
        heads: usize,
        causal: bool,
    },
}

/// Its contents.
#[derive(Clone, Debug)]
pub enum Value {
    Real(Vec<f32>, Shape),
    Index(Vec<i32>),
}

impl Operand {
    /// Input `index` of a node.
    pub fn of(graph: &Graph, node: &Node, index: usize) -> Self {
        match (&node.op, index) {
            (Op::EmbedText, 0) => Self::Index(graph.shape(node.inputs[1])[0]),
            (Op::GatherToken, 1) => Self::Index(graph.shape(node.inputs[0])[1]),
            (Op::ClipCosine { .. }, 1) => Self::UnitRows,
            (Op::DdimUnguide { .. } | Op::GuideEps { .. }, 3) => Self::Gate,
            (&Op::AttentionBwd { heads, causal }, 0 | 1) => Self::Attention { output: index, heads, causal },
            _ => Self::Normal,
        }
    }

    /// The contents of operand `index` of a node; `attended` are queries, keys and values, however many tensors they
    /// are, of a gradient that wants what the forward pass made of them.
    pub fn value(
        self,
        node: &str,
        index: usize,
        shape: &Shape,
        storage: Storage,
        attended: &[Value],
    ) -> Result<Value> {
        let mut random = Random::named(&format!("{node} {index}"));
        let count = shape.count();
        Ok(match self {
            Self::Normal => {
                Value::Real((0..count).map(|_| round(storage, random.normal())).collect(), shape.clone())
            }
            Self::Index(below) => {
                Value::Index((0..count).map(|_| (random.bits() % below.max(1) as u64) as i32).collect())
            }
            Self::Gate => Value::Real((0..count).map(|i| ((i + 1) % 2) as f32).collect(), shape.clone()),
            Self::UnitRows => {
                let mut data: Vec<f32> = (0..count).map(|_| 0.3 + random.normal()).collect();
                for row in data.chunks_mut(shape.last().max(1)) {
                    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|x| *x = round(storage, *x / length));
                }
                Value::Real(data, shape.clone())
            }
            Self::Attention { output, heads, causal } => {
                let mut data = attention(attended, heads, causal)?.swap_remove(output);
                // The log-sum-exps stay as they are: kernels read them in f32.
                if output == 0 {
                    data.iter_mut().for_each(|x| *x = round(storage, *x));
                }
                Value::Real(data, shape.clone())
            }
        })
    }
}

/// The forward pass on the CPU.
fn attention(operands: &[Value], heads: usize, causal: bool) -> Result<Vec<Vec<f32>>> {
    let mut builder = Builder::new();
    let mut inputs = Vec::new();
    for (i, operand) in operands.iter().enumerate() {
        let Value::Real(_, shape) = operand else { continue };
        let buffer = builder.buffer(&format!("in{i}"), shape.clone(), DType::F32);
        inputs.push(builder.load(buffer, Row::All)?);
    }
    let outputs = builder.push_many("attention", Op::Attention { heads, causal }, &inputs)?;
    for (i, &output) in outputs.iter().enumerate() {
        let buffer = builder.buffer(&format!("out{i}"), builder.shape(output).clone(), DType::F32);
        builder.store(output, buffer, Row::All)?;
    }
    let step = StepProgram::new(builder.finish(), size_of::<f32>())?;
    let mut program = Cpu::<f32>::new().load_program(step, &Source { storage: Storage::F16 })?;
    run(&mut program, operands)?;
    (0..outputs.len()).map(|i| program.get(&format!("out{i}")).map(<[f32]>::to_vec)).collect()
}

/// Runs a program of the CPU once, its buffers `in{i}` filled.
pub fn run(program: &mut CpuProgram<f32>, operands: &[Value]) -> Result<()> {
    for (i, operand) in operands.iter().enumerate() {
        match operand {
            Value::Real(data, _) => program.set(&format!("in{i}"), data)?,
            Value::Index(data) => program.write_indices(&format!("in{i}"), data)?,
        }
    }
    program.run(&state(), &Stop::default())
}

/// Weights by their names: of the size at which results are about as large as operands.
pub struct Source {
    pub storage: Storage,
}

impl WeightSource for Source {
    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        let mut random = Random::named(name);
        let terms = if shape.len() > 1 { shape.count() / shape[0].max(1) } else { 1 };
        let spread = 1.0 / (terms as f32).sqrt();
        Ok((0..shape.count()).map(|_| round(self.storage, spread * random.normal())).collect())
    }
}

/// Coefficients of some step in the middle.
pub fn state() -> StepState {
    StepState {
        timestep: 501.0,
        guidance: 7.5,
        alpha: 0.28,
        x0_from: [1.89, -1.603_567_5],
        eps_from: [0.25, 0.75],
        prev_x0: 0.56,
        prev_eps: 0.77,
        sigma: 0.29,
        gamma: 75.0,
        threshold: 0.23,
        sld: SldState { scale: 2.0, threshold: 0.025, momentum: 0.5, beta: 0.7, warm: true },
        ..StepState::default()
    }
}

/// The nearest number of the type.
pub fn round(storage: Storage, x: f32) -> f32 {
    match storage {
        Storage::F16 => f16::from_f32(x).to_f32(),
        Storage::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn named(name: &str) -> Self {
        // FNV-1a.
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of mean 0 and spread 1, near enough to normal: the sum of four even numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
    }
}
