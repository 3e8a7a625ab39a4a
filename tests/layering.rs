//! The rules of the source tree, held by reading it: who may use whom, where `unsafe` may stand, how long
//! a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What every module may use besides itself. `error` is open to all.
///
/// A module of `src/` that is not listed fails the test: a new one gets a row here.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &[]),
    ("ir", &["tensor"]),
    ("autodiff", &["ir", "tensor"]),
    ("passes", &["ir", "tensor"]),
    ("plan", &["ir", "tensor"]),
    ("weights", &["tensor"]),
    ("models", &["ir", "tensor"]),
    ("backend", &["plan", "tensor", "weights"]),
    // What the system has left, for backends that compute on its processors.
    ("room", &[]),
    // `safety` holds the one formula of the density; the fused operation calls it instead of repeating it.
    ("cpu", &["backend", "plan", "ir", "tensor", "safety", "room"]),
    ("cuda", &["launch", "backend", "passes", "plan", "ir", "tensor", "manifest"]),
    // The build script includes it.
    ("manifest", &[]),
    // `weights` knows how filters are packed, and no file of a model is seen here.
    ("launch", &["plan", "ir", "tensor", "manifest", "weights"]),
    ("simt", &["launch", "backend", "weights", "passes", "plan", "ir", "tensor", "manifest", "room"]),
    ("sampler", &["ir", "tensor"]),
    // Lists and profiles are files of the user: found, bounded and read like those of a model.
    ("safety", &["ir", "tensor", "weights"]),
    // Tokenizers are files of a model: found, bounded and read like its weights.
    ("text", &["weights"]),
    ("image", &["tensor"]),
    (
        "pipeline",
        &[
            "autodiff", "backend", "image", "ir", "models", "passes", "plan", "safety", "sampler", "tensor",
            "text", "weights",
        ],
    ),
    (
        "bench",
        &[
            "backend", "cpu", "cuda", "ir", "launch", "manifest", "models", "passes", "pipeline", "plan",
            "simt", "tensor",
        ],
    ),
    // The command line knows everything, and nothing knows it.
    (
        "cli",
        &[
            "autodiff", "backend", "bench", "cpu", "cuda", "image", "ir", "launch", "manifest", "models",
            "passes", "pipeline", "plan", "safety", "sampler", "simt", "tensor", "text", "weights",
        ],
    ),
];

/// Libraries that have a home: nobody else names them.
const HOMES: &[(&str, &[&str])] = &[
    ("clap", &["cli", "main"]),
    ("cudarc", &["cuda"]),
    ("gemm", &["cpu"]),
    ("indicatif", &["cli"]),
    ("memmap2", &["weights"]),
    ("png", &["image"]),
    ("pulp", &["cpu"]),
    // The command line sets the number of threads, the CPU backend uses them.
    ("rayon", &["cpu", "cli"]),
    ("safetensors", &["weights"]),
    ("signal_hook", &["cli", "main", "weights"]),
    ("tokenizers", &["text"]),
];

/// Files with `unsafe`: the memory map and what its signal says, the call of the matrix product, the CUDA driver, and the SIMT runtime.
const UNSAFE: &[&str] = &[
    "src/weights/bytes.rs",
    "src/cpu/gemm.rs",
    "src/cuda/driver.rs",
    "src/cuda/graph.rs",
    "src/cuda/handles.rs",
    "src/cuda/nvrtc.rs",
    "src/cuda/table.rs",
    "src/simt/runtime.rs",
];

/// The file with the demo model's bytes.
const EMBEDS: &str = "src/main.rs";

const MOST_LINES: usize = 600;

