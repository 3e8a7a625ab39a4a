//! How far a run is: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::pipeline::StepReport;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts steps of all images, and how often the guard's gate opened.
pub struct Progress {
    bar: ProgressBar,
    style: Style,
    images: usize,
    steps: usize,
    /// Image steps that were looked at, and those that were steered.
    looked: usize,
    opened: usize,
    done: usize,
    start: Instant,
    last_line: Option<Instant>,
}

enum Style {
    Bar,
    Lines,
    Silent,
}

impl Progress {
    pub fn new(images: usize, steps: usize, quiet: bool) -> Self {
        let style = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (_, true) => Style::Bar,
            (_, false) => Style::Lines,
        };
        let target = match style {
            Style::Bar => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some((images * steps) as u64), target);
        let template = "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left{msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        let (looked, opened, done) = (0, 0, 0);
        Self { bar, style, images, steps, looked, opened, done, start: Instant::now(), last_line: None }
    }

    pub fn step(&mut self, report: &StepReport) {
        self.done += report.images.len();
        if let Some(guard) = &report.guard {
            self.looked += guard.gate.len();
            self.opened += guard.gate.iter().filter(|&&open| open).count();
        }
        self.bar.set_position(self.done as u64);
        self.bar.set_message(self.gate());
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if matches!(self.style, Style::Lines) && (due || self.done == self.images * self.steps) {
            self.last_line = Some(Instant::now());
            let (all, seconds) = (self.images * self.steps, self.start.elapsed().as_secs_f64());
            let speed = self.done as f64 / seconds.max(1e-9);
            say(format!("step {}/{all}, {speed:.2} a second{}", self.done, self.gate()));
        }
    }

    /// There is an image more than was said.
    pub fn one_more(&mut self) {
        self.images += 1;
        self.bar.set_length((self.images * self.steps) as u64);
    }

    /// Says where an image went.
    pub fn image(&self, line: &str) {
        match self.style {
            Style::Bar => self.bar.suspend(|| say(line)),
            Style::Lines => say(line),
            Style::Silent => {}
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn gate(&self) -> String {
        if self.looked == 0 {
            return String::new();
        }
        format!(", gate open at {} of {}", self.opened, self.looked)
    }
}
