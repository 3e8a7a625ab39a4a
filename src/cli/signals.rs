//! Ctrl-C and its relatives: the first one asks the run to stop, the second one ends the process.
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
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ]);
    let mut signals = signals.map_err(|error| Error::io("listen for", "signals", error))?;
    let asked = stop.clone();
    std::thread::spawn(move || {
        for signal in signals.forever().filter(|&signal| signal != SIGXFSZ) {
            let terminate = signal == SIGTERM;
            if asked.ask(terminate) {
                std::process::exit(if terminate { 143 } else { 130 });
            }
        }
    });
    Ok(stop)
}
