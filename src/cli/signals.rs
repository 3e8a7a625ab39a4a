//! Ctrl-C and its relatives: the first one asks the run to stop, the second one ends the process.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::backend::Stop;
use crate::error::{Error, Result};

/// Listens from now on.
pub fn listen() -> Result<Stop> {
    let stop = Stop::default();
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| Error::io("listen for", "signals", error))?;
    let asked = stop.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let terminate = signal == SIGTERM;
            if asked.ask(terminate) {
                std::process::exit(if terminate { 143 } else { 130 });
            }
        }
    });
    Ok(stop)
}
