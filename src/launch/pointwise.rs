//! Operations on elements, eight at a time where addresses and channels allow it.

use std::fmt;

use super::general::{Operand, general, kinds};
use super::layout::{Place, strided};
use super::params::{self as p, DevicePtr};
use super::{Launch, Storage};
use crate::error::Result;
use crate::ir::{Activation, Op};

/// How an operation runs; it prints why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 16 bytes a load. What the kernel's name ends in.
    Eights(&'static str),
    /// The general form, because of this.
    General(&'static str),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eights(_) => write!(f, "eight elements a load"),
            Self::General(why) => f.write_str(why),
        }
    }
}

pub fn choose(op: &Op, inputs: &[Operand], outputs: &[Operand]) -> Form {
    let ending = match op {
        Op::Add | Op::AddChannels | Op::Affine { .. } | Op::Geglu | Op::GegluBwd => "_v8",
        Op::Activate(act) | Op::ActivateBwd(act) => match act {
            Activation::Silu => "_v8_silu",
            Activation::Gelu => "_v8_gelu",
            Activation::QuickGelu => "_v8_quick_gelu",
            Activation::Relu => "_v8_relu",
            Activation::Tanh => return Form::General("one element a load: too few of them to matter"),
        },
        _ if is_copy(op, inputs, outputs) => {
            return Form::General("a copy: eight elements a load where all allows it");
        }
        _ => return Form::General("the one form that there is"),
    };
    let operands = || inputs.iter().chain(outputs);
    if operands().any(|operand| !operand.at.0.is_multiple_of(16)) {
        return Form::General("one element a load: an address is no multiple of 16");
    }
    let rows = matches!(op, Op::Geglu | Op::GegluBwd | Op::AddChannels);
    if rows && !operands().all(|operand| operand.shape.last().is_multiple_of(8)) {
        return Form::General("one element a load: the channels are no multiple of 8");
    }
    Form::Eights(ending)
}

fn is_copy(op: &Op, inputs: &[Operand], outputs: &[Operand]) -> bool {
    let moves = |(x, to): (&Operand, &Operand)| Place::of(op, &x.shape, &to.shape).is_some();
    inputs.first().zip(outputs.first()).is_some_and(moves)
}

/// The launch of an operation in the form that [`choose`] names, over at most `most_blocks` blocks.
pub fn launch(
    op: &Op,
    storage: Storage,
    most_blocks: u32,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<Launch> {
    let (Form::Eights(ending), Some(kinds)) = (choose(op, inputs, outputs), kinds(op)) else {
        return general(op, storage, most_blocks, DevicePtr::NONE, inputs, outputs);
    };
    // geglu_bwd goes over dy, the others over their result.
    let over = if matches!(op, Op::GegluBwd) { &inputs[1].shape } else { &outputs[0].shape };
    // One vector for each image, unless it is one for all.
    let each = matches!(op, Op::AddChannels) && inputs[1].shape[0] > 1;
    let image = if each { over.count() / over[0] } else { 0 };
    let (mul, add) = if let Op::Affine { mul, add } = *op { (mul, add) } else { (0.0, 0.0) };
    let params = p::PointwiseParams {
        x: inputs[0].at,
        y: inputs.get(1).map_or(DevicePtr::NONE, |y| y.at),
        out: outputs[0].at,
        count: over.count() as i64,
        image: image as i64,
        c: i32::try_from(over.last()).unwrap_or(i32::MAX),
        mul,
        add,
        ..Default::default()
    };
    let kernel = format!("{}_{}{ending}", kinds.kernel, storage.name());
    Launch::new(&kernel, strided(over.count().div_ceil(8), most_blocks), &params)
}

/// `geglu_bwd` where x and its gradient have the two halves of their channels side by side: `[rows, c, 2]`.
pub fn geglu_bwd_of_pairs(
    storage: Storage,
    most_blocks: u32,
    inputs: &[Operand],
    out: DevicePtr,
) -> Result<Launch> {
    let count = inputs[1].shape.count();
    let params = p::PointwiseParams {
        x: inputs[0].at,
        y: inputs[1].at,
        out,
        count: count as i64,
        ..Default::default()
    };
    Launch::new(&format!("geglu_bwd_{}_pairs", storage.name()), strided(count, most_blocks), &params)
}
