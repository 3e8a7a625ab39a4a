//! The two floating-point types that the CPU backend computes in.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` for running, `f64` for checking gradients. The arithmetic is IEEE and never contracted, so
/// a formula gives the same bits whatever the machine.
pub trait Real:
    Copy
    + Debug
    + Display
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
{
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    fn is_finite(self) -> bool;

    fn from_f32(value: f32) -> Self {
        Self::from_f64(f64::from(value))
    }

    fn to_f32(self) -> f32 {
        self.to_f64() as f32
    }

    fn from_usize(value: usize) -> Self {
        Self::from_f64(value as f64)
    }

    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

macro_rules! real {
    ($t:ty, $exp:path, $erf:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = <$t>::INFINITY;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            fn tanh(self) -> Self {
                <$t>::tanh(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
        }
    };
}

real!(f32, exp_f32, erf_f32);
real!(f64, f64::exp, libm::erf);

/// e^x in f32 within 2 ulp, branch-free so that loops over it become vector code.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody & Waite's split of ln 2 in two constants), e^r by its
/// Taylor polynomial of degree 7, 2^n through the exponent bits in two halves so that subnormal
/// results are rounded once.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the high part of ln 2 is exact in f32 and written out")]
fn exp_f32(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Beyond these the result is 0 or infinite; NaN stays NaN.
    let clamped = x.clamp(-104.0, 89.0);
    let n = round_to_even(clamped * std::f32::consts::LOG2_E);
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    // A NaN becomes 0 in the cast and stays NaN in p.
    let n = n as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// Round to nearest for |x| < 2^22, by pushing the fraction out of the mantissa.
#[inline(always)]
fn round_to_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + SHIFT) - SHIFT
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// erf in f32 within 4e-7 absolute: the Maclaurin series where |x| is small (so that the relative
/// error stays small near zero), else 1 - exp(-x^2) times a Chebyshev fit of erfcx.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the coefficients stand as they are published")]
fn erf_f32(x: f32) -> f32 {
    let a = x.abs();
    // |x| < 0.84375: odd series, nine terms.
    let y = x * x;
    let series = x
        * (std::f32::consts::FRAC_2_SQRT_PI
            + y * (-0.376_126_4
                + y * (0.112_837_92
                    + y * (-0.026_866_17
                        + y * (5.223_978e-3
                            + y * (-8.548_327e-4
                                + y * (1.205_533e-4 + y * (-1.492_565e-5 + y * 1.646_211e-6))))))));
    // Otherwise Numerical Recipes' erfcc Chebyshev fit, relative error 1.2e-7.
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = t
        * (1.000_023_7
            + t * (0.374_091_96
                + t * (0.096_784_18
                    + t * (-0.186_288_06
                        + t * (0.278_868_07
                            + t * (-1.135_203_98
                                + t * (1.488_515_87 + t * (-0.822_152_23 + t * 0.170_872_77))))))));
    let tail = 1.0 - t * exp_f32(-a * a - 1.265_512_23 + poly);
    let tail = if x < 0.0 { -tail } else { tail };
    if a < 0.84375 { series } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_f64_one() {
        for i in -200_000..177_400 {
            let x = i as f32 * 5e-4;
            let want = f64::from(x).exp();
            let got = f64::from(exp_f32(x));
            let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
            assert!((got - want).abs() <= 2.0 * ulp, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp_f32(-200.0), 0.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(100.0), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(exp_f32(0.0), 1.0);
    }

    #[test]
    fn erf_is_within_four_e_minus_seven() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let want = libm::erf(f64::from(x));
            let got = f64::from(erf_f32(x));
            assert!((got - want).abs() <= 4e-7, "erf({x}) = {got}, not {want}");
        }
        assert!(erf_f32(f32::NAN).is_nan());
    }
}
