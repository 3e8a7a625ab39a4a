//! What the tests of operations share: the table of cases, how operands are filled, the naive oracles.
#![allow(dead_code)] // every test file uses its part

pub mod cases;
#[cfg(feature = "simt")]
pub mod device;
pub mod naive;

use std::hash::{DefaultHasher, Hash, Hasher};

use unguide::cpu::{Operand, Target, eval};
use unguide::ir::{Builder, Op, Row};
use unguide::plan::StepState;
use unguide::tensor::{DType, Real, Shape, Tensor};

/// One operation on operands of one shape.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Input>,
    pub class: Class,
    /// The operands that gradients flow to.
    pub differentiable: &'static [usize],
    pub state: StepState,
}

/// One operand and how it is filled.
#[derive(Clone, Debug)]
pub struct Input {
    pub shape: Shape,
    pub fill: Fill,
    /// The outermost extent counts images.
    pub batched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal numbers with this mean and spread.
    Normal { mean: f64, spread: f64 },
    /// Rows of length one.
    UnitRows,
    /// Indices below.
    Index(i32),
    /// Zero and one in turn.
    Gate,
    /// That output of the naive forward attention of the operands from the fourth on.
    Attention { output: usize, heads: usize, causal: bool },
}

/// How near a result must come to the oracle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Bit for bit.
    Exact,
    /// A few roundings an element.
    Rounded,
    /// Sums of a few numbers, or numbers of which some are wanted to the last digit.
    Reduced,
    /// Products summed over this many terms.
    Contracted(usize),
}

/// An operand in memory.
#[derive(Clone, Debug)]
pub enum Value<T> {
    Real(Tensor<T>),
    Index(Tensor<i32>),
}

impl<T: Real> Value<T> {
    pub fn real(&self) -> &Tensor<T> {
        match self {
            Self::Real(tensor) => tensor,
            Self::Index(_) => panic!("an index where a real operand is expected"),
        }
    }

    pub fn shape(&self) -> &Shape {
        match self {
            Self::Real(tensor) => tensor.shape(),
            Self::Index(tensor) => tensor.shape(),
        }
    }

    pub fn cast<U: Real>(&self) -> Value<U> {
        match self {
            Self::Real(tensor) => Value::Real(tensor.cast()),
            Self::Index(tensor) => Value::Index(tensor.clone()),
        }
    }

    /// Entry `i` of the batch.
    pub fn image(&self, i: usize) -> Self {
        match self {
            Self::Real(t) => Self::Real(Tensor::new(t.shape().with_first(1), t.row(i).to_vec())),
            Self::Index(t) => Self::Index(Tensor::new(t.shape().with_first(1), t.row(i).to_vec())),
        }
    }

    fn operand(&self) -> Operand<'_, T> {
        match self {
            Self::Real(tensor) => Operand::Real { shape: tensor.shape(), data: tensor.data() },
            Self::Index(tensor) => Operand::Index { shape: tensor.shape(), data: tensor.data() },
        }
    }
}

impl Case {
    /// Operands that f32 holds exactly; the same ones in every run.
    pub fn operands(&self) -> Vec<Value<f32>> {
        let mut random = Random::named(&self.name);
        let mut values: Vec<Value<f32>> = Vec::new();
        for input in &self.inputs {
            let value = input.filled(&mut random);
            values.push(value);
        }
        for (i, input) in self.inputs.iter().enumerate() {
            if let Fill::Attention { output, heads, causal } = input.fill {
                let operands: Vec<_> = values[3..].iter().map(Value::cast::<f64>).collect();
                let op = Op::Attention { heads, causal };
                let result = naive::eval(&op, &operands, &StepState::default()).swap_remove(output);
                values[i] = Value::Real(result.cast());
            }
        }
        values
    }

    /// The same case over `n` images.
    pub fn with_batch(&self, n: usize) -> Self {
        let mut case = self.clone();
        for input in case.inputs.iter_mut().filter(|input| input.batched) {
            input.shape = input.shape.with_first(n);
        }
        case
    }

    pub fn output_shapes(&self) -> Vec<Shape> {
        output_shapes(&self.op, &self.operands())
    }
}

impl Input {
    fn filled(&self, random: &mut Random) -> Value<f32> {
        let (shape, count) = (self.shape.clone(), self.shape.count());
        let data = match self.fill {
            Fill::Normal { mean, spread } => random.normals(count, mean, spread),
            Fill::Gate => (0..count).map(|i| (i % 2) as f32).collect(),
            Fill::Index(below) => {
                let data = (0..count).map(|_| (random.bits() % below as u64) as i32).collect();
                return Value::Index(Tensor::new(shape, data));
            }
            Fill::UnitRows => {
                let mut data = random.normals(count, 0.3, 1.0);
                for row in data.chunks_mut(shape.last()) {
                    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|x| *x /= length);
                }
                data
            }
            // Known once the others are.
            Fill::Attention { .. } => vec![0.0; count],
        };
        Value::Real(Tensor::new(shape, data))
    }
}

/// Shapes of the outputs of `op`, as the graph infers them.
pub fn output_shapes<T: Real>(op: &Op, operands: &[Value<T>]) -> Vec<Shape> {
    let mut builder = Builder::new();
    let load = |(i, value): (usize, &Value<T>)| {
        let dtype = if matches!(value, Value::Index(_)) { DType::I32 } else { DType::F32 };
        let buffer = builder.buffer(&format!("operand{i}"), value.shape().clone(), dtype);
        builder.load(buffer, Row::All).expect("a buffer is loaded whole")
    };
    let ids: Vec<_> = operands.iter().enumerate().map(load).collect();
    let outputs = builder.push_many("case", op.clone(), &ids).expect("the case is well formed");
    outputs.iter().map(|&id| builder.shape(id).clone()).collect()
}

/// Runs `op`, with canaries before and behind every output.
pub fn run<T: Real>(op: &Op, operands: &[Value<T>], state: &StepState) -> Vec<Tensor<T>> {
    const MARGIN: usize = 61;
    let canary = T::from_f64(-1234.5);
    let shapes = output_shapes(op, operands);
    let mut buffers: Vec<Vec<T>> = shapes
        .iter()
        .map(|shape| {
            let mut buffer = vec![canary; shape.count() + 2 * MARGIN];
            buffer[MARGIN..MARGIN + shape.count()].fill(T::from_f64(f64::NAN));
            buffer
        })
        .collect();
    let inputs: Vec<_> = operands.iter().map(Value::operand).collect();
    let mut targets: Vec<_> = shapes
        .iter()
        .zip(&mut buffers)
        .map(|(shape, buffer)| Target { shape, data: &mut buffer[MARGIN..MARGIN + shape.count()] })
        .collect();
    eval(op, &inputs, &mut targets, state);
    let mut results = Vec::new();
    for (shape, buffer) in shapes.iter().zip(&buffers) {
        let (before, rest) = buffer.split_at(MARGIN);
        let (result, behind) = rest.split_at(shape.count());
        assert!(before.iter().chain(behind).all(|&x| x == canary), "{} wrote beyond its output", op.name());
        results.push(Tensor::new(shape.clone(), result.to_vec()));
    }
    results
}

/// Bits of a result, for comparisons in which NaN equals itself.
pub fn bits<T: Real>(tensor: &Tensor<T>) -> Vec<u8> {
    bytemuck::cast_slice(tensor.data()).to_vec()
}

/// Random numbers that are the same everywhere: SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn named(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, count: usize, mean: f64, spread: f64) -> Vec<f32> {
        (0..count).map(|_| (mean + spread * self.normal()) as f32).collect()
    }
}
