//! How strong the guidance is at which step: a factor of gamma, and a window outside of which nothing runs.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::weights::read_user_text;
use crate::{Error, Result};

/// What gamma is multiplied by at step `i` of `n` (0 is the first and noisiest). No form but a table reaches
/// zero: an open gate never does nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GammaSchedule {
    /// 1 at every step.
    #[default]
    Constant,
    /// `(n - i) / n`: from 1 down to 1/n.
    Linear,
    /// `(1 + cos(pi i / n)) / 2`: from 1 down, slowly at both ends.
    Cosine,
    /// One factor a step.
    Table(Vec<f64>),
}

/// A table of more factors than this is no table of steps.
const MAX_TABLE: usize = 100_000;
const MAX_FILE_BYTES: u64 = 4 << 20;

impl GammaSchedule {
    /// `constant`, `linear`, `cosine`, or the name of a text file with one number a line; empty lines and
    /// those that start with `#` do not count.
    pub fn resolve(word: &str) -> Result<Self> {
        match word {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ if Path::new(word).exists() => Self::read(Path::new(word)),
            _ => {
                let problem = format!("`{word}` is neither a file nor one of constant, linear, cosine");
                Err(Error::usage("--gamma-schedule", problem))
            }
        }
    }

    /// The factors of a run of `steps` steps; a table must have as many.
    pub fn factors(&self, steps: usize) -> Result<Vec<f64>> {
        let part = |i: usize| i as f64 / steps as f64;
        match self {
            Self::Constant => Ok(vec![1.0; steps]),
            Self::Linear => Ok((0..steps).map(|i| 1.0 - part(i)).collect()),
            Self::Cosine => {
                Ok((0..steps).map(|i| 0.5 + 0.5 * libm::cos(std::f64::consts::PI * part(i))).collect())
            }
            Self::Table(factors) if factors.len() == steps => Ok(factors.clone()),
            Self::Table(factors) => {
                let problem = format!("expected {steps} numbers, one a step, found {}", factors.len());
                Err(Error::usage("--gamma-schedule", problem))
            }
        }
    }

    /// What is wrong with a table's numbers, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        let Self::Table(factors) = self else { return None };
        if factors.is_empty() || factors.len() > MAX_TABLE {
            return Some(format!("expected 1 to {MAX_TABLE} numbers, found {}", factors.len()));
        }
        let bad = factors.iter().position(|&factor| !is_strength(factor))?;
        Some(format!("number {} is {}, expected a finite number >= 0", bad + 1, factors[bad]))
    }

    fn read(path: &Path) -> Result<Self> {
        let text = read_user_text(path, MAX_FILE_BYTES)?;
        let mut factors = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let factor = line.parse().map_err(|_| {
                let found: String = line.chars().take(40).collect();
                Error::input(path, format!("line {}: expected a number, found `{found}`", i + 1))
            })?;
            factors.push(factor);
        }
        let table = Self::Table(factors);
        table.problem().map_or(Ok(table), |problem| Err(Error::input(path, problem)))
    }
}

impl fmt::Display for GammaSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Linear => f.write_str("linear"),
            Self::Cosine => f.write_str("cosine"),
            Self::Table(factors) => write!(f, "table of {}", factors.len()),
        }
    }
}

/// The steps that are guided, the first one (the noisiest) being 0: `A..B`, from the A-th up to and without
/// the B-th, or `A%..B%` of the run, whatever its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GuideWindow {
    Steps(Range<usize>),
    Percent(Range<usize>),
}

impl GuideWindow {
    /// The steps of a run of `steps` steps. A share is rounded outwards, so that no window is empty.
    pub fn of(&self, steps: usize) -> Range<usize> {
        match self {
            Self::Steps(range) => range.clone(),
            Self::Percent(share) => share.start * steps / 100..(share.end * steps).div_ceil(100),
        }
    }

    /// Checks that the window lies within a run of `steps` steps.
    pub fn check(&self, steps: usize) -> Result<()> {
        if self.of(steps).end <= steps {
            return Ok(());
        }
        Err(Error::usage("--guide-steps", format!("`{self}` ends after the last of {steps} steps")))
    }
}

