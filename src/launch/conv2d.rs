//! Convolutions and their data gradients as launches: what is folded in, which form runs, and its workspace.
//!
//! A [`Conv2d`] is numbers alone: what is convolved, not where it lies. From them follow the form of the kernel
//! (`tune::conv2d`) and the bytes that a sum in parts needs; addresses come last.

use super::params::{self as p, DevicePtr, Epilogue};
use super::tune::conv2d::{FEW, Form, GATHERED, NARROW, OnHopper, Problem, Tile};
use super::tune::hopper::{STEP, box_of_an_image, slabs};
use super::tune::{Fact, Fastest, Obstacle, Reason};
use super::{Launch, Storage, hopper};
use crate::error::{Error, Result};
use crate::ir::Padding;
use crate::tensor::Shape;

/// A convolution of one image or of two side by side, perhaps enlarged first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    pub images: usize,
    /// Lines and columns of the input.
    pub size: [usize; 2],
    /// Channels of the two sources; the second may have none.
    pub channels: [usize; 2],
    /// Nearest-neighbour enlargement to this size, twofold or one short of it, comes first.
    pub enlarged: Option<[usize; 2]>,
    /// Output channels, lines and columns of taps.
    pub filter: [usize; 3],
    pub stride: usize,
    pub padding: Padding,
    /// The filter is packed for the small image ([`Conv2d::has_sub_pixel_form`]).
    pub sub_pixel: bool,
    /// The tiles' means and squared deviations are wanted. Then one image alone decides the tile.
    pub stats: bool,
}

/// Where a convolution's operands lie. What is not there has no address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operands {
    pub x: DevicePtr,
    pub x2: DevicePtr,
    pub filter: DevicePtr,
    pub y: DevicePtr,
    /// What becomes of the sums; its rows are counted here.
    pub epilogue: Epilogue,
    /// `epilogue.channels` is one vector for all images instead of one each.
    pub one_vector: bool,
    /// Of [`Conv2d::workspace_bytes`].
    pub workspace: DevicePtr,
    /// A u32 a block where there are parts, all zero; zero again afterwards.
    pub arrived: DevicePtr,
}

/// Where the operands of a data gradient lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct BwdOperands {
    pub dy: DevicePtr,
    pub filter: DevicePtr,
    pub dx: DevicePtr,
    pub epilogue: Epilogue,
    /// Of [`Conv2d::bwd_workspace_bytes`].
    pub workspace: DevicePtr,
    /// As in [`Operands`].
    pub arrived: DevicePtr,
}

impl Conv2d {
    /// Of one source and as it is; shapes are those of the graph's operation.
    pub fn new(x: &Shape, filter: &Shape, stride: usize, padding: Padding) -> Self {
        Self {
            images: x[0],
            size: [x[1], x[2]],
            channels: [x[3], 0],
            enlarged: None,
            filter: [filter[0], filter[1], filter[2]],
            stride,
            padding,
            sub_pixel: false,
            stats: false,
        }
    }

    /// Lines and columns of what the filter slides over.
    pub fn seen(&self) -> [usize; 2] {
        self.enlarged.unwrap_or(self.size)
    }

    /// Lines and columns of the output.
    pub fn out(&self) -> [usize; 2] {
        let Padding { top, left, bottom, right } = self.padding;
        let [_, r, s] = self.filter;
        let [h, w] = self.seen();
        [
            (h + top + bottom).saturating_sub(r) / self.stride + 1,
            (w + left + right).saturating_sub(s) / self.stride + 1,
        ]
    }

    /// Whether the convolution may be computed from the small image, with filters packed by
    /// `weights::pack::sub_pixel`; [`Conv2d::cropped`] is its second argument.
    pub fn has_sub_pixel_form(&self) -> bool {
        let [o, r, s] = self.filter;
        let whole = self.channels.iter().all(|c| c.is_multiple_of(8)) && o.is_multiple_of(8);
        let plain = (r, s, self.stride, self.padding) == (3, 3, 1, Padding::all(1));
        self.enlarged.is_some() && whole && plain
    }

