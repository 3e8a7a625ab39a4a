//! What a binary is made of: its instructions by class, where a disassembler is at hand.
//!
//! `nvdisasm` is looked for in `UNGUIDE_NVDISASM`, on the path, and in the CUDA installation that `CUDA_HOME` or
//! `CUDA_PATH` names. It is a program of its own, so nothing here depends on CUDA.

use std::collections::BTreeMap;
use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::launch::binaries::Module;

/// Classes in the order in which they are printed, and the mnemonics of each. Whatever else there is counts as
/// `other`.
const CLASSES: [(&str, &[&str]); 10] = [
    ("mma", &["HMMA", "HGMMA", "IMMA", "QGMMA", "UTCHMMA"]),
    ("ldmatrix", &["LDSM"]),
    ("async", &["LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP"]),
    ("global", &["LDG", "STG", "LD", "ST", "RED", "ATOM", "ATOMG"]),
    ("shared", &["LDS", "STS", "STSM", "ATOMS"]),
    ("local", &["LDL", "STL"]),
    ("special", &["MUFU"]),
    ("float", &["FADD", "FMUL", "FFMA", "FMNMX", "FSETP", "FSEL", "HADD2", "HMUL2", "HFMA2", "F2F", "F2FP"]),
    ("barrier", &["BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "SYNCS", "WARPGROUP", "BSYNC", "BSSY"]),
    ("shuffle", &["SHFL", "VOTE", "REDUX"]),
];

/// Static counts: what stands in the code, not how often it runs.
pub type Counts = BTreeMap<&'static str, u32>;

/// The disassembler, if there is one. Named but missing is an error.
pub fn disassembler() -> Result<Option<PathBuf>> {
    const VARIABLE: &str = "UNGUIDE_NVDISASM";
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(Some(path));
        }
        return Err(Error::usage(VARIABLE, format!("{} is not a file", path.display())));
    }
    let folders =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let candidates = folders.into_iter().chain(homes.map(|home| Path::new(&home).join("bin")));
    Ok(candidates.map(|folder| folder.join("nvdisasm")).find(|path| path.is_file()))
}

/// Instructions of every entry point of a binary, by class. Nothing for PTX.
pub fn count(disassembler: &Path, module: &Module) -> Result<BTreeMap<String, Counts>> {
    if !module.target.starts_with("sm_") {
        return Ok(BTreeMap::new());
    }
    Ok(classes(&listing(disassembler, module)?))
}

/// The same by mnemonic, without what follows its first point.
pub fn mnemonics(disassembler: &Path, module: &Module) -> Result<BTreeMap<String, BTreeMap<String, u32>>> {
    Ok(tally(&listing(disassembler, module)?, str::to_owned))
}

/// The instructions of a module, entry point by entry point.
pub fn listing(disassembler: &Path, module: &Module) -> Result<String> {
    let broken = |problem: String| Error::Device { device: disassembler.display().to_string(), problem };
    let mut file = tempfile::NamedTempFile::new().map_err(|e| Error::io("create", env::temp_dir(), e))?;
    file.write_all(module.binary).map_err(|e| Error::io("write", file.path(), e))?;
    let output = Command::new(disassembler)
        .arg("-c")
        .arg(file.path())
        .output()
        .map_err(|e| Error::io("run", disassembler, e))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let line = words.lines().next().unwrap_or("it says nothing");
        return Err(broken(format!("{} for {}: {line}", module.file, module.target)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads a listing: entry points are sections `.text.NAME`, instructions lines that begin with an offset.
fn classes(listing: &str) -> BTreeMap<String, Counts> {
    tally(listing, |mnemonic| {
        CLASSES.iter().find(|(_, members)| members.contains(&mnemonic)).map_or("other", |class| class.0)
    })
}

fn tally<'l, K: Ord>(listing: &'l str, class: impl Fn(&'l str) -> K) -> BTreeMap<String, BTreeMap<K, u32>> {
    let mut found: BTreeMap<String, BTreeMap<K, u32>> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines() {
        // Not `.sectionflags`, which stands inside of one.
        let section = line.trim_start().strip_prefix(".section");
        if let Some(rest) = section.filter(|rest| rest.starts_with(char::is_whitespace)) {
            let name = rest.trim_start().split(',').next().unwrap_or_default();
            current = name.strip_prefix(".text.").map(str::to_owned);
        }
        if let (Some(kernel), Some(mnemonic)) = (&current, mnemonic(line)) {
            *found.entry(kernel.clone()).or_default().entry(class(mnemonic)).or_default() += 1;
        }
    }
    found
}

/// `HMMA` of `/*01c0*/  @!P0 HMMA.16816.F32 R4, ...`; padding is no instruction.
fn mnemonic(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let mut words = rest.split_whitespace();
    let first = words.next()?;
    let word = if first.starts_with('@') { words.next()? } else { first };
    let end = word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len());
    let name = &word[..end];
    (name.starts_with(|c: char| c.is_ascii_uppercase()) && name != "NOP").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_entry_point_and_class() {
        let listing = "
\t.section\t.text.gemm_f16,\"ax\",@progbits
\t.sectionflags\t@\"SHF_BARRIERS=2\"
gemm_f16:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
.L_x_0:
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   NOP ;
\t.section\t.nv.info,\"\",@SHT_CUDA_INFO
        /*0000*/ \t.byte 0x04
\t.section\t.text.add_f16,\"ax\",@progbits
        /*0000*/                   STG.E.128 [R2.64], R4 ;
";
        let found = classes(listing);
        assert_eq!(found.len(), 2);
        assert_eq!(found["gemm_f16"], Counts::from([("async", 1), ("mma", 2), ("other", 2)]));
        assert_eq!(found["add_f16"], Counts::from([("global", 1)]));
    }

    #[test]
    fn no_mnemonic_is_in_two_classes() {
        let mut all: Vec<&str> = CLASSES.iter().flat_map(|(_, members)| members.iter().copied()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
