//! The texts of all kernels and what they include, and the units made of them.

use std::fs;
use std::path::Path;

use super::manifest::{KERNELS, Kernel, files};

pub struct Sources {
    /// Name and text of every file that the manifest names.
    pub files: Vec<(String, String)>,
    /// Name and text of everything in `include/`.
    pub headers: Vec<(String, String)>,
}

impl Sources {
    pub fn read(kernels: &Path) -> Result<Self, String> {
        let text = |path: &Path| fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
        let mut found = Vec::new();
        for file in files() {
            found.push((file.to_owned(), text(&kernels.join(file))?));
        }
        let mut headers = Vec::new();
        let folder = kernels.join("include");
        for entry in fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "cuh") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                headers.push((name, text(&path)?));
            }
        }
        headers.sort();
        Ok(Self { files: found, headers })
    }

    /// The text of a file, with the entry points of its rows appended.
    pub fn unit(&self, file: &str, wanted: impl Fn(&Kernel) -> bool) -> String {
        let source = self.files.iter().find(|(name, _)| name == file).map_or("", |(_, text)| text);
        let rows = KERNELS.iter().filter(|kernel| kernel.file == file && wanted(kernel));
        let entries: String = rows.map(Kernel::entry).collect();
        format!("#line 1 \"kernels/{file}\"\n{source}\n#line 1 \"src/manifest.rs\"\n{entries}")
    }

    /// A unit with our headers in place of their includes, each once: all that its binary depends on. Mutants
    /// are made of this text, so that a patch reaches the headers too.
    pub fn inlined(&self, unit: &str) -> String {
        let mut out = String::new();
        // The first line of a unit names its file.
        let (first, rest) = unit.split_once('\n').unwrap_or((unit, ""));
        let name = first.split('"').nth(1).unwrap_or_default();
        out.push_str(&format!("{first}\n"));
        self.expand(rest, name, &mut Vec::new(), &mut out);
        out
    }

    fn expand(&self, text: &str, name: &str, seen: &mut Vec<String>, out: &mut String) {
        for (i, line) in text.lines().enumerate() {
            let included = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            let header = included.and_then(|name| self.headers.iter().find(|(header, _)| header == name));
            match header {
                Some((header, text)) => {
                    if !seen.contains(header) {
                        seen.push(header.clone());
                        let path = format!("kernels/include/{header}");
                        out.push_str(&format!("#line 1 \"{path}\"\n"));
                        self.expand(text, &path, seen, out);
                    }
                    out.push_str(&format!("#line {} \"{name}\"\n", i + 2));
                }
                None if line == "#pragma once" => out.push('\n'),
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
    }
}