    /// Which extents of the enlarged image are one short of twofold.
    pub fn cropped(&self) -> [bool; 2] {
        let [h, w] = self.seen();
        [h % 2 == 1, w % 2 == 1]
    }
}

impl Conv2d {
    /// The form that the forward kernel takes on a device of `target`.
    pub fn form(&self, target: &str) -> Form {
        self.choose(target).0
    }

    /// The same, and why.
    pub fn choose(&self, target: &str) -> (Form, Reason) {
        let Geometry { out, channels, taps, kinds, .. } = self.geometry();
        if channels.iter().any(|c| !c.is_multiple_of(8)) {
            return if self.filter[0] < FEW {
                general(Fact::FewFromFew)
            } else if self.enlarged.is_some() || channels[1] > 0 {
                general(Fact::NoVectorsAside)
            } else {
                (Form::Gathered, Reason::Only(Fact::NoVectors))
            };
        }
        if self.filter[0] <= FEW && self.is_narrow() && !self.stats {
            return (Form::Narrow, Reason::Only(Fact::FewMade));
        }
        let problem = Problem {
            images: if self.stats { 1 } else { self.images },
            classes: kinds[0] * kinds[1],
            pixels: largest(out, kinds).iter().product(),
            columns: self.filter[0],
            steps: taps[0] * taps[1] * channels.iter().sum::<usize>().div_ceil(DEPTH),
        };
        tiled(&problem, target, || hopper::form(self))
    }

    /// The form that the data gradient takes, for that source's share.
    pub fn bwd_form(&self, source: usize, target: &str) -> Form {
        self.choose_bwd(source, target).0
    }

    /// The same, and why.
    pub fn choose_bwd(&self, source: usize, target: &str) -> (Form, Reason) {
        let Geometry { taps, stride, kinds, up, channels, .. } = self.geometry();
        let o = self.filter[0];
        if o.is_multiple_of(8) && channels[0] <= FEW && self.is_narrow() {
            return (Form::Narrow, Reason::Only(Fact::FewMade));
        }
        let whole = [o.is_multiple_of(8), channels.iter().all(|c| c.is_multiple_of(8))];
        if whole != [true, true] {
            let patches = whole[0] && self.is_patches() && channels[0] >= FEW;
            return if patches || (whole[1] && self.stride == 1 && !up) {
                (Form::Gathered, Reason::Only(Fact::NoVectors))
            } else {
                general(Fact::NoVectors)
            };
        }
        // The largest class of pixels has the taps whose distance is a multiple of the stride.
        let lines = [0, 1].map(|i| match (kinds[i] > 1, up) {
            (true, _) => 2 * kinds[i],
            (false, true) => 2 * taps[i],
            (false, false) => taps[i].div_ceil(stride[i]),
        });
        let problem = Problem {
            images: self.images,
            classes: stride[0] * stride[1],
            pixels: self.written_pixels(stride).iter().product(),
            columns: channels[source],
            steps: lines[0] * lines[1] * o.div_ceil(DEPTH),
        };
        tiled(&problem, target, || hopper::bwd_form(self, source))
    }

    /// What the tiles of the forward kernel multiply.
    pub fn executed_flops(&self, form: Form) -> u64 {
        let geometry = self.geometry();
        let Geometry { out, channels, taps, .. } = geometry;
        let kinds = if let Form::Hopper(_) = form { [hopper::kinds(&geometry); 2] } else { geometry.kinds };
        let side = |i: usize| {
            let size = |kind: usize| match (kinds[i], kind) {
                (1, _) => out[i],
                (_, 2) => 1,
                (all, _) => (out[i] + 1 - kind) / 2 - usize::from(kind == 0 && all == 3),
            };
            (0..kinds[i]).map(|kind| (size(kind), taps[i])).collect()
        };
        self.executed(form, [side(0), side(1)], self.filter[0], channels.iter().sum())
    }

