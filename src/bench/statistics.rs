//! What repeated measurements say: percentiles and how steady they are.

use serde::Serialize;

/// Above this the machine was not quiet.
pub const STEADY: f64 = 0.01;

/// Times of one thing, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    pub runs: usize,
    pub min_us: f64,
    pub mean_us: f64,
    pub median_us: f64,
    pub p90_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// Standard deviation over mean.
    pub variation: f64,
}

impl Times {
    /// `None` without a single finite measurement.
    pub fn of(measured_us: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = measured_us.iter().copied().filter(|t| t.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (&min_us, &max_us) = (sorted.first()?, sorted.last()?);
        let n = sorted.len() as f64;
        let mean_us = sorted.iter().sum::<f64>() / n;
        let squares = sorted.iter().map(|t| (t - mean_us).powi(2)).sum::<f64>();
        let deviation = if sorted.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let at = |share| percentile(&sorted, share);
        Some(Self {
            runs: sorted.len(),
            min_us,
            mean_us,
            median_us: at(0.5),
            p90_us: at(0.9),
            p95_us: at(0.95),
            p99_us: at(0.99),
            max_us,
            variation: if mean_us > 0.0 { deviation / mean_us } else { 0.0 },
        })
    }

    /// A sentence where the spread makes the median doubtful.
    pub fn warning(&self) -> Option<String> {
        (self.variation > STEADY).then(|| {
            format!(
                "times vary by {:.1} % (coefficient of variation, above {:.0} %): lock the clocks or measure longer",
                100.0 * self.variation,
                100.0 * STEADY
            )
        })
    }
}

/// Between two measurements by their distance; `sorted` is not empty.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_measurements() {
        let measured: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        let times = Times::of(&measured).expect("measurements");
        assert_eq!((times.min_us, times.median_us, times.max_us), (1.0, 51.0, 101.0));
        assert_eq!((times.p90_us, times.p95_us, times.p99_us), (91.0, 96.0, 100.0));
        assert_eq!(Times::of(&[1.0, 2.0]).expect("two").median_us, 1.5);
    }

    #[test]
    fn a_spread_beyond_one_per_cent_is_told() {
        let steady = Times::of(&[100.0, 100.5, 99.5]).expect("three");
        assert_eq!(steady.warning(), None);
        let unsteady = Times::of(&[100.0, 120.0, 80.0]).expect("three");
        assert!((unsteady.variation - 0.2).abs() < 1e-12);
        assert!(unsteady.warning().expect("a warning").contains("20.0 %"));
    }

    #[test]
    fn nothing_measured_is_nothing_said() {
        assert_eq!(Times::of(&[]), None);
        assert_eq!(Times::of(&[f64::NAN]), None);
        assert_eq!(Times::of(&[3.0]).expect("one").variation, 0.0);
    }
}
