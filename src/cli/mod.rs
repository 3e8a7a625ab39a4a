//! The command line: parse, run, report.

pub mod args;
mod bench;
mod cold_start;
mod device;
mod doctor;
mod floors;
mod generate;
mod inspect;
mod kernels;
mod latents;
mod launches;
mod memory;
mod progress;
mod record;
mod settings;
mod signals;

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use clap::Parser;
use clap::error::ErrorKind;

use crate::error::{Error, Result};
use crate::weights::EmbeddedFiles;
use args::{Cli, Command};

/// Runs the command of this process and returns its exit status. `demo` is the embedded model.
pub fn main(demo: EmbeddedFiles) -> u8 {
    let started = Instant::now();
    // Reports of panics are one line for the user, not a page.
    std::panic::set_hook(Box::new(|info| say(format!("error: internal error: {info}; please report this"))));
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(bad) = arguments.iter().find(|argument| argument.to_str().is_none()) {
        say(format!("error: argument {bad:?} is not UTF-8"));
        return 2;
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout, complaints to stderr; a closed pipe is nobody's fault.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                _ => 2,
            };
        }
    };
    start_logs(&cli);
    let run = || match &cli.command {
        Command::Generate(args) => generate::run(args, cli.quiet, demo, started),
        Command::Inspect(args) => inspect::run(args, demo),
        Command::Memory(args) => memory::run(args, demo),
        Command::Bench(args) => bench::run(args, demo),
        Command::Doctor(args) => doctor::run(args, demo),
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(())) => 0,
        Ok(Err(Error::Io { source, .. })) if source.kind() == io::ErrorKind::BrokenPipe => 0,
        Ok(Err(error)) => {
            say(format!("error: {error}"));
            error.exit_code()
        }
        Err(_) => 1,
    }
}

/// One line of words on stderr. Where nobody listens (a closed pipe, a full disk) the run goes on.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// One line of data on stdout.
fn print_line(line: impl std::fmt::Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| Error::io("write", "(stdout)", error))
}

fn start_logs(cli: &Cli) {
    use tracing_subscriber::EnvFilter;
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("UNGUIDE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    logs.with_ansi(ansi).with_target(false).without_time().log_internal_errors(false).init();
}
