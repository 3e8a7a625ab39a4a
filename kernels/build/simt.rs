//! The SIMT layer: the runtime, every kernel twice (as it is, and instrumented), and the mutants of the kernels.
//!
//! Objects are kept by content, like the cubins. Mutants go into an archive of their own, which only their test
//! links.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Cache, in_parallel};
use super::manifest;
use super::mutations::{Mutation, mutations};
use super::sources::Sources;

const RUNTIME: [&str; 7] = ["scheduler", "memory", "checks", "launch", "hopper", "bulk", "cluster"];
/// Kernels for the tests of the layer itself.
const PROBES: [&str; 4] = ["probes.cu", "probes_layouts.cu", "probes_sm90.cu", "probes_cluster.cu"];

/// No contraction: sums are those of the CPU backend. Warnings are the business of NVRTC's build.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O2",
    "-w",
    "-fno-exceptions",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-Ikernels/simt",
    "-Ikernels/include",
];
/// Lines for reports, in the older format: of the newer one some `addr2line` take the wrong file.
const CHECKED: [&str; 3] = ["-g1", "-gdwarf-4", "-fsanitize=thread"];

pub fn build(root: &Path, out: &Path, sources: &Sources, cache: &Cache) -> Result<(), String> {
    let header = |name: &str| read(&root.join("kernels/simt").join(name));
    let tool = Tool::find()?;
    let compiler = Compiler { root, cache, tool: &tool, includes: header("simt.h")? };
    let of_runtime = Compiler { includes: header("simt.h")? + &header("runtime.h")?, ..compiler };
    let mut units: Vec<(String, &str, String)> = Vec::new();
    for name in RUNTIME {
        let text = read(&root.join(format!("kernels/simt/{name}.cpp")))?;
        units.push((name.to_owned(), "runtime", format!("#line 1 \"kernels/simt/{name}.cpp\"\n{text}")));
    }
    for variant in ["fast", "checked"] {
        for (file, _) in &sources.files {
            units.push((
                file.clone(),
                variant,
                unit(variant, &sources.inlined(&sources.unit(file, |_| true))),
            ));
        }
        for (name, text) in probes(root)? {
            units.push((name.to_owned(), variant, unit(variant, &sources.inlined(&text))));
        }
    }
    let objects = in_parallel(&units, |(name, variant, text)| {
        let flags: &[&str] = match *variant {
            "checked" => &CHECKED,
            "runtime" => &["-g1", "-gdwarf-4"],
            _ => &[],
        };
        let compiler = if *variant == "runtime" { &of_runtime } else { &compiler };
        compiler.object(text, flags).map_err(|e| format!("{name} for the SIMT layer: {e}"))
    });
    archive(out, "unguide_simt", true, objects)?;

    let mutations: Vec<&Mutation> = mutations().collect();
    let mutants = in_parallel(&mutations, |mutation| mutant(&compiler, sources, mutation));
    let mut objects = Vec::new();
    for pair in mutants {
        objects.extend(pair?.map(Ok));
    }
    archive(out, "unguide_simt_mutants", false, objects)
}

/// Names and texts of the layer's own kernels.
pub fn probes(root: &Path) -> Result<Vec<(&'static str, String)>, String> {
    let text = |name| read(&root.join("kernels/simt").join(name));
    let probe = |name| text(name).map(|text| (name, format!("#line 1 \"kernels/simt/{name}\"\n{text}")));
    PROBES.into_iter().map(probe).collect()
}

/// All of a kernel has internal linkage, so that its variants live in one program.
fn unit(variant: &str, text: &str) -> String {
    format!("#include \"simt.h\"\n#define SIMT_VARIANT \"{variant}\"\nnamespace {{\n{text}\n}}\n")
}

/// The fast and the checked object of one mutant. A mutation that the compiler undoes is refused.
fn mutant(compiler: &Compiler, sources: &Sources, mutation: &Mutation) -> Result<[PathBuf; 2], String> {
    let wrong = |what: &str| format!("mutation `{}`: {what}", mutation.name);
    let row = manifest::find(mutation.kernel).ok_or_else(|| wrong("there is no such kernel"))?;
    let whole = sources.inlined(&sources.unit(row.file, |kernel| kernel.name == mutation.kernel));
    if whole.matches(mutation.find).count() != 1 {
        return Err(wrong("the text to replace is not there exactly once"));
    }
    let changed = whole.replace(mutation.find, mutation.replace);
    let fast = format!("fast-{}", mutation.name);
    let assembly = |variant: &str, text: &str| {
        let path = compiler.run(("cpp", &unit(variant, text)), &["-S"], "s")?;
        read(&path)
    };
    // The text of the original is the same for all mutants of a row, so it is compiled once.
    let (original, mutant) = (assembly("original", &whole)?, assembly(&fast, &changed)?);
    if original.replace("\"original\"", &format!("\"{fast}\"")) == mutant {
        return Err(wrong("it does not change the object code"));
    }
    let context = |e: String| wrong(&e);
    Ok([
        compiler.run(("s", &mutant), &["-c"], "o").map_err(context)?,
        compiler.object(&unit(&format!("checked-{}", mutation.name), &changed), &CHECKED).map_err(context)?,
    ])
}

/// The C++ compiler, and all that an object depends on of it.
struct Tool {
    compiler: cc::Tool,
    name: String,
}

impl Tool {
    fn find() -> Result<Self, String> {
        let words = |e: String| format!("the feature `simt` needs a C++ compiler: {e}");
        let build = cc::Build::new().cpp(true).warnings(false).debug(false).opt_level(2).try_get_compiler();
        let compiler = build.map_err(|e| words(e.to_string()))?;
        let version = compiler.to_command().arg("--version").output();
        let version = version.map_err(|e| words(format!("{}: {e}", compiler.path().display())))?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        Ok(Self { name: format!("{version} {:?} {:?}", compiler.path(), compiler.args()), compiler })
    }
}

struct Compiler<'a> {
    root: &'a Path,
    cache: &'a Cache,
    tool: &'a Tool,
    /// What an object depends on besides its own text, in which the headers of kernels are spelled out.
    includes: String,
}

impl Compiler<'_> {
    fn object(&self, text: &str, flags: &[&str]) -> Result<PathBuf, String> {
        self.run(("cpp", text), &[flags, &["-c"]].concat(), "o")
    }

    /// Compiles a text of that language; paths in it and in messages are relative to the root of the repository.
    fn run(
        &self,
        (language, text): (&str, &str),
        flags: &[&str],
        extension: &str,
    ) -> Result<PathBuf, String> {
        let all = [&FLAGS[..], flags].concat();
        let options = all.join(" ");
        let path = self.cache.get(
            &["simt", &self.tool.name, &options, text, &self.includes],
            &[extension],
            |path| {
                let source = path.with_extension(format!("in.{language}"));
                fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
                let mut command: Command = self.tool.compiler.to_command();
                command
                    .current_dir(self.root)
                    .args(&all)
                    .arg("-o")
                    .arg(path.with_extension(extension))
                    .arg(&source);
                let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
                // The text stays only while it is of use.
                let _ = fs::remove_file(&source);
                if output.status.success() {
                    return Ok(());
                }
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            },
        )?;
        Ok(path.with_extension(extension))
    }
}

fn archive(out: &Path, name: &str, link: bool, objects: Vec<Result<PathBuf, String>>) -> Result<(), String> {
    let mut build = cc::Build::new();
    build.cpp(true).out_dir(out).cargo_metadata(link).link_lib_modifier("+whole-archive");
    for object in objects {
        build.object(object?);
    }
    build.try_compile(name).map_err(|e| format!("{name}: {e}"))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}
