//! What the compiler made of the kernels that were written for matrix units: their instructions are there, nothing of
//! an older kind is beside them, and nothing lives in local memory.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use unguide::bench::opcodes::{disassembler, listing, mnemonics};
use unguide::launch::binaries::MODULES;
use unguide::manifest::{self, Arch, Kernel};

/// What stands in every kernel of a file, and what does not, whatever the target is.
struct Made {
    files: &'static [&'static str],
    with: &'static [&'static str],
    without: &'static [&'static str],
}

const MADE: &[Made] = &[
    // Products of warpgroups on what boxes of tensors bring; the register file is dealt anew.
    Made {
        files: &[
            "gemm_sm90.cu",
            "conv2d_sm90.cu",
            "conv2d_dgrad_sm90.cu",
            "attention_sm90.cu",
            "attention_bwd_sm90.cu",
        ],
        with: &["HGMMA", "UTMALDG", "USETMAXREG", "SYNCS"],
        without: &["HMMA", "LDSM", "LDGSTS"],
    },
    // Products of warps on fragments of what asynchronous copies bring.
    Made {
        files: &[
            "gemm_tile.cu",
            "gemm_tile_bwd.cu",
            "conv2d_tile.cu",
            "conv2d_dgrad_tile.cu",
            "conv2d_narrow.cu",
            "product_mma.cu",
            "attention_mma.cu",
            "attention_bwd_dq.cu",
            "attention_bwd_dkv.cu",
        ],
        with: &["HMMA", "LDSM", "LDGSTS"],
        without: &[],
    },
    // What is gathered comes through registers.
    Made { files: &["conv2d_gather.cu"], with: &["HMMA", "LDSM"], without: &[] },
];

/// Loads and stores of local memory, where arrays end that do not fit into registers.
const LOCAL: [&str; 2] = ["LDL", "STL"];

/// A form that was written for speed has its own idea of shared memory; the general ones may keep arrays anywhere.
fn is_tuned(kernel: &Kernel) -> bool {
    kernel.shared_bytes > 0 || kernel.arch != Arch::Sm80
}

fn tool() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvdisasm/nvidia/cu13/bin/nvdisasm");
    let found = disassembler().expect("a disassembler that is named is there");
    let tool = found.or_else(|| installed.is_file().then_some(installed));
    tool.expect("no nvdisasm: `sh kernels/setup.sh` installs it into target/")
}

#[test]
fn kernels_for_matrix_units_are_made_of_their_instructions_and_keep_out_of_local_memory() {
    let tool = tool();
    let modules = MODULES.par_iter().filter(|module| module.target.starts_with("sm_"));
    let wrong: Vec<String> = modules
        .flat_map_iter(|module| {
            let made = mnemonics(&tool, module).expect("a binary of ours");
            let rows = manifest::KERNELS.iter();
            let rows = rows.filter(|row| row.file == module.file && row.arch.runs_on(module.target));
            let of = MADE.iter().find(|made| made.files.contains(&module.file));
            let verdict = |row: &Kernel| {
                let name = format!("{} for {}", row.name, module.target);
                let Some(counts) = made.get(row.name) else { return vec![format!("{name} is not there")] };
                let (with, without) = of.map_or((&[][..], &[][..]), |of| (of.with, of.without));
                let lacks = with.iter().filter(|word| !counts.contains_key(**word));
                let local = if is_tuned(row) { &LOCAL[..] } else { &[] };
                let has = without.iter().chain(local).filter(|word| counts.contains_key(**word));
                let lacks = lacks.map(|word| format!("{name} has no {word}"));
                lacks.chain(has.map(|word| format!("{name} has {word}"))).collect()
            };
            rows.flat_map(verdict).collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for file in MADE.iter().flat_map(|made| made.files) {
        assert!(MODULES.iter().any(|module| module.file == *file), "{file}");
    }
}

#[test]
fn exponentials_of_attention_stand_before_the_wait_for_the_product_that_hides_them() {
    for module in MODULES.iter().filter(|module| module.file == "attention_sm90.cu") {
        let text = listing(&tool(), module).expect("a binary of ours");
        for kernel in text.split(".section\t.text.").skip(1) {
            let name = kernel.split(',').next().unwrap_or_default();
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