    /// What the tiles of the data gradient multiply, for that source's share.
    pub fn bwd_executed_flops(&self, source: usize, form: Form) -> u64 {
        let Geometry { taps, stride, kinds, up, channels, seen, before, .. } = self.geometry();
        let side = |i: usize| match (kinds[i] > 1, up) {
            (true, _) => vec![(self.size[i], 2 * kinds[i])],
            (false, true) => vec![(self.size[i], 2 * taps[i])],
            (false, false) => {
                let (stride, before) = (stride[i], before[i]);
                let class = |kind: usize| {
                    let first = (kind + stride - before % stride) % stride;
                    (
                        (seen[i].saturating_sub(first)).div_ceil(stride),
                        taps[i].saturating_sub(kind).div_ceil(stride),
                    )
                };
                (0..stride).map(class).collect()
            }
        };
        self.executed(form, [side(0), side(1)], channels[source], self.filter[0])
    }

    /// Over classes of lines and of columns: how many there are, and their taps.
    fn executed(&self, form: Form, sides: [Vec<(usize, usize)>; 2], columns: usize, depth: usize) -> u64 {
        let [lines, across] = &sides;
        let classes = lines.iter().flat_map(|y| across.iter().map(move |x| ([y.0, x.0], y.1 * x.1)));
        let products = classes.map(|(size, taps)| {
            let (images, pixels) = (self.images, size[0] * size[1]);
            match form {
                Form::General { .. } => images * pixels * columns * taps * depth,
                Form::Narrow => images * pixels * FEW * taps * depth,
                // Slabs go on from image to image.
                Form::Hopper(OnHopper { tile, bits, .. }) => {
                    let rows = tile.rows(slabs(images, size, bits));
                    rows * columns.next_multiple_of(tile.n) * taps * depth.next_multiple_of(STEP)
                }
                Form::Gathered => {
                    let [pixels, columns] =
                        [pixels.next_multiple_of(GATHERED.m), columns.next_multiple_of(GATHERED.n)];
                    images * pixels * columns * (taps * depth).next_multiple_of(DEPTH)
                }
                Form::Tiled(Tile { m, n, .. }) => {
                    let [pixels, columns] = [pixels.next_multiple_of(m), columns.next_multiple_of(n)];
                    images * pixels * columns * taps * depth.next_multiple_of(DEPTH)
                }
            }
        });
        2 * products.sum::<usize>() as u64
    }

    /// Bytes of [`Operands::workspace`].
    pub fn workspace_bytes(&self, form: Form) -> usize {
        form.kept() * self.out().iter().product::<usize>() * self.images * self.filter[0] * 4
    }

    /// Bytes of [`BwdOperands::workspace`].
    pub fn bwd_workspace_bytes(&self, source: usize, form: Form) -> usize {
        form.kept() * self.size.iter().product::<usize>() * self.images * self.channels[source] * 4
    }

    /// Pixels of one image that a tile of the statistics covers; `None` where that form gives none.
    pub fn statistics_tile(&self, form: Form) -> Option<usize> {
        let geometry = self.geometry();
        let (out, kinds) = (geometry.out, geometry.kinds);
        let m = match form {
            Form::Hopper(OnHopper { tile, bits, .. }) => {
                let pixels = largest(out, [hopper::kinds(&geometry); 2]);
                let [x, y] = box_of_an_image(pixels).filter(|found| *found == bits)?;
                return Some(if tile.cluster > 1 { tile.stat_rows() } else { 1 << (x + y) });
            }
            _ => form.tile()?.m,
        };
        let whole =
            kinds == [1, 1] || (kinds == [2, 2] && largest(out, kinds).iter().product::<usize>() % m == 0);
        whole.then_some(m)
    }

