//! Noise that a kernel draws.

use unguide::launch::Storage;
use unguide::simt::{Mode, Simt};

use crate::support::device::noise::Step;

#[test]
fn noise_that_a_kernel_draws_is_the_hosts_to_two_units_in_the_last_place() {
    let step = Step { n: 3, pixels: 64 * 21, c: 4, draw: 1, step: 4, sigma: 1.0 };
    let mut simt = Simt::new();
    let prepared = step.launch(&mut simt, Storage::F16, [0.0, 0.0]);
    prepared.run(&mut simt, Mode::FAST).expect("the kernel is right");
    let (drawn, mut alike) = (prepared.outputs[0].read(&simt), 0);
    let noise = step.noise();
    assert_eq!(drawn.len(), noise.len());
    for (i, (&got, &want)) in drawn.iter().zip(&noise).enumerate() {
        // Neighbours in the order of the reals are neighbours as integers, but for signs.
        let apart = i64::from(got.to_bits()).abs_diff(i64::from(want.to_bits()));
        assert!(apart <= 2, "element {i}: {got}, wanted {want}");
        alike += u64::from(apart == 0);
    }
    assert!(alike as f64 >= 0.999 * noise.len() as f64, "{alike} of {} bit for bit", noise.len());
}
