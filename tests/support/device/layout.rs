//! Copies that choose a sample or change the type, and elements eight at a time.

use std::mem::offset_of;

use bytemuck::bytes_of;
use unguide::ir::{Activation, Op};
use unguide::launch::layout::{Element, Place};
use unguide::launch::params::{DevicePtr, StepState};
use unguide::launch::{Launch, Operand, Storage, general, kinds, pointwise};
use unguide::plan;
use unguide::tensor::{Shape, Tensor};

use super::{Output, Prepared, Proof, Wanted, put, round, rounded};
use crate::support::{Class, Random, Value, output_shapes, run};

/// Few blocks, so that loops over the grid go round.
const MOST_BLOCKS: u32 = 3;

pub fn proofs() -> Vec<Proof> {
    [copies(), eights(), pairs(), tokens()].into_iter().flatten().collect()
}

/// One operation with operands as the kernels' letters say, in a form that `launch` chooses.
pub fn proof(
    name: &str,
    op: Op,
    operands: Vec<Value<f32>>,
    class: Class,
    launch: impl Fn(Storage, &[Operand], &[Operand]) -> Launch + Send + Sync + 'static,
) -> Proof {
    let letters = kinds(&op).expect("an operation with a kernel");
    let shapes: Vec<String> = operands.iter().map(|value| value.shape().to_string()).collect();
    let name = format!("{name} {op:?} {}", shapes.join(" "));
    let stored = |letter: char, storage: Storage| (letter == 't').then_some(storage);
    let (given, same, state) = (operands.clone(), op.clone(), plan::StepState::default());
    let prepare = move |simt: &mut _, storage: Storage| {
        let pairs = given.iter().zip(letters.inputs.chars());
        let inputs: Vec<Operand> = pairs
            .map(|(value, letter)| Operand {
                at: put(simt, value, stored(letter, storage)),
                shape: value.shape().clone(),
            })
            .collect();
        let (mut results, mut outputs) = (Vec::new(), Vec::new());
        for (shape, letter) in output_shapes(&same, &given).into_iter().zip(letters.outputs.chars()) {
            let output = Output::new(simt, &shape, stored(letter, storage));
            results.push(Operand { at: output.at, shape });
            outputs.push(output);
        }
        Prepared { launches: vec![launch(storage, &inputs, &results)], outputs, ..Prepared::default() }
    };
    let wanted = move |storage: Storage| {
        let pairs = operands.iter().zip(letters.inputs.chars());
        let seen: Vec<Value<f32>> =
            pairs.map(|(x, letter)| if letter == 't' { rounded(x, storage) } else { x.clone() }).collect();
        let results = run(&op, &seen, &state).into_iter().zip(run(&op, &operands, &state));
        results.map(|(rounded, exact)| Wanted::new(rounded, exact, class)).collect()
    };
    Proof::new(name, true, prepare, wanted)
}

pub fn real(shape: &[usize], data: Vec<f32>) -> Value<f32> {
    Value::Real(Tensor::new(Shape::from(shape), data))
}

pub fn normals(random: &mut Random, shape: &[usize], spread: f64) -> Value<f32> {
    let data = random.normals(shape.iter().product(), 0.0, spread);
    real(shape, data)
}