#[test]
fn modules_use_only_what_stands_below_them() {
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut found = BTreeSet::new();
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        found.insert(module.clone());
        let Some(allowed) = allowed.get(&*module) else {
            wrong.push(format!("{path}: `{module}` has no row in the table"));
            continue;
        };
        for used in used_modules(&code(&text)) {
            if used != module && used != "error" && !allowed.contains(&&*used) {
                wrong.push(format!("{path}: `{module}` may not use `{used}`"));
            }
        }
    }
    for (module, _) in MAY_USE {
        if !found.contains(*module) {
            wrong.push(format!("`{module}` is in the table but not in src/"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_climbs_to_the_root_but_through_crate() {
    // `super` from the file of a module of the top level would leave it unseen.
    for (path, text) in sources("src") {
        let depth = path.matches('/').count() + usize::from(!path.ends_with("/mod.rs"));
        let code = code(&text);
        let tests = code.find("mod tests").unwrap_or(code.len());
        // The test module of a file lies one level deeper than the file.
        for (part, deeper) in [(&code[..tests], 0), (&code[tests..], 1)] {
            let climbs = "super::".repeat(depth + deeper - 1);
            assert!(depth + deeper < 2 || !part.contains(&climbs), "{path} climbs to the root by `{climbs}`");
        }
    }
}

#[test]
fn libraries_stay_in_their_homes() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let (module, code) = (module_of(&path), code(&text));
        for (library, homes) in HOMES {
            if !homes.contains(&&*module) && names_library(&code, library) {
                wrong.push(format!("{path}: `{library}` belongs to {homes:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_where_it_must_and_says_why_it_is_sound() {
    let mut with = BTreeSet::new();
    for (path, text) in sources("src") {
        let bare = code(&text);
        let lines: Vec<&str> = text.lines().collect();
        for (i, _) in bare.lines().enumerate().filter(|(_, line)| words(line).any(|word| word == "unsafe")) {
            with.insert(path.clone());
            // The argument is the comment right above, attributes aside.
            let above = lines[..i].iter().rev().map(|line| line.trim());
            let mut comment =
                above.skip_while(|line| line.starts_with("#[")).take_while(|l| l.starts_with("//"));
            assert!(comment.any(|line| line.starts_with("// SAFETY: ")), "{path}:{}: no SAFETY line", i + 1);
        }
    }
    let allowed: BTreeSet<String> = UNSAFE.iter().map(|&path| path.to_owned()).collect();
    assert_eq!(with, allowed);
}

#[test]
fn only_main_embeds_files() {
    for (path, text) in sources("src") {
        let embeds = words(&code(&text)).any(|word| word == "include_bytes");
        assert!(!embeds || path == EMBEDS, "{path} embeds a file; only {EMBEDS} does");
    }
}

#[test]
fn no_file_is_longer_than_anyone_reads() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES, "{path} has {lines} lines, at most {MOST_LINES} are meant to be");
    }
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        for place in ["home", "root", "tmp", "Users", "work", "mnt"] {
            let place = format!("/{place}/");
            // What a path starts with: the same word in the middle of a path or an address is something else.
            let starts = |(at, _): (usize, &str)| {
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == '}')
            };
            assert!(!text.match_indices(&place).any(starts), "{path} names a place below {place}");
        }
    }
}

#[test]
fn the_scanner_sees_what_it_is_to_see() {
    let text = r##"
        //! crate::commented
        /* crate::inside /* nested */ crate::still */
        use crate::{error::Result, ir::{self, Op}, tensor::{DType, Shape}};
        use crate::plan::StepState;
        pub(crate) fn f<'a>(x: &'a str) -> crate :: weights :: Weights {
            let quoted = "crate::quoted \" crate::more";
            let raw = r#"crate::raw " crate::raw"#;
            let (a, b, c) = ('"', '\'', b'"');
            models::go::<crate::cpu::Cpu<f32>>(c, crate::Error::new())
        }
    "##;
    let code = code(text);
    let used: Vec<String> = used_modules(&code).into_iter().collect();
    assert_eq!(used, ["cpu", "error", "ir", "plan", "tensor", "weights"]);
    assert_eq!(code.lines().count(), text.lines().count(), "lines keep their numbers");

    assert!(names_library("use rayon::prelude::*;", "rayon"));
    assert!(names_library("let x = png :: Encoder", "png") && names_library("use png;", "png"));
    assert!(!names_library("use super::gemm::{Mat, gemm}; crate::cpu::gemm::gemm()", "gemm"));
    assert!(!names_library("let png = 1; rayons::x()", "png"));
    assert!(words("x unsafe{").any(|word| word == "unsafe"));
    assert!(!words("#[allow(unsafe_code)]").any(|word| word == "unsafe"));
    assert_eq!((module_of("src/cpu/gemm.rs"), module_of("src/text.rs")), ("cpu".into(), "text".into()));
}

/// All Rust files below a folder, by their path in the repository.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = vec![root.join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("below the root").display().to_string();
                sources.push((name.replace('\\', "/"), std::fs::read_to_string(&path).expect("text")));
            }
        }
    }
    assert!(!sources.is_empty());
    sources.sort();
    sources
}