impl FromStr for GuideWindow {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bounds = text.split_once("..");
        let numbers =
            |a: &str, b: &str| Some(step_index(a)?..step_index(b)?).filter(|range| range.start < range.end);
        let percent = bounds.and_then(|(a, b)| numbers(a.strip_suffix('%')?, b.strip_suffix('%')?));
        let steps = bounds.and_then(|(a, b)| numbers(a, b));
        let window = match (steps, percent.filter(|share| share.end <= 100)) {
            (Some(steps), _) => Some(Self::Steps(steps)),
            (None, percent) => percent.map(Self::Percent),
        };
        window.ok_or_else(|| {
            let problem = format!(
                "expected `A..B` with step numbers A < B (0 is the first), or `A%..B%` of the run, found `{text}`"
            );
            Error::usage("--guide-steps", problem)
        })
    }
}

impl TryFrom<String> for GuideWindow {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<GuideWindow> for String {
    fn from(window: GuideWindow) -> Self {
        window.to_string()
    }
}

impl fmt::Display for GuideWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{}..{}", steps.start, steps.end),
            Self::Percent(share) => write!(f, "{}%..{}%", share.start, share.end),
        }
    }
}

/// Digits only: `parse` alone would take a leading plus sign.
fn step_index(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Whether a number can scale a gradient: finite and not negative.
pub(super) fn is_strength(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(bytes).expect("written");
        file
    }

    #[test]
    fn every_form_starts_at_one_and_stays_above_zero() {
        for word in ["constant", "linear", "cosine"] {
            let factors =
                GammaSchedule::resolve(word).expect("a known word").factors(50).expect("50 factors");
            assert_eq!((factors.len(), factors[0]), (50, 1.0));
            assert!(factors.windows(2).all(|pair| pair[0] >= pair[1] && pair[1] > 0.0), "{word}");
        }
        assert_eq!(GammaSchedule::Linear.factors(4).expect("4 factors"), [1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn a_table_has_one_number_a_step() {
        let file = file(b"\xef\xbb\xbf# from early to late\r\n1\r\n\r\n 0.5 \r\n0\r\n");
        let table = GammaSchedule::resolve(file.path().to_str().expect("plain")).expect("a table");
        assert_eq!(table.factors(3).expect("3 factors"), [1.0, 0.5, 0.0]);
        assert_eq!(table.factors(4).expect_err("one too few").exit_code(), 2);
    }

    #[test]
    fn a_bad_table_is_refused_with_the_line() {
        for (bytes, part) in [
            (&b"1\nhalf\n"[..], "line 2: expected a number, found `half`"),
            (b"1\nNaN", "number 2 is NaN"),
            (b"-1", "number 1 is -1"),
            (b"1e999", "number 1 is inf"),
            (b"# nothing\n", "expected 1 to"),
            (b"1\n\xff", "not UTF-8 text (byte 2)"),
        ] {
            let file = file(bytes);
            let error = GammaSchedule::resolve(file.path().to_str().expect("plain")).expect_err("refused");
            assert!(error.to_string().contains(part) && error.exit_code() == 3, "{error}");
        }
        assert_eq!(GammaSchedule::resolve("no/such/file").expect_err("missing").exit_code(), 2);
    }

    #[test]
    fn a_share_of_the_run_is_never_empty() {
        let window: GuideWindow = "20%..60%".parse().expect("a window");
        assert_eq!([50, 7, 1].map(|steps| window.of(steps)), [10..30, 1..5, 0..1]);
        assert!([1, 7, 50].iter().all(|&steps| window.check(steps).is_ok()));
        for text in ["20%..101%", "20%..20%", "20..60%", "20%..60", "%..60%", "0.2%..60%"] {
            assert_eq!(text.parse::<GuideWindow>().expect_err(text).exit_code(), 2);
        }
    }

    #[test]
    fn a_window_is_half_open_and_inside_the_run() {
        let window: GuideWindow = "2..5".parse().expect("a window");
        assert_eq!(window.of(9), 2..5);
        assert!(window.check(5).is_ok());
        assert_eq!(window.check(4).expect_err("too short a run").exit_code(), 2);
        for bad in [
            "",
            "..",
            "5..2",
            "3..3",
            "1..",
            "..4",
            "-1..4",
            "+1..4",
            "1...4",
            "a..b",
            "0..99999999999999999999",
        ] {
            assert!(bad.parse::<GuideWindow>().is_err(), "{bad}");
        }
    }
}