/// Sixteen bytes at a time, samples chosen by the state, and every pair of types.
fn copies() -> Vec<Proof> {
    let mut random = Random::named("copies");
    let mut proofs = Vec::new();
    let mut general_form = |op: Op, shapes: &[&[usize]]| {
        let operands = shapes.iter().map(|shape| normals(&mut random, shape, 1.0)).collect();
        let same = op.clone();
        proofs.push(proof("in eights", op, operands, Class::Exact, move |storage, inputs, outputs| {
            let launch = general(&same, storage, MOST_BLOCKS, DevicePtr::NONE, inputs, outputs);
            let launch = launch.expect("a copy is legal");
            assert!(launch.kernel.name.ends_with("_v8"), "{}", launch.kernel.name);
            launch
        }));
    };
    general_form(Op::Concat, &[&[2, 5, 7, 40], &[2, 5, 7, 24]]);
    general_form(Op::SliceChannels { start: 16, len: 24 }, &[&[2, 33, 48]]);
    general_form(Op::PadChannels { start: 8, channels: 40 }, &[&[1, 33, 16]]);
    general_form(Op::PadTokens { start: 2, tokens: 9 }, &[&[2, 5, 24]]);

    let (samples, count, sample) = (3, 331, 2);
    let x = random.normals(samples * count, 0.0, 1.0);
    for (from_stored, to_stored) in [(true, true), (true, false), (false, true), (false, false)] {
        let (given, whole, state) = (x.clone(), x.clone(), plan::StepState { sample, ..Default::default() });
        let pick = move |storage: Storage, round_it: bool| {
            let rounding = |&x: &f32| if round_it && from_stored { round(storage, x) } else { x };
            let row: Vec<f32> = whole[sample as usize * count..][..count].iter().map(rounding).collect();
            let rest = vec![f32::NAN; (samples - 1) * count];
            // Only that sample is written; what was there before are ones in all bits.
            Tensor::new([samples * count], [rest, row].concat())
        };
        let prepare = move |simt: &mut unguide::simt::Simt, storage: Storage| {
            let kind = |stored: bool| if stored { Element::Stored(storage) } else { Element::Word };
            let stored = |stored: bool| stored.then_some(storage);
            let x = put(simt, &real(&[samples * count], given.clone()), stored(from_stored));
            let output = Output::new(simt, &Shape::from([samples * count]), stored(to_stored));
            let state = simt.put(bytes_of(&StepState::from(&state)));
            let index = DevicePtr(state.0 + offset_of!(StepState, sample) as u64);
            let place = Place { x_sample: count, out_sample: count, ..Place::whole(count) };
            let kinds = (kind(from_stored), kind(to_stored));
            let launch = place.launch(kinds, MOST_BLOCKS, index, [x, DevicePtr::NONE, output.at]);
            Prepared {
                launches: vec![launch.expect("a copy is legal")],
                outputs: vec![output],
                ..Prepared::default()
            }
        };
        let name = format!("a sample from {from_stored} to {to_stored}");
        let class = if from_stored == to_stored { Class::Exact } else { Class::Rounded };
        let wanted = move |storage| vec![Wanted::new(pick(storage, true), pick(storage, false), class)];
        proofs.push(Proof::new(name, true, prepare, wanted));
    }
    proofs
}

/// Eight elements at a time, with and without a rest.
fn eights() -> Vec<Proof> {
    let mut random = Random::named("eights");
    let mut proofs = Vec::new();
    let mut tuned = |op: Op, shapes: &[&[usize]]| {
        let operands = shapes.iter().map(|shape| normals(&mut random, shape, 2.0)).collect();
        let same = op.clone();
        proofs.push(proof("in eights", op, operands, Class::Rounded, move |storage, inputs, outputs| {
            let launch = pointwise::launch(&same, storage, MOST_BLOCKS, inputs, outputs).expect("legal");
            assert!(launch.kernel.name.contains("_v8"), "{}", launch.kernel.name);
            launch
        }));
    };
    for shape in [&[1, 1][..], &[3, 8], &[7, 13, 101]] {
        tuned(Op::Add, &[shape, shape]);
    }
    tuned(Op::Affine { mul: -0.75, add: 0.125 }, &[&[7, 13, 101]]);
    // A vector an image, and one for all.
    tuned(Op::AddChannels, &[&[2, 5, 7, 40], &[2, 40]]);
    tuned(Op::AddChannels, &[&[3, 7, 8], &[1, 8]]);
    for act in [Activation::Silu, Activation::Gelu, Activation::QuickGelu, Activation::Relu] {
        let shape: &[usize] = &[5, 13, 7];
        tuned(Op::Activate(act), &[shape]);
        tuned(Op::ActivateBwd(act), &[shape, shape]);
    }
    for [rows, c] in [[1, 8], [37, 40], [2, 640]] {
        tuned(Op::Geglu, &[&[rows, 2 * c]]);
        tuned(Op::GegluBwd, &[&[rows, 2 * c], &[rows, c]]);
    }
    proofs
}

