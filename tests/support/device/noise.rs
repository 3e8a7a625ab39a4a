//! The sampler's step with noise that the kernel draws itself, against noise that the host drew.

use bytemuck::{bytes_of, cast_slice};
use unguide::ir::Op;
use unguide::launch::params::{DdimUnguideParams, DevicePtr, StepState};
use unguide::launch::{Launch, Storage};
use unguide::plan;
use unguide::sampler::{NoiseStream, Rng};
use unguide::simt::Simt;
use unguide::tensor::{Shape, Tensor};

use super::layout::{normals, real};
use super::{Output, Prepared, Proof, Wanted, put};
use crate::support::{Class, Random, run};

pub fn proofs() -> Vec<Proof> {
    let step = |draw: usize, step: u32| Step { n: 2, pixels: 117, c: 4, draw, step, sigma: 0.29 };
    let steps = [
        step(1, 0),
        step(0, 2),
        Step { n: 1, pixels: 1, c: 3, ..step(1, 3) },
        Step { sigma: 0.0, ..step(1, 1) },
    ];
    steps.into_iter().map(Step::proof).collect()
}

/// One step of a few images.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub n: usize,
    pub pixels: usize,
    pub c: usize,
    /// The generator's draw that step 0 takes.
    pub draw: usize,
    pub step: u32,
    pub sigma: f32,
}

impl Step {
    pub fn seed(image: usize) -> u64 {
        (7 << 40) + 41 + image as u64
    }

    /// The noise of all images, `[n, pixels, c]`, as the host draws it: channel by channel.
    pub fn noise(&self) -> Vec<f32> {
        let (pixels, c) = (self.pixels, self.c);
        let image = |image: usize| {
            let mut stream = NoiseStream::new(Rng::Cuda, Self::seed(image));
            let mut drawn = Vec::new();
            for _ in 0..=self.draw + self.step as usize {
                drawn = stream.normal(pixels * c);
            }
            (0..pixels * c).map(move |i| drawn[i % c * pixels + i / c])
        };
        (0..self.n).flat_map(image).collect()
    }

    /// z' of the step, with these coefficients of x0 and eps.
    pub fn launch(&self, simt: &mut Simt, storage: Storage, coefficients: [f32; 2]) -> Prepared {
        let shape = [self.n, self.pixels, self.c];
        let [eps, x0] = self.latents().map(|latents| put(simt, &latents, None));
        let seeds: Vec<u64> = (0..self.n).map(Self::seed).collect();
        let (z, guided) =
            (Output::new(simt, &Shape::from(shape), None), Output::new(simt, &Shape::from(shape), None));
        let params = DdimUnguideParams {
            state: simt.put(bytes_of(&StepState::from(&self.state(coefficients)))),
            eps,
            x0,
            noise: DevicePtr::NONE,
            seeds: simt.put(cast_slice(&seeds)),
            z: z.at,
            guided: guided.at,
            count: (self.n * self.pixels * self.c) as i64,
            image: (self.pixels * self.c) as i64,
            c: self.c as i32,
            draw: self.draw as i32,
            ..Default::default()
        };
        let name = format!("ddim_unguide_{}", storage.name());
        let launch = Launch::new(&name, [2, 1, 1], &params).expect("legal");
        Prepared { launches: vec![launch], outputs: vec![z, guided], ..Prepared::default() }
    }

    fn state(&self, [prev_x0, prev_eps]: [f32; 2]) -> plan::StepState {
        plan::StepState { step: self.step, sigma: self.sigma, prev_x0, prev_eps, ..Default::default() }
    }

    /// eps and x0.
    fn latents(&self) -> [crate::support::Value<f32>; 2] {
        let mut random = Random::named(&format!("{self:?}"));
        [0, 1].map(|_| normals(&mut random, &[self.n, self.pixels, self.c], 1.0))
    }

    fn proof(self) -> Proof {
        let coefficients = [0.56, 0.77];
        let wanted = move |_| {
            let [eps, x0] = self.latents();
            let operands = [eps, x0, real(&[self.n, self.pixels, self.c], self.noise())];
            let results = run(&Op::DdimUnguide { scale_log2: 0 }, &operands, &self.state(coefficients));
            let judged = |result: Tensor<f32>| Wanted::new(result.clone(), result, Class::Rounded);
            results.into_iter().map(judged).collect()
        };
        let prepare = move |simt: &mut Simt, storage| self.launch(simt, storage, coefficients);
        Proof::new(format!("drawn noise {self:?}"), true, prepare, wanted)
    }
}