    /// y = epilogue(conv(enlarged [x, x2])).
    pub fn forward(&self, form: Form, storage: Storage, at: &Operands) -> Result<Launch> {
        let rows = self.out().iter().product();
        if let Form::Hopper(on) = form {
            return hopper::forward(self, on, storage, at);
        }
        let Some(tile) = form.tile() else {
            self.refuse_packed()?;
            let params = self.general(at);
            let grid = strided(self.images.saturating_mul(rows).saturating_mul(self.filter[0]));
            let (kernel, grid) = self.untiled("conv2d", form, storage, self.out(), grid);
            return Launch::new(&kernel, grid, &params);
        };
        let (geometry, kernel) = match form {
            Form::Gathered => (self.plain(), gathering("conv2d", storage, "gather")),
            _ => (self.geometry(), tile.kernel("conv2d", storage)),
        };
        let pixels = largest(geometry.out, geometry.kinds).iter().product();
        let grid = tile.grid(self.images, geometry.kinds[0] * geometry.kinds[1], pixels, self.filter[0]);
        let (sums, arrived) = in_parts(tile.splits, (at.workspace, at.arrived));
        let (splits, epilogue) = (int(tile.splits), self.epilogue(at));
        let whole = p::Conv2dParams { splits, sums, epilogue, ..self.params(&geometry, at) };
        match form {
            Form::Gathered => Launch::new(&kernel, grid, &whole),
            _ => Launch::new(&kernel, grid, &p::Conv2dTileParams { arrived, whole }),
        }
    }

    /// dx = epilogue(that source's share of the data gradient). Channels and statistics are not for gradients.
    pub fn backward(&self, source: usize, form: Form, storage: Storage, at: &BwdOperands) -> Result<Launch> {
        let rows = self.size.iter().product();
        if let Form::Hopper(on) = form {
            return hopper::backward(self, source, on, storage, at);
        }
        let Some(tile) = form.tile() else {
            self.refuse_packed()?;
            let params = self.bwd_general(source, at);
            let grid = strided(self.images.saturating_mul(rows).saturating_mul(self.channels[source]));
            let (kernel, grid) = self.untiled("conv2d_bwd", form, storage, self.size, grid);
            return Launch::new(&kernel, grid, &params);
        };
        let geometry = self.geometry();
        let kernel = match form {
            Form::Gathered if self.is_patches() => gathering("conv2d_bwd", storage, "patches"),
            Form::Gathered => gathering("conv2d_bwd", storage, "gather"),
            _ => tile.kernel("conv2d_bwd", storage),
        };
        let pixels = self.written_pixels(geometry.stride).iter().product();
        let classes = geometry.stride[0] * geometry.stride[1];
        let grid = tile.grid(self.images, classes, pixels, geometry.channels[source]);
        let (sums, arrived) = in_parts(tile.splits, (at.workspace, at.arrived));
        let (splits, epilogue) = (int(tile.splits), at.epilogue);
        let whole = p::Conv2dBwdParams { splits, sums, epilogue, ..self.bwd_params(&geometry, source, at) };
        match form {
            Form::Gathered => Launch::new(&kernel, grid, &whole),
            _ => Launch::new(&kernel, grid, &p::Conv2dBwdTileParams { arrived, whole }),
        }
    }

    /// The kernel and the grid of a form without tiles, which writes images of `size`; `grid` is for the general one.
    fn untiled(
        &self,
        op: &str,
        form: Form,
        storage: Storage,
        size: [usize; 2],
        grid: [u32; 3],
    ) -> (String, [u32; 3]) {
        if form != Form::Narrow {
            return (format!("{op}_{}", storage.name()), grid);
        }
        let tiles = [0, 1].map(|i| size[i].div_ceil(NARROW[i])).into_iter().product::<usize>();
        let blocks = u32::try_from(self.images.saturating_mul(tiles)).unwrap_or(u32::MAX);
        (format!("{op}_{}_n{FEW}", storage.name()), [blocks, 1, 1])
    }

