//! Every file of kernels, compiled for every target, checked, and listed for embedding.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use super::cache::{Cache, in_parallel};
use super::manifest::{KERNELS, Kernel, TARGETS};
use super::nvrtc::Nvrtc;
use super::sources::Sources;

/// What the compiler says about one entry point on one target.
pub struct Resources {
    pub entry: String,
    pub registers: u32,
    pub shared_bytes: u32,
    pub spill_bytes: u32,
    /// Of local memory: arrays that did not fit into registers.
    pub local_bytes: u32,
}

/// Compiles all and returns the body of the generated table; errors name kernel, file and line.
pub fn build(nvrtc: &Nvrtc, sources: &Sources, cache: &Cache) -> Result<String, String> {
    let units = sources.files.iter().flat_map(|(file, _)| {
        let of_file = TARGETS.into_iter().flat_map(move |target| [false, true].map(|bf16| (target, bf16)));
        of_file.map(|(target, bf16)| Unit { file, target, bf16 })
    });
    let jobs: Vec<Unit> = units.filter(|unit| KERNELS.iter().any(|kernel| unit.has(kernel))).collect();
    let results = in_parallel(&jobs, |unit| compile(nvrtc, sources, cache, unit));

    let (mut modules, mut resources, mut errors) = (String::new(), String::new(), String::new());
    for (Unit { file, target, bf16 }, result) in jobs.iter().zip(results) {
        match result {
            Ok((path, found)) => {
                let bytes = format!("include_bytes!({path:?})");
                writeln!(
                    modules,
                    "    Module {{ file: {file:?}, bf16: {bf16}, target: {target:?}, binary: {bytes} }},"
                )
                .expect("a String takes everything");
                for Resources { entry, registers, shared_bytes, spill_bytes, .. } in found {
                    writeln!(
                        resources,
                        "    Resources {{ kernel: {entry:?}, target: {target:?}, registers: {registers}, \
                         shared_bytes: {shared_bytes}, spill_bytes: {spill_bytes} }},"
                    )
                    .expect("a String takes everything");
                }
            }
            Err(error) => {
                writeln!(errors, "{file} for {target}: {error}").expect("a String takes everything")
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(format!(
        "pub static MODULES: &[Module] = &[\n{modules}];\npub static RESOURCES: &[Resources] = &[\n{resources}];\n"
    ))
}

/// Rows that are compiled together.
struct Unit<'a> {
    file: &'a str,
    target: &'static str,
    bf16: bool,
}

impl Unit<'_> {
    fn has(&self, kernel: &Kernel) -> bool {
        kernel.file == self.file && kernel.arch.runs_on(self.target) && kernel.is_bf16() == self.bf16
    }
}

fn compile(
    nvrtc: &Nvrtc,
    sources: &Sources,
    cache: &Cache,
    unit: &Unit<'_>,
) -> Result<(PathBuf, Vec<Resources>), String> {
    let source = sources.unit(unit.file, |kernel| unit.has(kernel));
    let (path, log) = translate(nvrtc, sources, cache, unit.file, &source, unit.target)?;
    let Some(log) = log else { return Ok((path, Vec::new())) };
    let rows = KERNELS.iter().filter(|kernel| unit.has(kernel));
    Ok((path, accept(rows, &log)?))
}

/// The layer's own probes, which no row names and nobody embeds: that every instruction's wrapper is one that NVRTC
/// takes, and that wgmma is not serialised.
#[cfg(feature = "simt")]
pub fn try_probes(
    nvrtc: &Nvrtc,
    sources: &Sources,
    cache: &Cache,
    probes: &[(&str, String)],
) -> Result<(), String> {
    let jobs: Vec<_> =
        probes.iter().flat_map(|probe| ["sm_80", "sm_90a"].map(|target| (probe, target))).collect();
    let results = in_parallel(&jobs, |((name, source), target)| {
        let file = format!("simt/{name}");
        let (_, log) = translate(nvrtc, sources, cache, &file, source, target)?;
        refuse_serialised(&[], &log.unwrap_or_default()).map_err(|e| format!("{file} for {target}: {e}"))
    });
    results.into_iter().collect()
}

/// The compiler names the entry point in the same line, as one of `rows` does.
fn refuse_serialised(rows: &[&Kernel], log: &str) -> Result<(), String> {
    let Some(line) = log.lines().find(|line| line.contains("C75")) else { return Ok(()) };
    let kernel = rows.iter().find(|kernel| line.contains(&format!("'{}'", kernel.name)));
    let kernel = kernel.map_or_else(String::new, |kernel| format!("{}: ", place_of(kernel)));
    Err(format!("{kernel}matrix instructions are serialised: {line}"))
}

/// The binary of a unit, and the compiler's log where it is no PTX.
fn translate(
    nvrtc: &Nvrtc,
    sources: &Sources,
    cache: &Cache,
    file: &str,
    source: &str,
    target: &str,
) -> Result<(PathBuf, Option<String>), String> {
    let ptx = target.starts_with("compute");
    let mut options = vec![format!("--gpu-architecture={target}"), "--std=c++17".to_owned()];
    if !ptx {
        options.push("--ptxas-options=-v".to_owned());
    }
    let version = format!("{:?}", nvrtc.version);
    let (flags, whole) = (options.join(" "), sources.inlined(source));
    let parts = ["cubin", &version, file, &whole, &flags];
    let name = format!("kernels/{file}");
    let extension = if ptx { "ptx" } else { "cubin" };
    let path = cache.get(&parts, &[extension, "log"], |path| {
        let compiled = nvrtc.compile((&name, source), &sources.headers, &options, ptx)?;
        let write = |extension: &str, bytes: &[u8]| {
            fs::write(path.with_extension(extension), bytes).map_err(|e| format!("{}: {e}", path.display()))
        };
        write("log", compiled.log.as_bytes())?;
        write(extension, &compiled.binary)
    })?;
    let log = fs::read_to_string(path.with_extension("log")).map_err(|e| e.to_string())?;
    Ok((path.with_extension(extension), (!ptx).then_some(log)))
}

/// Reads `ptxas -v`.
fn resources(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Resources { entry, registers: 0, shared_bytes: 0, spill_bytes: 0, local_bytes: 0 });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("spill stores") {
            // One line for the entry point and one for every function that it calls.
            last.local_bytes += number_before(line, " bytes stack frame");
            last.spill_bytes +=
                number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        }
        if line.contains("Used ") {
            last.registers = number_before(line, " registers");
            last.shared_bytes = number_before(line, " bytes smem");
        }
    }
    found
}

