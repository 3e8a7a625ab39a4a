//! How far one array is from another, in a way that NaN can never pass.

use super::Real;

/// Distances between an array and a reference of the same length.
///
/// If either array holds a NaN, or they hold different infinities, every figure is infinite; so
/// `difference.rel_l2 <= bound` is false as it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// |a - b| / |b| in the Euclidean norm; the plain |a - b| where b is zero.
    pub rel_l2: f64,
    /// 1 - 2 <a, b> / (<a, a> + <b, b>): 0 for equal arrays, sensitive to scale and direction.
    pub dissimilarity: f64,
    /// Where `max_abs` occurs.
    pub worst: usize,
}

/// Compares `got` with the reference `want`.
///
/// # Panics
/// If the lengths differ: then there is nothing to compare.
pub fn compare<A: Real, B: Real>(got: &[A], want: &[B]) -> Difference {
    assert_eq!(got.len(), want.len(), "arrays to compare have equal lengths");
    let mut difference = Difference { max_abs: 0.0, rel_l2: 0.0, dissimilarity: 0.0, worst: 0 };
    let (mut diff2, mut got2, mut want2, mut dot) = (0.0, 0.0, 0.0, 0.0);
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        let (a, b) = (a.to_f64(), b.to_f64());
        let diff = if a == b { 0.0 } else { (a - b).abs() };
        if !diff.is_finite() || a.is_nan() {
            let infinite = f64::INFINITY;
            return Difference { max_abs: infinite, rel_l2: infinite, dissimilarity: infinite, worst: i };
        }
        if diff > difference.max_abs {
            difference.max_abs = diff;
            difference.worst = i;
        }
        if a.is_finite() {
            diff2 += diff * diff;
            got2 += a * a;
            want2 += b * b;
            dot += a * b;
        }
    }
    difference.rel_l2 = if want2 > 0.0 { (diff2 / want2).sqrt() } else { diff2.sqrt() };
    difference.dissimilarity = if got2 + want2 > 0.0 { 1.0 - 2.0 * dot / (got2 + want2) } else { 0.0 };
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_arrays_differ_by_nothing() {
        let d = compare(&[1.0f32, -2.0, f32::INFINITY], &[1.0f64, -2.0, f64::INFINITY]);
        assert_eq!((d.max_abs, d.rel_l2), (0.0, 0.0));
    }

    #[test]
    fn nan_never_passes() {
        for (a, b) in [(f32::NAN, 0.0), (0.0, f32::NAN), (f32::NAN, f32::NAN), (f32::INFINITY, 1.0)] {
            let d = compare(&[1.0, a], &[1.0, b]);
            assert!(d.max_abs == f64::INFINITY && d.rel_l2 == f64::INFINITY && d.worst == 1);
        }
    }

    #[test]
    fn the_figures_are_the_usual_ones() {
        let d = compare(&[3.0f32, 4.0], &[3.0f32, 3.0]);
        assert_eq!((d.max_abs, d.worst), (1.0, 1));
        assert!((d.rel_l2 - 1.0 / 18f64.sqrt()).abs() < 1e-12);
    }
}