    fn refuse_packed(&self) -> Result<()> {
        if self.sub_pixel {
            return Err(Error::Bug("packed filters have no general form: see has_sub_pixel_form".to_owned()));
        }
        Ok(())
    }

    /// What becomes of the sums of y.
    pub(super) fn epilogue(&self, at: &Operands) -> Epilogue {
        let rows = self.out().iter().product::<usize>();
        let given = |address: DevicePtr, rows: usize| if address == DevicePtr::NONE { 0 } else { int(rows) };
        let channel_rows = if at.one_vector { rows * self.images } else { rows };
        Epilogue {
            channel_rows: given(at.epilogue.channels, channel_rows),
            stat_rows: given(at.epilogue.stats, rows),
            ..at.epilogue
        }
    }
}

/// Where the parts of sums go, and who counts them: nowhere, where the sums are whole.
pub(super) fn in_parts(splits: usize, places: (DevicePtr, DevicePtr)) -> (DevicePtr, DevicePtr) {
    if splits > 1 { places } else { Default::default() }
}

fn general(why: Fact) -> (Form, Reason) {
    (Form::General { why }, Reason::Only(why))
}

/// Tiles: on sm_90a those that `on_hopper` chooses, unless something is in the way.
fn tiled(
    problem: &Problem,
    target: &str,
    on_hopper: impl Fn() -> std::result::Result<(Form, Fastest), Obstacle>,
) -> (Form, Reason) {
    let chosen = if target == hopper::TARGET { on_hopper().map_err(Some) } else { Err(None) };
    let (form, why) = chosen.unwrap_or_else(|obstacle| {
        let (tile, why) = problem.tile(target);
        (Form::Tiled(tile), Fastest { obstacle, ..why })
    });
    (form, Reason::Fastest(why))
}

/// The row of the manifest of [`Form::Gathered`].
fn gathering(op: &str, storage: Storage, what: &str) -> String {
    format!("{op}_{}_{what}_m{}n{}", storage.name(), GATHERED.m, GATHERED.n)
}

/// Channels of a step of a sum.
const DEPTH: usize = 32;

/// A convolution as the tiled kernels see it; of two numbers the first is that of lines.
pub(super) struct Geometry {
    /// What the filter slides over, and what it makes.
    pub seen: [usize; 2],
    pub out: [usize; 2],
    pub channels: [usize; 2],
    pub taps: [usize; 2],
    pub stride: [usize; 2],
    pub before: [usize; 2],
    /// Kinds of output lines and columns with filters of their own.
    pub kinds: [usize; 2],
    pub up: bool,
}

impl Conv2d {
    /// As it is said.
    fn plain(&self) -> Geometry {
        let [_, r, s] = self.filter;
        Geometry {
            seen: self.seen(),
            out: self.out(),
            channels: self.channels,
            taps: [r, s],
            stride: [self.stride; 2],
            before: [self.padding.top, self.padding.left],
            kinds: [1, 1],
            up: self.enlarged.is_some(),
        }
    }

    /// As it is least work.
    pub(super) fn geometry(&self) -> Geometry {
        let plain = self.plain();
        if self.sub_pixel {
            let kinds = self.cropped().map(|cropped| if cropped { 3 } else { 2 });
            return Geometry { seen: self.size, taps: [2, 2], before: [0, 0], kinds, up: false, ..plain };
        }
        // Patches that meet: the pixels of a line of a patch lie together like channels of one.
        let [_, r, s] = self.filter;
        if self.columns_meet() {
            return Geometry {
                seen: [self.size[0], self.size[1] / s],
                channels: [self.channels[0] * s, 0],
                taps: [r, 1],
                stride: [self.stride, 1],
                ..plain
            };
        }
        plain
    }

    /// Windows side by side share no column and leave none out.
    fn columns_meet(&self) -> bool {
        let [_, _, s] = self.filter;
        let meet = s == self.stride && self.padding == Padding::NONE && self.size[1].is_multiple_of(s);
        s > 1 && meet && self.enlarged.is_none() && self.channels[1] == 0
    }

