//! The program as a child process in a directory of its own, and what it said.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// What a finished process left behind.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// # Panics
    /// If the program spoke of a mistake of its own: that is never right, whatever it was asked.
    pub fn new(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let all = format!("{stderr}{}", String::from_utf8_lossy(&output.stdout));
        assert!(!all.contains("internal error") && !all.contains("panicked"), "{all}");
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// Checks the exit status and that every part is on stderr.
    #[track_caller]
    pub fn says(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in: {}", self.stderr);
        }
        self
    }

    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text on stdout")
    }

    /// The lines of stdout, each a JSON object.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// A directory to run in.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("written");
    }

    /// Names of all files and directories in `folder`, hidden ones too.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("readable");
        let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("plain");
        let mut names: Vec<_> = entries.map(|entry| name(entry.expect("readable"))).collect();
        names.sort();
        names
    }

    /// The program, not started. Without a stdin, so that nothing can wait for one.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unguide"));
        command.args(args).current_dir(self.0.path()).env_remove("UNGUIDE_LOG").stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::new(self.command(args.iter().copied()).output().expect("started"))
    }

    /// `generate` with the flags of a line, and short defaults for those it does not name.
    pub fn draw(&self, line: &str) -> Ran {
        self.run(&full(&line.split_whitespace().collect::<Vec<_>>()))
    }

    /// The same for values with spaces in them.
    pub fn draw_with(&self, args: &[&str]) -> Ran {
        self.run(&full(args))
    }

    /// The same through a line of shell, in which `"$@"` is the program and its flags.
    pub fn shell(&self, script: &str, line: &str) -> Ran {
        Ran::new(self.shell_command(script, line).output().expect("a shell"))
    }

    fn shell_command(&self, script: &str, line: &str) -> Command {
        let args: Vec<_> = line.split_whitespace().collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_unguide")]).args(full(&args));
        shell.current_dir(self.0.path()).stdin(Stdio::null());
        shell
    }

    /// The same with a text on stdin.
    pub fn draw_from(&self, stdin: &[u8], line: &str) -> Ran {
        let args: Vec<_> = line.split_whitespace().collect();
        let mut command = self.command(full(&args));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        // A program that has read enough closes its end.
        let _ = child.stdin.take().expect("piped").write_all(stdin);
        Ran::new(child.wait_with_output().expect("finished"))
    }

    /// Starts the program, sends the signals once stderr has said `cue`, and waits.
    pub fn interrupt(&self, line: &str, cue: &str, signals: &[&str]) -> Ran {
        self.draw_disturbed(line, cue, |process| send(process, signals))
    }

    /// The same through a line of shell that becomes the program.
    pub fn interrupt_script(&self, script: &str, line: &str, cue: &str, signals: &[&str]) -> Ran {
        disturbed(self.shell_command(script, line), cue, |process| send(process, signals))
    }

    /// The same for any disturbance of the process with that number.
    pub fn draw_disturbed(&self, line: &str, cue: &str, disturb: impl FnOnce(u32)) -> Ran {
        let args: Vec<_> = line.split_whitespace().collect();
        disturbed(self.command(full(&args)), cue, disturb)
    }

    /// Width, height and pixels of a PNG.
    #[track_caller]
    pub fn pixels(&self, name: &str) -> (u32, u32, Vec<u8>) {
        decode(&fs::read(self.path(name)).expect(name))
    }

    /// A copy of a small model of the test data, to be broken.
    pub fn copy_model(&self, name: &str, to: &str) -> PathBuf {
        let to = self.path(to);
        for part in ["text_encoder", "tokenizer", "unet", "vae", "scheduler", "clip"] {
            fs::create_dir_all(to.join(part)).expect("made");
            for entry in fs::read_dir(golden(name).join(part)).expect("readable") {
                let entry = entry.expect("readable");
                fs::copy(entry.path(), to.join(part).join(entry.file_name())).expect("copied");
            }
        }
        fs::copy(golden(name).join("model_index.json"), to.join("model_index.json")).expect("copied");
        to
    }
}

fn send(process: u32, signals: &[&str]) {
    for signal in signals {
        let sent = Command::new("kill").arg(signal).arg(process.to_string()).status();
        assert!(sent.expect("kill").success());
    }
}

/// Starts a program, disturbs it once stderr has said `cue` (at once if there is none), and waits: not for long.
pub fn disturbed(mut command: Command, cue: &str, disturb: impl FnOnce(u32)) -> Ran {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let mut pipe = child.stderr.take().expect("piped");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(cue) {
        let mut piece = [0; 256];
        let n = pipe.read(&mut piece).expect("readable");
        assert!(n > 0, "ended without saying `{cue}`: {}", String::from_utf8_lossy(&said));
        said.extend(&piece[..n]);
    }
    disturb(child.id());
    let disturbed = Instant::now();
    pipe.read_to_end(&mut said).expect("readable");
    let status = child.wait().expect("finished");
    assert!(disturbed.elapsed() < Duration::from_secs(20), "it took {:?} to stop", disturbed.elapsed());
    Ran::new(Output { status, stdout: Vec::new(), stderr: said })
}

/// `generate` with `args`, plus a prompt, a number of steps and an output where they name none.
fn full<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let has = |names: &[&str]| args.iter().any(|arg| names.contains(arg));
    let mut all = vec!["generate"];
    if !has(&["-p", "--prompt", "--prompt-file", "--from-file"]) {
        all.extend(["-p", "a battlefield"]);
    }
    if !has(&["--steps", "--num-inference-steps"]) {
        all.extend(["--steps", "2"]);
    }
    if !has(&["-o", "--output", "--outdir", "--final-image"]) {
        all.extend(["-o", "out.png"]);
    }
    all.extend(args);
    all
}

/// A directory of the test data.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[track_caller]
pub fn decode(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("whole");
    (info.width, info.height, pixels)
}

/// Type, shape and bytes of the tensors of a file.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let owned = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("sizes agree"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("written");
}

/// The bytes of `count` copies of a number.
pub fn filled(value: f32, count: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(count)
}
