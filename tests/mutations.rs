//! Kernels with one thing weakened each. All of them must be caught, also those whose numbers stay right.

mod support;
#[allow(dead_code)] // what is replaced by what is the build's business
#[path = "../kernels/simt/mutations.rs"]
mod table;

use support::device::{Launch, Storage, Trial, Wanted, kernel};
use table::MUTATIONS;
use unguide::simt::{Mode, Simt};

#[link(name = "unguide_simt_mutants", kind = "static", modifiers = "+whole-archive")]
unsafe extern "C" {}

#[test]
fn every_mutant_is_caught_and_some_only_by_the_checks() {
    let (mut survivors, mut invisible) = (Vec::new(), Vec::new());
    let trials: Vec<Trial> = Trial::all().into_iter().filter(Trial::is_small).collect();
    for mutation in MUTATIONS {
        let storage = if mutation.kernel.ends_with("_bf16") { Storage::Bf16 } else { Storage::F16 };
        let (mut seen, mut caught) = (false, false);
        for trial in trials.iter().filter(|trial| is_of(mutation.kernel, trial)) {
            let wanted = Wanted::of(trial, storage);
            let fails = |mode: Mode| {
                let mut simt = Simt::new();
                let launch = Launch::new(&mut simt, trial, storage);
                let ran = launch.run_mutant(&mut simt, mutation.name, mode).map_err(|e| e.report);
                ran.and_then(|_| launch.judge(&simt, trial, &wanted)).is_err()
            };
            seen = seen || Mode::all().any(fails);
            caught = caught || fails(Mode::CHECKED);
            if seen && caught {
                break;
            }
        }
        if !caught {
            survivors.push(mutation.name);
        }
        if caught && !seen {
            invisible.push(mutation.name);
        }
    }
    eprintln!("only the checks see {invisible:?}");
    assert!(survivors.is_empty(), "nobody sees {survivors:?}");
    assert!(MUTATIONS.len() >= 20 && invisible.len() >= 5, "{} mutants, {invisible:?}", MUTATIONS.len());
}

/// Whether a trial runs the kernel of that row.
fn is_of(row: &str, trial: &Trial) -> bool {
    let op = kernel(&trial.case.op).map(|(name, ..)| name);
    op == row.strip_suffix("_bf16").or(row.strip_suffix("_f16"))
}
