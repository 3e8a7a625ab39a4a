//! The parts in which `benches/gpu/run.py` has kernels measured: every kernel is in one, and in no other.

use clap::Parser;
use serde_json::Value;
use unguide::cli::args::{BenchKernelsArgs, BenchWhat, Cli, Command};
use unguide::manifest::KERNELS;

/// The flags of every part, as `bench kernels` reads them.
fn parts() -> Vec<(String, BenchKernelsArgs)> {
    let parts: Value = serde_json::from_str(include_str!("../../benches/gpu/parts.json")).expect("JSON");
    let part = |(name, part): (&String, &Value)| {
        let flags =
            part["flags"].as_array().expect("flags").iter().map(|flag| flag.as_str().expect("a word"));
        let line = ["unguide", "bench", "kernels"].into_iter().chain(flags);
        let Command::Bench(bench) = Cli::try_parse_from(line).expect("flags").command else {
            panic!("{name}")
        };
        let BenchWhat::Kernels(args) = bench.what;
        (name.clone(), args)
    };
    parts["kernels"].as_object().expect("parts").iter().map(part).collect()
}

#[test]
fn every_row_of_the_manifest_is_measured_in_exactly_one_part() {
    let parts = parts();
    let takers = |kernel: &str| -> Vec<&str> {
        parts.iter().filter(|(_, flags)| flags.picks(kernel)).map(|(name, _)| &**name).collect()
    };
    let wrong: Vec<_> =
        KERNELS.iter().map(|row| (row.name, takers(row.name))).filter(|(_, of)| of.len() != 1).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, flags) in &parts {
        assert!(KERNELS.iter().any(|row| flags.picks(row.name)), "{name} has no kernel");
    }
}
