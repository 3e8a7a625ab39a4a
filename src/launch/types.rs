//! The type of every value on a device, from what its kernels read and write.
//!
//! A kernel says for every operand whether it is f32, indices or in the storage type ([`super::kinds`]). What a
//! kernel makes has the type it writes. A weight is kept in f32 if no kernel reads it otherwise, and so is a buffer
//! that some kernel reads or writes in f32; else both are in the storage type.

use super::{Storage, kinds};
use crate::ir::{BufferId, Graph, Op, ValueId};
use crate::tensor::DType;

/// The letter of [`super::Kinds`] as a type.
pub(super) fn of_letter(letter: u8, storage: Storage) -> DType {
    match letter {
        b't' => storage.dtype(),
        b'i' => DType::I32,
        _ => DType::F32,
    }
}

/// Types by value (views have those of what they show) and by buffer.
pub(super) struct Types {
    values: Vec<DType>,
    buffers: Vec<DType>,
}

impl Types {
    pub fn of(graph: &Graph, storage: Storage) -> Self {
        let order: Vec<_> = graph.order().into_iter().map(|id| graph.node(id)).collect();
        let count = graph.values.len();
        let (mut read_f32, mut read_stored) = (vec![false; count], vec![false; count]);
        let mut values = vec![DType::F32; count];
        for node in &order {
            let Some(kinds) = kinds(&node.op) else { continue };
            for (&input, letter) in node.inputs.iter().zip(kinds.inputs.bytes()) {
                let reads = if letter == b't' { &mut read_stored } else { &mut read_f32 };
                reads[root(graph, input).0 as usize] = true;
            }
            for (&output, letter) in node.outputs.iter().zip(kinds.outputs.bytes()) {
                values[output.0 as usize] = of_letter(letter, storage);
            }
        }

        let buffers = (0..graph.buffers.len() as u32).map(BufferId);
        let buffers: Vec<DType> = buffers
            .map(|id| {
                if graph.buffer(id).dtype == DType::I32 {
                    return DType::I32;
                }
                let (mut f32, mut stored) = (false, false);
                for node in &order {
                    match node.op {
                        Op::Load { buffer, .. } if buffer == id => {
                            let value = node.outputs[0].0 as usize;
                            f32 |= read_f32[value];
                            stored |= read_stored[value];
                        }
                        Op::Store { buffer, .. } if buffer == id => {
                            let value = root(graph, node.inputs[0]);
                            let is_made = kinds(&graph.producer(value).op).is_some();
                            let dtype = values[value.0 as usize];
                            f32 |= is_made && dtype == DType::F32;
                            stored |= is_made && dtype != DType::F32;
                        }
                        _ => {}
                    }
                }
                if stored && !f32 { storage.dtype() } else { DType::F32 }
            })
            .collect();

        for index in 0..count {
            let value = root(graph, ValueId(index as u32)).0 as usize;
            values[index] = match &graph.producer(ValueId(value as u32)).op {
                Op::Load { buffer, .. } => buffers[buffer.0 as usize],
                Op::Param { .. } if read_stored[value] || !read_f32[value] => storage.dtype(),
                Op::Param { .. } => DType::F32,
                _ => values[value],
            };
        }
        Self { values, buffers }
    }

    pub fn value(&self, id: ValueId) -> DType {
        self.values[id.0 as usize]
    }

    pub fn buffer(&self, id: BufferId) -> DType {
        self.buffers[id.0 as usize]
    }
}

/// The value whose bytes a view shows.
pub(super) fn root(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Op::Reshape = graph.producer(value).op {
        value = graph.producer(value).inputs[0];
    }
    value
}
