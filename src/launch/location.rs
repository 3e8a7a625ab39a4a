//! Where an operand lies: a location without a device, an address once there is one.
//!
//! A launch is made before any memory is had. Its addresses are then symbols that name a piece of memory and an
//! offset, and [`relocate`] puts addresses in their stead. Offsets are the low bits of a symbol and pieces of
//! memory begin at multiples of [`crate::plan::ALIGN`], so a symbol is aligned as its address will be.

use super::Launch;
use super::params::DevicePtr;

/// A piece of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// What lives within a step.
    Arena,
    /// One [`super::params::StepState`], and behind it counters that are zero between launches.
    State,
    /// By index in [`super::LaunchProgram::weights`].
    Weight(u32),
    /// By index in [`super::LaunchProgram::buffers`].
    Buffer(u32),
    /// A piece of the arena before its place there is chosen; a finished program has none.
    Scratch(u32),
}

/// A byte of a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    pub space: Space,
    pub offset: u64,
}

const OFFSET_BITS: u32 = 40;
const INDEX_BITS: u32 = 20;
/// Bytes of a piece of memory at most: 1 TiB.
pub(super) const OFFSETS: u64 = 1 << OFFSET_BITS;
const INDICES: u64 = 1 << INDEX_BITS;

impl Location {
    pub const fn start(space: Space) -> Self {
        Self { space, offset: 0 }
    }

    /// # Panics
    /// Beyond 1 TiB of a piece, which lowering refuses, or a million pieces of a kind, which no program comes near.
    pub fn symbol(self) -> DevicePtr {
        let (kind, index) = match self.space {
            Space::Arena => (1, 0),
            Space::State => (2, 0),
            Space::Weight(index) => (3, index),
            Space::Buffer(index) => (4, index),
            Space::Scratch(index) => (5, index),
        };
        let index = u64::from(index);
        assert!(self.offset < OFFSETS && index < INDICES, "{self:?} lies beyond what a symbol holds");
        DevicePtr(kind << (OFFSET_BITS + INDEX_BITS) | index << OFFSET_BITS | self.offset)
    }

    /// What a symbol stands for; none for no address.
    pub fn of(symbol: DevicePtr) -> Option<Self> {
        let index = (symbol.0 >> OFFSET_BITS & (INDICES - 1)) as u32;
        let space = match symbol.0 >> (OFFSET_BITS + INDEX_BITS) {
            1 => Space::Arena,
            2 => Space::State,
            3 => Space::Weight(index),
            4 => Space::Buffer(index),
            5 => Space::Scratch(index),
            _ => return None,
        };
        Some(Self { space, offset: symbol.0 & (OFFSETS - 1) })
    }
}

/// The launch with every symbol replaced by what `address` makes of its location.
pub fn relocate(launch: &Launch, address: impl Fn(Location) -> DevicePtr) -> Launch {
    let mut moved = launch.clone();
    for bytes in moved.params.chunks_exact_mut(size_of::<DevicePtr>()).take(launch.addresses) {
        let symbol = DevicePtr(bytemuck::pod_read_unaligned(bytes));
        if let Some(location) = Location::of(symbol) {
            bytes.copy_from_slice(bytemuck::bytes_of(&address(location)));
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::params::PointwiseParams;

    #[test]
    fn a_symbol_is_its_location_and_keeps_its_alignment() {
        let spaces =
            [Space::Arena, Space::State, Space::Weight(7), Space::Buffer(0), Space::Scratch((1 << 20) - 1)];
        for space in spaces {
            for offset in [0, 2, 256, 4096 + 16, (1 << 40) - 2] {
                let location = Location { space, offset };
                assert_eq!(Location::of(location.symbol()), Some(location));
                assert_eq!(location.symbol().0 % 256, offset % 256);
            }
        }
        assert_eq!(Location::of(DevicePtr::NONE), None);
    }

    #[test]
    fn relocation_touches_the_addresses_alone() {
        let x = Location { space: Space::Weight(3), offset: 512 }.symbol();
        let out = Location::start(Space::Arena).symbol();
        // The count looks like a symbol.
        let count = out.0 as i64;
        let params = PointwiseParams { x, out, count, ..Default::default() };
        let launch = Launch::new("affine_f16", [1; 3], &params).expect("right params");
        let address = |location: Location| {
            DevicePtr(location.offset + if location.space == Space::Arena { 64 } else { 32 })
        };
        let moved: PointwiseParams = bytemuck::pod_read_unaligned(&relocate(&launch, address).params);
        assert_eq!((moved.x, moved.y, moved.out), (DevicePtr(544), DevicePtr::NONE, DevicePtr(64)));
        assert_eq!(moved.count, count);
    }
}