/// The top-level module that a file belongs to.
fn module_of(path: &str) -> String {
    let module = path.split('/').nth(1).expect("a path below src");
    module.trim_end_matches(".rs").to_owned()
}

/// The text without comments and without what stands in quotes; line breaks stay.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match chars[i] {
            '/' if chars.get(i + 1) == Some(&'/') => {
                (i..chars.len()).find(|&j| chars[j] == '\n').unwrap_or(chars.len())
            }
            '/' if chars.get(i + 1) == Some(&'*') => end_of_block(&chars, i),
            '"' => end_of_string(&chars, i),
            'r' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => end_of_raw(&chars, i),
            // A lifetime has no second quote.
            '\'' if chars.get(i + 1) == Some(&'\\') => {
                (i + 3..chars.len()).find(|&j| chars[j] == '\'').map_or(chars.len(), |j| j + 1)
            }
            '\'' if chars.get(i + 2) == Some(&'\'') => i + 3,
            _ => i,
        };
        if end == i {
            out.push(chars[i]);
            i += 1;
        } else {
            out.push(' ');
            out.extend(chars[i..end].iter().filter(|&&c| c == '\n'));
            i = end;
        }
    }
    out
}

fn end_of_block(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The end of a raw string that starts here; `start` itself if none does.
fn end_of_raw(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let closes = |&j: &usize| chars[j] == '"' && (1..=hashes).all(|k| chars.get(j + k) == Some(&'#'));
    (open + 1..chars.len()).find(closes).map_or(chars.len(), |j| j + 1 + hashes)
}

/// Identifiers and keywords.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The top-level modules in paths that start with `crate::`. What the root itself exports is `error`'s.
fn used_modules(code: &str) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut used = BTreeSet::new();
    for (i, _) in tokens.iter().enumerate().filter(|(_, token)| *token == "crate") {
        if tokens.get(i + 1).map(String::as_str) != Some("::") {
            continue;
        }
        match tokens.get(i + 2).map(String::as_str) {
            Some("{") => used.extend(first_names(&tokens[i + 2..])),
            Some(name) => {
                used.insert(name.to_owned());
            }
            None => {}
        }
    }
    for exported in ["Error", "Result"] {
        if used.remove(exported) {
            used.insert("error".into());
        }
    }
    used
}

/// First names of the paths in a brace, `{a::b, c::{d, e}}` being `a` and `c`.
fn first_names(tokens: &[String]) -> Vec<String> {
    let (mut depth, mut names) = (0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            _ => {}
        }
        let starts = depth == 1 && (token == "{" || token == ",");
        names.extend(tokens.get(i + 1).filter(|next| starts && *next != "}").cloned());
    }
    names
}

/// Whether a path starts with the library's name, or a `use` imports it.
fn names_library(code: &str, library: &str) -> bool {
    let tokens = tokens(code);
    // A module of that name is meant where there is one.
    if tokens.windows(2).any(|pair| pair[0] == "mod" && pair[1] == library) {
        return false;
    }
    (0..tokens.len()).filter(|&i| tokens[i] == library).any(|i| {
        let before = i.checked_sub(1).map(|i| tokens[i].as_str());
        let after = tokens.get(i + 1).map(String::as_str);
        before != Some("::") && (after == Some("::") || before == Some("use"))
    })
}

/// Words, `::`, braces and everything else a character each.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let len = match first {
            _ if word > 0 => word,
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        if !first.is_whitespace() {
            tokens.push(rest[..len].to_owned());
        }
        rest = &rest[len..];
    }
    tokens
}
