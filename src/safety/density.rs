//! From the cosine scores of one image to p_h and the derivative of log p_h.
//!
//! The scores are cosines between the image and each concept, taken as densities of harm. `p_h` reduces them
//! to one number, and guidance descends log p_h; the gate looks at the scores alone
//! ([`crate::ir::Op::ClipCosine`]). Cosines may be zero or negative, where a logarithm has no meaning: there the
//! derivative is that of the largest score, so that an open gate never does nothing.

use std::str::FromStr;

pub use crate::ir::Reduce;
use crate::{Error, Result};

/// A reduced p_h (log-mean) or a selected score (sum-log) at or below this has no usable logarithm.
pub const FLOOR: f64 = 1e-6;

impl Reduce {
    pub const fn name(self) -> &'static str {
        match self {
            Self::LogMean => "log-mean",
            Self::SumLog => "sum-log",
        }
    }
}

impl FromStr for Reduce {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "log-mean" => Ok(Self::LogMean),
            "sum-log" => Ok(Self::SumLog),
            _ => Err(Error::usage("--reduce", format!("expected `log-mean` or `sum-log`, found `{word}`"))),
        }
    }
}

/// p_h of one image and how log p_h changes with each score.
#[derive(Clone, Debug, PartialEq)]
pub struct Density {
    /// The reduced scores before any floor; NaN where `fault` is set.
    pub p_h: f64,
    /// d log p_h / d s_k; zero for scores that were not selected, all zero where `fault` is set.
    pub dscores: Vec<f64>,
    /// The derivative is that of the largest score alone, for log p_h has none.
    pub fallback: bool,
    /// There are no scores or one is not finite: nothing made from them may be shown.
    pub fault: bool,
}

/// Reduces the `top_k` largest scores (all of them where `None`); of equal ones the earlier is larger.
pub fn density(scores: &[f64], reduce: Reduce, top_k: Option<usize>) -> Density {
    let mut dscores = vec![0.0; scores.len()];
    if scores.is_empty() || scores.iter().any(|s| !s.is_finite()) {
        return Density { p_h: f64::NAN, dscores, fallback: false, fault: true };
    }
    let mut largest_first: Vec<usize> = (0..scores.len()).collect();
    largest_first.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let k = top_k.unwrap_or(scores.len()).clamp(1, scores.len());
    let (largest, selected) = (largest_first[0], &largest_first[..k]);

    let values = selected.iter().map(|&i| scores[i]);
    let (p_h, usable) = match reduce {
        Reduce::LogMean => {
            let mean = values.sum::<f64>() / k as f64;
            (mean, mean > FLOOR)
        }
        Reduce::SumLog => (values.clone().product(), values.clone().all(|s| s > FLOOR)),
    };
    if usable {
        for &i in selected {
            dscores[i] = match reduce {
                Reduce::LogMean => 1.0 / (k as f64 * p_h),
                Reduce::SumLog => 1.0 / scores[i],
            };
        }
    } else {
        let s = scores[largest];
        dscores[largest] = if s > 0.0 { 1.0 / s.max(FLOOR) } else { 1.0 };
    }
    Density { p_h, dscores, fallback: !usable, fault: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::compare;

    fn log_p(scores: &[f64], reduce: Reduce, k: usize) -> f64 {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        match reduce {
            Reduce::LogMean => (sorted[..k].iter().sum::<f64>() / k as f64).ln(),
            Reduce::SumLog => sorted[..k].iter().map(|s| s.ln()).sum(),
        }
    }

    #[test]
    fn the_derivative_is_the_finite_difference_of_log_p() {
        let scores = [0.21, 0.33, 0.05, 0.27];
        for reduce in [Reduce::LogMean, Reduce::SumLog] {
            for k in 1..=4 {
                let got = density(&scores, reduce, Some(k));
                let want: Vec<f64> = (0..scores.len())
                    .map(|i| {
                        let moved = |by: f64| {
                            let mut moved = scores;
                            moved[i] += by;
                            log_p(&moved, reduce, k)
                        };
                        (moved(1e-6) - moved(-1e-6)) / 2e-6
                    })
                    .collect();
                let difference = compare(&got.dscores, &want);
                assert!(difference.rel_l2 <= 1e-8, "{reduce:?} {k}: {difference:?}");
                assert!((got.p_h.ln() - log_p(&scores, reduce, k)).abs() <= 1e-12);
                assert!(!got.fallback && !got.fault);
            }
        }
    }

    #[test]
    fn of_equal_scores_the_earlier_is_selected() {
        let got = density(&[0.1, 0.2, 0.2, 0.2], Reduce::SumLog, Some(2));
        assert_eq!(got.dscores, [0.0, 5.0, 5.0, 0.0]);
    }

    #[test]
    fn where_the_logarithm_has_no_meaning_the_largest_score_steers() {
        let mean = density(&[-0.5, 0.25, -0.1], Reduce::LogMean, None);
        assert_eq!((mean.dscores, mean.fallback), (vec![0.0, 4.0, 0.0], true));
        let sum = density(&[0.25, 0.0, 0.5], Reduce::SumLog, None);
        assert_eq!((sum.dscores, sum.fallback), (vec![0.0, 0.0, 2.0], true));
        let negative = density(&[-0.2, -0.1], Reduce::LogMean, None);
        assert_eq!((negative.dscores, negative.fallback), (vec![0.0, 1.0], true));
        let tiny = density(&[f64::MIN_POSITIVE / 8.0], Reduce::LogMean, None);
        assert_eq!((tiny.dscores, tiny.fallback), (vec![1e6], true));
    }

    #[test]
    fn a_score_that_is_no_number_is_a_fault() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let got = density(&[0.1, bad], Reduce::LogMean, Some(1));
            assert!(got.fault && got.p_h.is_nan() && got.dscores == [0.0, 0.0]);
        }
        assert!(density(&[], Reduce::SumLog, None).fault);
    }
}
