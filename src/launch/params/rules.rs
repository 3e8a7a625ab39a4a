//! The preconditions of kernels, said field by field. The first one that does not hold is the error.

use std::fmt::Display;

use super::DevicePtr;
use crate::error::Error;
use crate::manifest::Kernel;

/// Collects what does not hold for one launch of one kernel.
pub struct Rules<'a> {
    pub kernel: &'a Kernel,
    pub grid: [u32; 3],
    broken: Option<Error>,
}

impl<'a> Rules<'a> {
    pub fn new(kernel: &'a Kernel, grid: [u32; 3]) -> Self {
        Self { kernel, grid, broken: None }
    }

    /// `field`, found as `found`, must be what `rule` says.
    pub fn holds(&mut self, field: &'static str, found: impl Display, holds: bool, rule: &str) {
        if !holds && self.broken.is_none() {
            let kernel = self.kernel.name.to_owned();
            self.broken =
                Some(Error::Params { kernel, field, rule: rule.to_owned(), found: found.to_string() });
        }
    }

    pub fn at_least(&mut self, field: &'static str, found: impl Into<i64>, least: i64) {
        let found = found.into();
        if found < least {
            self.holds(field, found, false, &format!("at least {least}"));
        }
    }

    pub fn multiple_of(&mut self, field: &'static str, found: impl Into<i64>, unit: i64) {
        let found = found.into();
        if found % unit != 0 {
            self.holds(field, found, false, &format!("a multiple of {unit}"));
        }
    }

    /// An address that the kernel follows without asking.
    pub fn given(&mut self, field: &'static str, address: DevicePtr) {
        self.holds(field, "none", address != DevicePtr::NONE, "an address");
    }

    /// An address for accesses of that many bytes; none is as good as any.
    pub fn aligned(&mut self, field: &'static str, address: DevicePtr, bytes: u64) {
        if !address.0.is_multiple_of(bytes) {
            let rule = format!("aligned to {bytes} bytes");
            self.holds(field, format_args!("{:#x}", address.0), false, &rule);
        }
    }

    /// A grid of exactly so many blocks.
    pub fn blocks(&mut self, wanted: [i64; 3]) {
        let found = self.grid;
        self.holds("grid", format_args!("{found:?}"), found.map(i64::from) == wanted, &format!("{wanted:?}"));
    }

    /// An address that does not go with `what`.
    pub fn absent(&mut self, field: &'static str, address: DevicePtr, what: &str) {
        let rule = format!("none with {what}");
        self.holds(field, format_args!("{:#x}", address.0), address == DevicePtr::NONE, &rule);
    }

    /// Two addresses that make sense together alone.
    pub fn both_or_none(&mut self, a: &'static str, x: DevicePtr, b: &'static str, y: DevicePtr) {
        let same = (x == DevicePtr::NONE) == (y == DevicePtr::NONE);
        self.holds(a, "one without the other", same, &format!("given where `{b}` is"));
    }

    /// Counters of the parts of sums, where there are parts.
    pub fn counters(&mut self, arrived: DevicePtr, sums: DevicePtr) {
        self.both_or_none("arrived", arrived, "sums", sums);
        self.aligned("arrived", arrived, 4);
    }

    /// Elements in all, and of an image.
    pub fn whole_images(&mut self, count: i64, image: i64) {
        self.at_least("image", image, 1);
        self.holds("count", count, count > 0 && count % image.max(1) == 0, "whole images");
    }

    /// Tiles of `tile` that cover an extent.
    pub fn tiles(extent: i32, tile: i64) -> i64 {
        (i64::from(extent.max(1)) + tile - 1) / tile
    }

    /// The extents of what is normalised row by row.
    pub fn rows(&mut self, rows: i64, c: i32, eps: f32) {
        self.at_least("rows", rows, 1);
        self.at_least("c", c, 1);
        self.holds("eps", eps, eps >= 0.0 && eps.is_finite(), "finite and not negative");
    }

    /// The extents of what is normalised group by group.
    pub fn groups(&mut self, n: i32, pixels: i32, c: i32, groups: i32, eps: f32) {
        for (field, extent) in [("n", n), ("pixels", pixels), ("c", c), ("groups", groups)] {
            self.at_least(field, extent, 1);
        }
        self.holds("c", c, c % groups.max(1) == 0, "a multiple of the groups");
        let group = i64::from(pixels) * i64::from(c / groups.max(1));
        self.holds("pixels", pixels, group <= i64::from(i32::MAX), "so few that 32 bits count a group");
        self.holds("eps", eps, eps >= 0.0 && eps.is_finite(), "finite and not negative");
    }

    /// The first rule that does not hold.
    pub fn verdict(self) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)
    }
}
