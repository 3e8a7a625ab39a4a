//! Kernels with one thing weakened each. All of them must be caught, also those whose numbers stay right.

mod support;
#[allow(dead_code)] // what is replaced by what is the build's business
#[path = "../kernels/simt/mutations.rs"]
mod table;

use rayon::prelude::*;
use support::device::{Proof, proofs};
use table::{Mutation, mutations};
use unguide::launch::Storage;
use unguide::simt::{Mode, Simt};

#[link(name = "unguide_simt_mutants", kind = "static", modifiers = "+whole-archive")]
unsafe extern "C" {}

#[test]
fn every_mutant_is_caught_and_some_only_by_the_checks() {
    let proofs: Vec<Proof> = proofs().into_iter().filter(|proof| proof.small).collect();
    // The rows that every proof launches, for both storage types.
    let rows = Storage::BOTH.map(|storage| {
        let launched = |proof: &Proof| proof.prepare(&mut Simt::new(), storage).launches;
        let rows = proofs.iter().map(|proof| launched(proof).iter().map(|l| l.kernel.name).collect());
        rows.collect::<Vec<Vec<&str>>>()
    });
    let mutations: Vec<&Mutation> = mutations().collect();
    let verdicts = mutations.par_iter().map(|mutation| {
        let (mut seen, mut caught) = (false, false);
        for (storage, rows) in Storage::BOTH.into_iter().zip(&rows) {
            for (proof, _) in proofs.iter().zip(rows).filter(|(_, rows)| rows.contains(&mutation.kernel)) {
                let wanted = proof.wanted(storage);
                let fails = |mode: Mode| {
                    let mut simt = Simt::new();
                    let prepared = proof.prepare(&mut simt, storage);
                    let ran = prepared.run_mutant(&mut simt, (mutation.kernel, mutation.name), mode);
                    ran.map_err(|e| e.report).and_then(|()| prepared.judge(&simt, &wanted)).is_err()
                };
                seen = seen || Mode::all().any(fails);
                caught = caught || fails(Mode::CHECKED);
                if seen && caught {
                    break;
                }
            }
        }
        (mutation.name, seen, caught)
    });
    let verdicts: Vec<(&str, bool, bool)> = verdicts.collect();
    let named = |wanted: fn(bool, bool) -> bool| -> Vec<&str> {
        verdicts.iter().filter(|(_, seen, caught)| wanted(*seen, *caught)).map(|(name, ..)| *name).collect()
    };
    let survivors = named(|_, caught| !caught);
    let invisible = named(|seen, caught| caught && !seen);
    eprintln!("only the checks see {invisible:?}");
    assert!(survivors.is_empty(), "nobody sees {survivors:?}");
    assert!(mutations.len() >= 20 && invisible.len() >= 5, "{} mutants, {invisible:?}", mutations.len());
}
