//! What the compiler made of the kernels that were written for matrix units: their instructions are there, nothing of
//! an older kind is beside them, and nothing lives in local memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use unguide::bench::opcodes::{disassembler, listing, mnemonics};
use unguide::launch::binaries::{MODULES, Module};
use unguide::manifest::{KERNELS, Kernel};

/// What stands in every kernel of a file, and what does not, whatever the target is.
struct Made {
    files: &'static [&'static str],
    with: &'static [&'static str],
    without: &'static [&'static str],
    /// What stands in those whose blocks finish what they make by themselves.
    alone: &'static [&'static str],
}

const MADE: &[Made] = &[
    // Products of warpgroups on what boxes of tensors bring; the register file is dealt anew. Results leave through
    // fragments in shared memory and as boxes, and the first weights are fetched ahead.
    Made {
        files: &["gemm_sm90.cu", "conv2d_sm90.cu", "conv2d_dgrad_sm90.cu"],
        with: &["HGMMA", "UTMALDG", "USETMAXREG", "SYNCS", "UTMAPF", "UTMACCTL"],
        without: &["HMMA", "LDSM", "LDGSTS"],
        alone: &["STSM", "UTMASTG", "UTMACMDFLUSH"],
    },
    Made {
        files: &["attention_sm90.cu", "attention_bwd_sm90.cu"],
        with: &["HGMMA", "UTMALDG", "USETMAXREG", "SYNCS"],
        without: &["HMMA", "LDSM", "LDGSTS"],
        alone: &[],
    },
    // Products of warps on fragments of what asynchronous copies bring.
    Made {
        files: &[
            "gemm_tile.cu",
            "gemm_tile_bwd.cu",
            "conv2d_tile.cu",
            "conv2d_dgrad_tile.cu",
            "conv2d_narrow.cu",
            "attention_product_tile.cu",
            "attention_mma.cu",
            "attention_bwd_dq.cu",
            "attention_bwd_dkv.cu",
        ],
        with: &["HMMA", "LDSM", "LDGSTS"],
        without: &[],
        alone: &[],
    },
    // What is gathered comes through registers.
    Made { files: &["conv2d_gather.cu"], with: &["HMMA", "LDSM"], without: &[], alone: &[] },
];

/// Loads and stores of local memory, where arrays end that do not fit into registers.
const LOCAL: [&str; 2] = ["LDL", "STL"];

fn tool() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvdisasm/nvidia/cu13/bin/nvdisasm");
    let found = disassembler().expect("a disassembler that is named is there");
    let tool = found.or_else(|| installed.is_file().then_some(installed));
    tool.expect("no nvdisasm: `sh kernels/setup.sh` installs it into target/")
}

#[test]
fn kernels_for_matrix_units_are_made_of_their_instructions_and_keep_out_of_local_memory() {
    let tool = tool();
    // What was made for later devices is made by the same rules.
    let modules = MODULES.iter().filter(|module| ["sm_80", "sm_90a"].contains(&module.target));
    let modules: Vec<(&Module, &Made)> = modules
        .filter_map(|module| Some((module, MADE.iter().find(|made| made.files.contains(&module.file))?)))
        .collect();
    let verdicts = modules.par_iter().flat_map_iter(|(module, made)| {
        let found = mnemonics(&tool, module).expect("a binary of ours");
        let rows = KERNELS.iter().filter(|row| row.arch.runs_on(module.target) && is_of(row, module));
        rows.flat_map(|row| verdict(row, made, found.get(row.name), module.target)).collect::<Vec<_>>()
    });
    let wrong: Vec<String> = verdicts.collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for file in MADE.iter().flat_map(|made| made.files) {
        assert!(modules.iter().any(|(module, _)| module.file == *file), "{file}");
    }
}

fn is_of(row: &Kernel, module: &Module) -> bool {
    (row.file, row.is_bf16()) == (module.file, module.bf16)
}

/// What is wrong with a kernel of these instructions, each with how often it is there.
fn verdict(row: &Kernel, made: &Made, found: Option<&BTreeMap<String, u32>>, target: &str) -> Vec<String> {
    let name = format!("{} for {target}", row.name);
    let Some(counts) = found else { return vec![format!("{name} is not there")] };
    let alone = made.alone.iter().filter(|_| row.cluster == 1);
    let lacks = made.with.iter().chain(alone).filter(|word| !counts.contains_key(**word));
    let has = made.without.iter().chain(&LOCAL).filter(|word| counts.contains_key(**word));
    let lacks = lacks.map(|word| format!("{name} has no {word}"));
    lacks.chain(has.map(|word| format!("{name} has {word}"))).collect()
}

/// Entry points of a module by name, each with its instructions in the order in which they stand.
fn entries(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(".section\t.text.").skip(1).map(|kernel| kernel.split_once(',').unwrap_or((kernel, "")))
}

#[test]
fn every_kernel_for_sm_90a_waits_for_the_launch_in_front_before_it_touches_global_memory() {
    let tool = tool();
    let modules: Vec<&Module> = MODULES.iter().filter(|module| module.target == "sm_90a").collect();
    let wrong = modules.par_iter().flat_map_iter(|module| {
        let text = listing(&tool, module).expect("a binary of ours");
        let rows = KERNELS.iter().filter(|row| is_of(row, module));
        let wrong = |row: &Kernel| {
            let Some((name, body)) = entries(&text).find(|(name, _)| *name == row.name) else {
                return Some(format!("{} is not there", row.name));
            };
            // First the next launch is let come; then weights may be on their way, and nothing else.
            let Some((before, after)) = body.split_once(" ACQBULK ") else {
                return Some(format!("{name} does not wait"));
            };
            let fetches =
                !body.contains(" UTMAPF.") || before.contains(" UTMAPF.") && !after.contains(" UTMAPF.");
            let touches = ["LDG", "STG", "ATOM", "RED", "LDGSTS", "UTMALDG", "UTMASTG"];
            let early = touches.iter().find(|word| before.contains(&format!(" {word}.")));
            match early {
                Some(word) => Some(format!("{name} has {word} before its wait")),
                None if after.contains(" ACQBULK ") => Some(format!("{name} waits twice")),
                None if !before.contains(" PREEXIT ") => Some(format!("{name} keeps the next launch back")),
                None => (!fetches).then(|| format!("{name} fetches weights behind its wait")),
            }
        };
        rows.filter_map(wrong).collect::<Vec<_>>()
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn exponentials_of_attention_stand_before_the_wait_for_the_product_that_hides_them() {
    for module in MODULES.iter().filter(|module| module.file == "attention_sm90.cu") {
        let text = listing(&tool(), module).expect("a binary of ours");
        for (name, kernel) in entries(&text) {
            // From the wait for the scores to the wait for the values of the tile before.
            let (_, rest) = kernel.split_once("WARPGROUP.DEPBAR.LE gsb0, 0x1").expect("two are in flight");
            let (between, _) = rest.split_once("WARPGROUP.DEPBAR.LE gsb0, 0x0").expect("then none");
            let exponentials = between.matches("MUFU.EX2").count();
            // A thread has half as many as a tile has keys; up to a quarter are polynomials.
            let wanted = if name.contains("k80") { 80 / 2 } else { 128 / 2 };
            assert!(exponentials * 4 >= wanted * 3, "{name}: {exponentials}");
        }
    }
}