/// The gradient of a gate whose operand, and its gradient, have their halves side by side.
fn pairs() -> Vec<Proof> {
    // Of `[rows, 2 c]`: the two halves of a row in turn.
    fn paired(x: &Tensor<f32>) -> Tensor<f32> {
        let c = x.shape().last() / 2;
        let row = |row: &[f32]| -> Vec<f32> { (0..c).flat_map(|i| [row[i], row[c + i]]).collect() };
        Tensor::new(x.shape().clone(), x.data().chunks(2 * c).flat_map(row).collect())
    }
    let mut random = Random::named("pairs");
    let mut proofs = Vec::new();
    for [rows, c] in [[1, 1], [37, 41], [2, 640]] {
        let x = normals(&mut random, &[rows, 2 * c], 2.0);
        let dy = normals(&mut random, &[rows, c], 2.0);
        let operands = [x, dy];
        let given = operands.clone();
        let prepare = move |simt: &mut unguide::simt::Simt, storage: Storage| {
            let operand = |value: Value<f32>, simt: &mut _| Operand {
                at: put(simt, &value, Some(storage)),
                shape: value.shape().clone(),
            };
            let x = Value::Real(paired(given[0].real()));
            let inputs = [operand(x, simt), operand(given[1].clone(), simt)];
            let output = Output::new(simt, &inputs[0].shape, Some(storage));
            let launch = pointwise::geglu_bwd_of_pairs(storage, MOST_BLOCKS, &inputs, output.at);
            Prepared { launches: vec![launch.expect("legal")], outputs: vec![output], ..Prepared::default() }
        };
        let wanted = move |storage| {
            let seen: Vec<Value<f32>> = operands.iter().map(|value| rounded(value, storage)).collect();
            let gradient =
                |operands: &[Value<f32>]| paired(&run(&Op::GegluBwd, operands, &Default::default())[0]);
            vec![Wanted::new(gradient(&seen), gradient(&operands), Class::Rounded)]
        };
        proofs.push(Proof::new(format!("geglu_bwd of pairs [{rows}, {c}]"), true, prepare, wanted));
    }
    proofs
}

/// Vision towers of 49, 196 and 256 patches and their class token; unit rows where length or scale are extreme.
fn tokens() -> Vec<Proof> {
    let mut random = Random::named("tokens");
    let mut proofs = Vec::new();
    let mut plain = |op: Op, operands: Vec<Value<f32>>, class: Class| {
        let same = op.clone();
        proofs.push(proof("general", op, operands, class, move |storage, inputs, outputs| {
            general(&same, storage, MOST_BLOCKS, DevicePtr::NONE, inputs, outputs).expect("legal")
        }));
    };
    for t in [49, 196, 256] {
        let shapes: [&[usize]; 3] = [&[2, t, 8], &[8], &[t + 1, 8]];
        let operands = shapes.iter().map(|shape| normals(&mut random, shape, 1.0)).collect();
        plain(Op::EmbedPatches, operands, Class::Rounded);
    }
    // A row of zeros, one whose squares vanish, one whose squares are beyond f16 and near the end of bf16's range.
    let mut rows = vec![0.0; 33];
    rows.extend(random.normals(33, 0.0, 1e-6));
    rows.extend(random.normals(33, 0.0, 1e4));
    plain(Op::Normalise, vec![real(&[3, 33], rows)], Class::Reduced);
    proofs
}
