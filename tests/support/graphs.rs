//! Runs a small graph on the CPU backend: buffers in, buffers out.

#![allow(dead_code, reason = "every test file uses a part of it")]

use unguide::Result;
use unguide::backend::{Program, Stop, WeightSource};
use unguide::cpu::{Cpu, CpuProgram};
use unguide::ir::{Builder, Row, ValueId};
use unguide::passes;
use unguide::plan::{StepProgram, StepState};
use unguide::tensor::{DType, Real, Shape, Tensor};

/// An operand of a graph, as a buffer.
pub enum Input<T> {
    Real(Tensor<T>),
    Index(Tensor<i32>),
}

impl<T> From<Tensor<T>> for Input<T> {
    fn from(tensor: Tensor<T>) -> Self {
        Self::Real(tensor)
    }
}

/// A loaded graph whose operands can be exchanged.
pub struct Runner<T> {
    program: CpuProgram<T>,
    outputs: Vec<Shape>,
    pub state: StepState,
}

impl<T: Real> Runner<T> {
    /// Loads the graph that `build` makes of its operands; what it returns are the results.
    pub fn new(
        weights: &dyn WeightSource,
        inputs: &[Input<T>],
        build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>>,
    ) -> Result<Self> {
        let mut b = Builder::new();
        let mut values = Vec::new();
        for (i, input) in inputs.iter().enumerate() {
            let (shape, dtype) = match input {
                Input::Real(tensor) => (tensor.shape(), DType::F32),
                Input::Index(tensor) => (tensor.shape(), DType::I32),
            };
            let buffer = b.buffer(&format!("in{i}"), shape.clone(), dtype);
            values.push(b.load(buffer, Row::All)?);
        }
        let results = build(&mut b, &values)?;
        let mut outputs = Vec::new();
        for (i, &result) in results.iter().enumerate() {
            let shape = b.shape(result).clone();
            let buffer = b.buffer(&format!("out{i}"), shape.clone(), DType::F32);
            b.store(result, buffer, Row::All)?;
            outputs.push(shape);
        }
        let step = StepProgram::new(passes::run_all(b.finish())?, size_of::<T>())?;
        let program = Cpu::<T>::new().load_program(step, weights)?;
        let mut runner = Self { program, outputs, state: StepState::default() };
        for (i, input) in inputs.iter().enumerate() {
            match input {
                Input::Real(tensor) => runner.set(i, tensor.data()),
                Input::Index(tensor) => {
                    runner.program.write_indices(&format!("in{i}"), tensor.data())?;
                }
            }
        }
        Ok(runner)
    }

    /// Exchanges an operand.
    pub fn set(&mut self, input: usize, data: &[T]) {
        self.program.set(&format!("in{input}"), data).expect("the operand was declared");
    }

    pub fn run(&mut self) -> Vec<Tensor<T>> {
        self.program.run(&self.state, &Stop::default()).expect("nobody stops it");
        let read = |(i, shape): (usize, &Shape)| {
            let data = self.program.get(&format!("out{i}")).expect("the result was declared");
            Tensor::new(shape.clone(), data.to_vec())
        };
        self.outputs.iter().enumerate().map(read).collect()
    }
}