    /// Nor do windows above each other.
    fn is_patches(&self) -> bool {
        let [_, r, _] = self.filter;
        self.columns_meet() && r == self.stride && self.size[0].is_multiple_of(r)
    }

    /// 3 x 3 taps over each pixel of one image, as it is.
    fn is_narrow(&self) -> bool {
        let [_, r, s] = self.filter;
        (r, s, self.stride) == (3, 3, 1) && self.enlarged.is_none() && self.channels[1] == 0
    }

    /// Lines and columns of the largest class of pixels of a gradient.
    fn written_pixels(&self, stride: [usize; 2]) -> [usize; 2] {
        let columns = if stride[1] == self.stride { self.size[1] } else { self.size[1] / self.stride };
        [self.size[0].div_ceil(stride[0]), columns.div_ceil(stride[1])]
    }

    /// What the general form takes.
    pub(super) fn general(&self, at: &Operands) -> p::Conv2dParams {
        p::Conv2dParams { epilogue: self.epilogue(at), ..self.params(&self.plain(), at) }
    }

    /// What the general form of the data gradient takes.
    pub(super) fn bwd_general(&self, source: usize, at: &BwdOperands) -> p::Conv2dBwdParams {
        p::Conv2dBwdParams { epilogue: at.epilogue, ..self.bwd_params(&self.plain(), source, at) }
    }

    fn params(&self, geometry: &Geometry, at: &Operands) -> p::Conv2dParams {
        let &Geometry { seen, out, channels, taps, stride, before, kinds, up } = geometry;
        p::Conv2dParams {
            x: at.x,
            x2: at.x2,
            filter: at.filter,
            y: at.y,
            n: int(self.images),
            h: int(seen[0]),
            w: int(seen[1]),
            up: i32::from(up),
            c: int(channels[0]),
            c2: int(channels[1]),
            o: int(self.filter[0]),
            r: int(taps[0]),
            s: int(taps[1]),
            stride_y: int(stride[0]),
            stride_x: int(stride[1]),
            top: int(before[0]),
            left: int(before[1]),
            height: int(out[0]),
            width: int(out[1]),
            kinds_y: int(kinds[0]),
            kinds_x: int(kinds[1]),
            splits: 1,
            ..Default::default()
        }
    }

    fn bwd_params(&self, geometry: &Geometry, source: usize, at: &BwdOperands) -> p::Conv2dBwdParams {
        let &Geometry { seen, out, channels, taps, stride, before, kinds, up } = geometry;
        p::Conv2dBwdParams {
            dy: at.dy,
            filter: at.filter,
            dx: at.dx,
            n: int(self.images),
            h: int(seen[0]),
            w: int(seen[1]),
            up: i32::from(up),
            channels: int(channels[0] + channels[1]),
            first: if source == 0 { 0 } else { int(channels[0]) },
            c: int(channels[source]),
            o: int(self.filter[0]),
            r: int(taps[0]),
            s: int(taps[1]),
            stride_y: int(stride[0]),
            stride_x: int(stride[1]),
            top: int(before[0]),
            left: int(before[1]),
            height: int(out[0]),
            width: int(out[1]),
            kinds_y: int(kinds[0]),
            kinds_x: int(kinds[1]),
            splits: 1,
            ..Default::default()
        }
    }
}

/// Lines and columns of the largest kind of output pixels.
pub(super) fn largest(out: [usize; 2], kinds: [usize; 2]) -> [usize; 2] {
    [0, 1].map(|i| if kinds[i] > 1 { (out[i] / 2).max(1) } else { out[i] })
}

/// Extents beyond 32 bits break a rule of the kernels: which one, they say.
pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// For a kernel whose threads take one element after the other.
fn strided(count: usize) -> [u32; 3] {
    [u32::try_from(count.div_ceil(256)).unwrap_or(u32::MAX).clamp(1, 1 << 20), 1, 1]
}
