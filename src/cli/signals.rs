//! Ctrl-C and its relatives: the first one asks the run to stop, the second one ends the process.
//!
//! A signal that whoever started us has the system ignore stays ignored: `nohup` keeps a run alive when its terminal
//! goes, and a script's background job does not hear the Ctrl-C that is meant for the script.
//!
//! A file that grows over the limit of the process raises a signal too, which would end us with half a file
//! left behind; caught, it is an error of the write like a full disk.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::backend::Stop;
use crate::error::{Error, Result};

/// Listens from now on.
pub fn listen() -> Result<Stop> {
    let stop = Stop::default();
    let ignored = ignored();
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let signals = Signals::new(heard.chain([SIGXFSZ]));
    let mut signals = signals.map_err(|error| Error::io("listen for", "signals", error))?;
    let asked = stop.clone();
    std::thread::spawn(move || {
        for signal in signals.forever().filter(|&signal| signal != SIGXFSZ) {
            if asked.ask(signal as u8) {
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(stop)
}

/// The signals that are ignored as we start, signal 1 in the lowest bit; none where the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