fn number_before(line: &str, words: &str) -> u32 {
    let Some(end) = line.find(words) else { return 0 };
    let digits = line[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    line[digits..end].parse().unwrap_or(0)
}

/// What the rows of one file take, by the compiler's log. Refuses serialised matrix instructions, spills, and more
/// registers than a row allows.
pub fn accept<'a>(rows: impl Iterator<Item = &'a Kernel>, log: &str) -> Result<Vec<Resources>, String> {
    let (found, rows) = (resources(log), rows.collect::<Vec<_>>());
    refuse_serialised(&rows, log)?;
    for kernel in rows {
        let place = || place_of(kernel);
        let Some(used) = found.iter().find(|used| used.entry == kernel.name) else {
            return Err(format!("{}: the compiler's log does not speak of it", place()));
        };
        if used.spill_bytes > 0 {
            return Err(format!("{}: {} bytes of registers are spilled", place(), used.spill_bytes));
        }
        // The general forms may: sine and cosine of large angles take a table.
        if used.local_bytes > 0 && kernel.shared_bytes > 0 {
            return Err(format!("{}: {} bytes of local memory", place(), used.local_bytes));
        }
        if used.registers > kernel.registers {
            let (used, budget) = (used.registers, kernel.registers);
            return Err(format!("{}: {used} registers, its row in the manifest allows {budget}", place()));
        }
    }
    Ok(found)
}

/// The kernel, and the file and line where its function stands.
fn place_of(kernel: &Kernel) -> String {
    let path = format!("kernels/{}", kernel.file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let is_definition = |line: &str| line.contains(&format!("void {}(", kernel.function));
    let line = text.lines().position(is_definition).map_or(1, |i| i + 1);
    format!("kernel {} ({path}:{line})", kernel.name)
}
