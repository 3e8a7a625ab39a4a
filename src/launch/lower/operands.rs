//! Where the operands of a unit are: in the plan's arena, in a buffer, packed among the weights, or in a copy that is
//! made before their first reader.

use super::{Lowering, SAMPLE, STEP, Side};
use crate::error::{Error, Result};
use crate::ir::{BufferId, Node, Op, Row, ValueId};
use crate::launch::location::{Location, Space};
use crate::launch::types::{of_letter, root};
use crate::launch::unit::{Reads, Unit};
use crate::launch::{LaunchStep, Operand, Packing, forms};
use crate::plan::Slot;
use crate::tensor::DType;

impl Lowering<'_> {
    /// The operands of a unit, each in the type that its kernel reads.
    pub(super) fn reads(&mut self, unit: &Unit<'_>, run: &mut Vec<LaunchStep>) -> Result<Reads> {
        let graph = &self.step.graph;
        let mut operands = Vec::new();
        let mut second = None;
        for (i, (value, letter)) in unit.reads().enumerate() {
            let wanted = of_letter(letter, self.storage);
            let packing = self.packing(unit, i, value);
            let (first, other) = self.sources(value);
            let operand = self.input(unit.last, first, (wanted, packing), run)?;
            operands.push(match graph.producer(value).op {
                // Of a batch, the first images.
                Op::SliceBatch { .. } if first != value => {
                    Operand { shape: graph.shape(value).clone(), ..operand }
                }
                _ => operand,
            });
            if let Some(other) = other {
                second = Some(self.input(unit.last, other, (wanted, Packing::Plain), run)?);
            }
        }
        let residual = unit.residual.and_then(|_| operands.pop());
        let channels = unit.channels.and_then(|_| operands.pop());
        let first = unit.inputs.first().copied();
        let paired = first.is_some_and(|value| {
            let filter = graph.producer(root(graph, value)).inputs.get(1);
            filter.is_some_and(|&filter| self.is_paired(filter))
        });
        let statistics = |value: ValueId| self.at_hand.statistics.get(&self.measured(value)).copied();
        let measured = first.map_or(0, |value| graph.shape(self.sources(value).0)[0]);
        let stats = match (&unit.root.op, first) {
            (Op::GroupNorm { .. } | Op::GroupNormBwd { .. }, Some(value)) => {
                let (x, beside) = self.sources(value);
                [statistics(x), beside.and_then(statistics)]
            }
            _ => [None; 2],
        };
        Ok(Reads { inputs: operands, second, channels, residual, paired, stats, measured })
    }

    /// What is read in the place of a value: of one that nobody makes, its sources.
    pub(super) fn sources(&self, value: ValueId) -> (ValueId, Option<ValueId>) {
        match self.step.fusion.sources(&self.step.graph, value) {
            Some(&[first, ref others @ ..]) => (first, others.first().copied()),
            _ => (value, None),
        }
    }

    /// What statistics of a value are known by: those of a view are not those of other images or channels.
    pub(super) fn measured(&self, value: ValueId) -> (ValueId, usize, usize) {
        let (graph, shape) = (&self.step.graph, self.step.graph.shape(value));
        (root(graph, value), shape[0], shape.last())
    }

    /// How operand `i` of a unit is packed.
    pub(super) fn packing(&self, unit: &Unit<'_>, i: usize, value: ValueId) -> Packing {
        let graph = &self.step.graph;
        if self.is_paired(value) {
            return Packing::Pairs;
        }
        match (&unit.root.op, i) {
            (Op::Conv2d { .. }, 1) => forms::packing(unit, graph.shape(unit.inputs[0]), graph.shape(value)),
            (Op::Conv2dBwd { .. }, 1) => {
                forms::packing(unit, graph.shape(unit.last.outputs[0]), graph.shape(value))
            }
            _ => Packing::Plain,
        }
    }

    /// Whether a value is a weight whose rows lie in pairs.
    pub(super) fn is_paired(&self, value: ValueId) -> bool {
        let producer = self.step.graph.producer(value);
        matches!(&producer.op, Op::Param { name, .. } if self.paired.contains(name.as_str()))
    }

    /// Where a weight is that is packed so.
    pub(super) fn weight(&mut self, param: usize, packing: Packing) -> Location {
        let known = self.weights.iter().position(|&weight| weight == (param, packing));
        let index = known.unwrap_or_else(|| {
            self.weights.push((param, packing));
            self.weights.len() - 1
        });
        Location::start(Space::Weight(index as u32))
    }

    /// Where a kernel finds an operand in the type that it reads; a weight, packed as it reads it.
    pub(super) fn input(
        &mut self,
        reader: &Node,
        value: ValueId,
        (wanted, packing): (DType, Packing),
        run: &mut Vec<LaunchStep>,
    ) -> Result<Operand> {
        let shape = self.step.graph.shape(value).clone();
        let value = root(&self.step.graph, value);
        if let Slot::Buffer { buffer, row: Row::Step { start, .. } } = self.step.slot(value) {
            let row = self.row_of_step(reader, buffer, wanted, run)?;
            let offset = (start * wanted.bytes()) as u64;
            return Ok(Operand { at: Location { offset, ..row }.symbol(), shape });
        }
        let (home, of_sample) = self.home(reader, value, packing)?;
        if !of_sample && self.types.value(value) == wanted {
            return Ok(Operand { at: home.symbol(), shape });
        }
        let key = (value, wanted);
        let at = match self.at_hand.copies.get(&key) {
            Some(&at) => at,
            None => {
                let at = self.scratch(shape.count() * wanted.bytes());
                let row_of = of_sample.then_some(SAMPLE);
                let from = Side { at: home.symbol(), dtype: self.types.value(value), row_of };
                self.copy(reader, from, Side { at, dtype: wanted, row_of: None }, &shape, run)?;
                self.at_hand.copies.insert(key, at);
                at
            }
        };
        Ok(Operand { at, shape })
    }

    /// The row of the step of a buffer, copied as a whole: one launch for all that is read of it.
    fn row_of_step(
        &mut self,
        reader: &Node,
        buffer: BufferId,
        wanted: DType,
        run: &mut Vec<LaunchStep>,
    ) -> Result<Location> {
        let at = match self.at_hand.rows.get(&(buffer, wanted)) {
            Some(&at) => at,
            None => {
                let shape = &self.step.graph.buffer(buffer).shape;
                let count = shape.count() / shape[0];
                let at = self.scratch(count * wanted.bytes());
                let home = Location::start(Space::Buffer(buffer.0)).symbol();
                let from = Side { at: home, dtype: self.types.buffer(buffer), row_of: Some(STEP) };
                let to = Side { at, dtype: wanted, row_of: None };
                self.copy(reader, from, to, &[1, count].into(), run)?;
                self.at_hand.rows.insert((buffer, wanted), at);
                at
            }
        };
        Location::of(at).ok_or_else(|| Error::Bug(format!("`{}` reads a row from nowhere", reader.name)))
    }

    /// Where the plan has a value, and whether it is the row of the current sample.
    pub(super) fn home(
        &mut self,
        reader: &Node,
        value: ValueId,
        packing: Packing,
    ) -> Result<(Location, bool)> {
        Ok(match self.step.slot(value) {
            Slot::Param { index } => (self.weight(index, packing), false),
            Slot::Buffer { buffer, row } => (Location::start(Space::Buffer(buffer.0)), row == Row::Sample),
            Slot::Arena { .. } => (self.made(value), false),
            Slot::Passing => {
                let problem = format!("`{}` reads what never reaches memory", reader.name);
                return Err(Error::Bug(problem));
            }
        })
    }

    /// The buffer that a value is made in, or its piece of the arena.
    pub(super) fn made(&self, value: ValueId) -> Location {
        Location::start(match self.direct.made.get(&value) {
            Some(buffer) => Space::Buffer(buffer.0),
            None => Space::Scratch(self.piece_of[&value]),
        })
    }

    pub(super) fn output(&self, node: &Node, value: ValueId, dtype: DType) -> Result<Operand> {
        let shape = self.step.graph.shape(value).clone();
        match self.step.slot(value) {
            Slot::Arena { bytes, .. } if bytes >= shape.count() * dtype.bytes() => {
                Ok(Operand { at: self.made(value).symbol(), shape })
            }
            slot => Err(Error::Bug(format!("`{}` makes {shape} in {dtype} at {slot:?}", node.name))),
        }
    }
}
