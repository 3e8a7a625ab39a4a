//! Extents of a tensor, outermost first.

use std::fmt;
use std::ops::Deref;

/// The extents of a tensor, outermost first; the innermost is contiguous.
///
/// Images are `[n, h, w, c]`, sequences `[n, t, d]`, filters `[o, r, s, c]`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Number of elements; `None` where it does not fit a `usize`.
    pub fn checked_count(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent))
    }

    /// Number of elements of a shape that was checked when it was made.
    pub fn count(&self) -> usize {
        self.0.iter().product()
    }

    /// The innermost extent: channels of an image, width of a sequence.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Number of rows when the tensor is seen as a matrix with `last()` columns.
    pub fn rows(&self) -> usize {
        self.0.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The same shape with another extent in place of the outermost one.
    pub fn with_first(&self, first: usize) -> Self {
        let mut extents = self.0.clone();
        extents[0] = first;
        Self(extents)
    }

    /// The same shape with another extent in place of the innermost one.
    pub fn with_last(&self, last: usize) -> Self {
        let mut extents = self.0.clone();
        *extents.last_mut().expect("a shape with an innermost extent") = last;
        Self(extents)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(extents: &[usize]) -> Self {
        Self(extents.to_vec())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        Self(extents.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(extents: Vec<usize>) -> Self {
        Self(extents)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
