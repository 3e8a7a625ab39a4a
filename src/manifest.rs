//! Every instantiation of every kernel: one row is one entry point.
//!
//! The build script includes this very file, so it knows nothing but the standard library. From a row come
//! the entry point's source line, the binary that has it, its launch bounds and its budget of registers; the
//! loader, the tests and the benches read the same rows. A kernel's body is in `kernels/`, one file an
//! operation, and says in its header what it computes.

/// One entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `<op>[_bwd]_<dtype>[_<variant>]`.
    pub name: &'static str,
    /// In `kernels/`; its stem is the namespace of everything in it.
    pub file: &'static str,
    /// The function template that the entry point calls.
    pub function: &'static str,
    /// Its template arguments.
    pub arguments: &'static str,
    /// The struct of `params.cuh` and `launch/params` that it takes.
    pub params: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes. Not zero: the file has a `constexpr` function template
    /// `shared_bytes` of the same arguments, which must agree.
    pub shared_bytes: u32,
    /// Registers of a thread, at most; more fails the build.
    pub registers: u32,
    /// Consecutive blocks that run together; grids have whole ones.
    pub cluster: u32,
    pub arch: Arch,
}

/// Where a row runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Everywhere from 8.0 on.
    Sm80,
    /// On 9.0 alone: wgmma and TMA.
    Sm90a,
}

/// What binaries are made for; `compute_80` is PTX for devices that are not listed.
pub const TARGETS: [&str; 5] = ["sm_80", "sm_90a", "sm_100", "sm_120", "compute_80"];

impl Arch {
    pub fn runs_on(self, target: &str) -> bool {
        match self {
            Self::Sm80 => true,
            Self::Sm90a => target == "sm_90a",
        }
    }
}

impl Kernel {
    /// Rows of a file are compiled in two units, those for bf16 apart: half as long to wait for, and a run loads one.
    pub fn is_bf16(&self) -> bool {
        self.name.contains("_bf16")
    }

    /// `clip_cosine.cu` is `namespace clip_cosine`.
    pub fn namespace(&self) -> &'static str {
        self.file.strip_suffix(".cu").unwrap_or(self.file)
    }

    /// The line that makes it an entry point, for CUDA and for the CPU alike.
    pub fn entry(&self) -> String {
        let (name, threads, params, space) = (self.name, self.threads, self.params, self.namespace());
        let arguments =
            if self.arguments.is_empty() { String::new() } else { format!("<{}>", self.arguments) };
        let shared = match self.shared_bytes {
            0 => String::new(),
            bytes => format!(
                "static_assert({space}::shared_bytes{arguments}() == {bytes}, \"shared memory of {name} in the \
                 manifest\");\n"
            ),
        };
        let entry = match (self.arch, self.cluster) {
            (Arch::Sm80, _) => format!("KERNEL_ENTRY({name}, {threads}, {params}"),
            (Arch::Sm90a, 1) => format!("SM90_KERNEL_ENTRY({name}, {threads}, {params}"),
            (Arch::Sm90a, blocks) => format!("CLUSTER_KERNEL_ENTRY({name}, {threads}, {blocks}, {params}"),
        };
        format!(
            "static_assert({space}::THREADS == {threads}, \"threads of {name} in the manifest\");\n\
             {shared}{entry}, {space}::{}{arguments})\n",
            self.function
        )
    }
}

/// The row of that name.
pub fn find(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// The files of all rows, each once, in the order of the table.
pub fn files() -> Vec<&'static str> {
    let mut files: Vec<&str> = Vec::new();
    for kernel in KERNELS {
        if !files.contains(&kernel.file) {
            files.push(kernel.file);
        }
    }
    files
}

/// A row of the general forms: name, file, function, template arguments, params, registers.
const fn general(
    name: &'static str,
    file: &'static str,
    function: &'static str,
    arguments: &'static str,
    params: &'static str,
    registers: u32,
) -> Kernel {
    Kernel {
        name,
        file,
        function,
        arguments,
        params,
        threads: 256,
        shared_bytes: 0,
        registers,
        cluster: 1,
        arch: Arch::Sm80,
    }
}

/// A row for heads of one width: name, file, function, template arguments, params, shared bytes, registers.
const fn heads(
    name: &'static str,
    file: &'static str,
    function: &'static str,
    arguments: &'static str,
    params: &'static str,
    shared_bytes: u32,
    registers: u32,
) -> Kernel {
    Kernel { threads: 128, shared_bytes, ..general(name, file, function, arguments, params, registers) }
}

/// A row of a matrix product by tiles: name, template arguments.
const fn product(name: &'static str, arguments: &'static str) -> Kernel {
    let shared_bytes = 49152;
    Kernel {
        shared_bytes,
        ..general(name, "attention_product_tile.cu", "run", arguments, "ProductParams", 168)
    }
}

/// A row of the forms on tensor cores, whose function is `run`: name, file, template arguments, params, dynamic
/// shared memory, registers.
const fn tiled(
    name: &'static str,
    file: &'static str,
    arguments: &'static str,
    params: &'static str,
    shared_bytes: u32,
    registers: u32,
) -> Kernel {
    Kernel { threads: 128, shared_bytes, ..general(name, file, "run", arguments, params, registers) }
}

/// A row of the convolutions whose elements are gathered: name, function, template arguments, params.
const fn gathered(
    name: &'static str,
    function: &'static str,
    arguments: &'static str,
    params: &'static str,
) -> Kernel {
    let shared_bytes = 16384;
    let row = general(name, "conv2d_gather.cu", function, arguments, params, 128);
    Kernel { threads: 128, shared_bytes, ..row }
}

/// A row of the convolutions to a few channels: name, function, template argument, params.
const fn narrow(
    name: &'static str,
    function: &'static str,
    arguments: &'static str,
    params: &'static str,
) -> Kernel {
    let shared_bytes = 48384;
    let row = general(name, "conv2d_narrow.cu", function, arguments, params, 128);
    Kernel { threads: 128, shared_bytes, ..row }
}

/// A row for sm_90a, whose function is `run`: name, file, template arguments, params, dynamic shared memory. Two
/// warpgroups multiply and one copies; how they share the registers of a multiprocessor they say themselves.
const fn hopper(
    name: &'static str,
    file: &'static str,
    arguments: &'static str,
    params: &'static str,
    shared_bytes: u32,
) -> Kernel {
    let row = general(name, file, "run", arguments, params, 168);
    Kernel { threads: 384, shared_bytes, arch: Arch::Sm90a, ..row }
}

/// The same, of which so many blocks make a tile together.
const fn clustered(
    name: &'static str,
    file: &'static str,
    arguments: &'static str,
    params: &'static str,
    cluster: u32,
) -> Kernel {
    Kernel { cluster, ..hopper(name, file, arguments, params, 230400) }
}

#[rustfmt::skip]
pub const KERNELS: &[Kernel] = &[
    general("activate_f16",         "pointwise.cu",      "activate",        "f16",       "PointwiseParams",      40),
    general("activate_bf16",        "pointwise.cu",      "activate",        "bf16",      "PointwiseParams",      40),
    general("activate_bwd_f16",     "pointwise.cu",      "activate_bwd",    "f16",       "PointwiseParams",      40),
    general("activate_bwd_bf16",    "pointwise.cu",      "activate_bwd",    "bf16",      "PointwiseParams",      40),
    general("geglu_f16",            "pointwise.cu",      "geglu",           "f16",       "PointwiseParams",      40),
    general("geglu_bf16",           "pointwise.cu",      "geglu",           "bf16",      "PointwiseParams",      40),
    general("geglu_bwd_f16",        "pointwise.cu",      "geglu_bwd",       "f16",       "PointwiseParams",      40),
    general("geglu_bwd_bf16",       "pointwise.cu",      "geglu_bwd",       "bf16",      "PointwiseParams",      40),
    general("add_f16",              "pointwise.cu",      "add",             "f16",       "PointwiseParams",      40),
    general("add_bf16",             "pointwise.cu",      "add",             "bf16",      "PointwiseParams",      40),
    general("add_channels_f16",     "pointwise.cu",      "add_channels",    "f16",       "PointwiseParams",      40),
    general("add_channels_bf16",    "pointwise.cu",      "add_channels",    "bf16",      "PointwiseParams",      40),
    general("affine_f16",           "pointwise.cu",      "affine",          "f16",       "PointwiseParams",      40),
    general("affine_bf16",          "pointwise.cu",      "affine",          "bf16",      "PointwiseParams",      40),
    general("cast_f32_f16",         "pointwise.cu",      "cast",            "f32, f16",  "PointwiseParams",      40),
    general("cast_f16_f32",         "pointwise.cu",      "cast",            "f16, f32",  "PointwiseParams",      40),
    general("cast_f32_bf16",        "pointwise.cu",      "cast",            "f32, bf16", "PointwiseParams",      40),
    general("cast_bf16_f32",        "pointwise.cu",      "cast",            "bf16, f32", "PointwiseParams",      40),
    Kernel {
        threads: 32,
        ..general("condition_f32",  "condition.cu",      "run",             "",          "ConditionParams",      24)
    },
    general("timestep_f16",         "pointwise.cu",      "timestep",        "f16",       "TimestepParams",       48),
    general("timestep_bf16",        "pointwise.cu",      "timestep",        "bf16",      "TimestepParams",       48),
    general("to_nhwc_f32_f16",      "pointwise.cu",      "to_nhwc",         "f32, f16",  "LayoutParams",         48),
    general("to_nchw_f16_f32",      "pointwise.cu",      "to_nchw",         "f16, f32",  "LayoutParams",         48),
    general("to_nhwc_f32_bf16",     "pointwise.cu",      "to_nhwc",         "f32, bf16", "LayoutParams",         48),
    general("to_nchw_bf16_f32",     "pointwise.cu",      "to_nchw",         "bf16, f32", "LayoutParams",         48),
    general("activate_f16_v8_silu",      "pointwise.cu",       "activate8",       "f16, 1",    "PointwiseParams",      48),
    general("activate_bwd_f16_v8_silu",  "pointwise.cu",       "activate_bwd8",   "f16, 1",    "PointwiseParams",      48),
    general("activate_bf16_v8_silu",     "pointwise.cu",       "activate8",       "bf16, 1",   "PointwiseParams",      48),
    general("activate_bwd_bf16_v8_silu", "pointwise.cu",       "activate_bwd8",   "bf16, 1",   "PointwiseParams",      48),
    general("activate_f16_v8_gelu",      "pointwise.cu",       "activate8",       "f16, 2",    "PointwiseParams",      48),
    general("activate_bwd_f16_v8_gelu",  "pointwise.cu",       "activate_bwd8",   "f16, 2",    "PointwiseParams",      48),
    general("activate_bf16_v8_gelu",     "pointwise.cu",       "activate8",       "bf16, 2",   "PointwiseParams",      48),
    general("activate_bwd_bf16_v8_gelu", "pointwise.cu",       "activate_bwd8",   "bf16, 2",   "PointwiseParams",      48),
    general("activate_f16_v8_quick_gelu","pointwise.cu",       "activate8",       "f16, 3",    "PointwiseParams",      48),
    general("activate_bwd_f16_v8_quick_gelu","pointwise.cu",       "activate_bwd8",   "f16, 3",    "PointwiseParams",      48),
    general("activate_bf16_v8_quick_gelu","pointwise.cu",       "activate8",       "bf16, 3",   "PointwiseParams",      48),
    general("activate_bwd_bf16_v8_quick_gelu","pointwise.cu",       "activate_bwd8",   "bf16, 3",   "PointwiseParams",      48),
    general("activate_f16_v8_relu",      "pointwise.cu",       "activate8",       "f16, 4",    "PointwiseParams",      48),
    general("activate_bwd_f16_v8_relu",  "pointwise.cu",       "activate_bwd8",   "f16, 4",    "PointwiseParams",      48),
    general("activate_bf16_v8_relu",     "pointwise.cu",       "activate8",       "bf16, 4",   "PointwiseParams",      48),
    general("activate_bwd_bf16_v8_relu", "pointwise.cu",       "activate_bwd8",   "bf16, 4",   "PointwiseParams",      48),
    general("add_f16_v8",                "pointwise.cu",       "add8",            "f16",       "PointwiseParams",      48),
    general("add_channels_f16_v8",       "pointwise.cu",       "add_channels8",   "f16",          "PointwiseParams",      48),
    general("affine_f16_v8",             "pointwise.cu",       "affine8",         "f16",          "PointwiseParams",      48),
    general("geglu_f16_v8",              "pointwise.cu",       "geglu8",          "f16",       "PointwiseParams",      64),
    general("geglu_bwd_f16_v8",          "pointwise.cu",       "geglu_bwd8",      "f16",       "PointwiseParams",      80),
    general("add_bf16_v8",               "pointwise.cu",       "add8",            "bf16",      "PointwiseParams",      48),
    general("add_channels_bf16_v8",      "pointwise.cu",       "add_channels8",   "bf16",         "PointwiseParams",      48),
    general("affine_bf16_v8",            "pointwise.cu",       "affine8",         "bf16",         "PointwiseParams",      48),
    general("geglu_bf16_v8",             "pointwise.cu",       "geglu8",          "bf16",      "PointwiseParams",      64),
    general("geglu_bwd_bf16_v8",         "pointwise.cu",       "geglu_bwd8",      "bf16",      "PointwiseParams",      80),
    general("geglu_bwd_f16_pairs",       "pointwise.cu",       "geglu_bwd_pairs", "f16",       "PointwiseParams",      48),
    general("geglu_bwd_bf16_pairs",      "pointwise.cu",       "geglu_bwd_pairs", "bf16",      "PointwiseParams",      48),
    general("place_f16",                 "layout.cu",          "place",           "f16, f16",  "PlaceParams",          48),
    general("place_bf16",                "layout.cu",          "place",           "bf16, bf16","PlaceParams",          48),
    general("place_f32",                 "layout.cu",          "place",           "f32, f32",  "PlaceParams",          48),
    general("place_f32_f16",             "layout.cu",          "place",           "f32, f16",  "PlaceParams",          48),
    general("place_f16_f32",             "layout.cu",          "place",           "f16, f32",  "PlaceParams",          48),
    general("place_f32_bf16",            "layout.cu",          "place",           "f32, bf16", "PlaceParams",          48),
    general("place_bf16_f32",            "layout.cu",          "place",           "bf16, f32", "PlaceParams",          48),
    general("place_f16_v8",              "layout.cu",          "place",           "Packed, Packed","PlaceParams",          48),
    general("place_bf16_v8",             "layout.cu",          "place",           "Packed, Packed","PlaceParams",          48),
    general("gather_token_f16",          "layout.cu",          "gather_token",    "f16",       "GatherParams",         48),
    general("sum_batch_f16",             "layout.cu",          "sum_batch",       "f16",       "SumCopiesParams",      48),
    general("normalise_f16",             "normalise.cu",       "run",             "f16",       "NormaliseParams",      48),
    general("gather_token_bf16",         "layout.cu",          "gather_token",    "bf16",      "GatherParams",         48),
    general("sum_batch_bf16",            "layout.cu",          "sum_batch",       "bf16",      "SumCopiesParams",      48),
    general("normalise_bf16",            "normalise.cu",       "run",             "bf16",      "NormaliseParams",      48),
    general("cfg_x0_f16",           "ddim_unguide.cu",   "cfg_x0",          "f16",       "CfgX0Params",          64),
    general("cfg_x0_bf16",          "ddim_unguide.cu",   "cfg_x0",          "bf16",      "CfgX0Params",          64),
    general("cfg_x0_bwd_f16",       "ddim_unguide.cu",   "cfg_x0_bwd",      "f16",       "CfgX0BwdParams",       64),
    general("cfg_x0_bwd_bf16",      "ddim_unguide.cu",   "cfg_x0_bwd",      "bf16",      "CfgX0BwdParams",       64),
    general("sld_x0_f16",           "ddim_unguide.cu",   "sld_x0",          "f16",       "SldX0Params",          64),
    general("sld_x0_bf16",          "ddim_unguide.cu",   "sld_x0",          "bf16",      "SldX0Params",          64),
    general("ddim_unguide_f16",     "ddim_unguide.cu",   "ddim_unguide",    "f16",       "DdimUnguideParams",    64),
    general("ddim_unguide_bf16",    "ddim_unguide.cu",   "ddim_unguide",    "bf16",      "DdimUnguideParams",    64),
    general("guide_eps_f16",        "ddim_unguide.cu",   "guide_eps",       "f16",       "GuideEpsParams",       64),
    general("guide_eps_bf16",       "ddim_unguide.cu",   "guide_eps",       "bf16",      "GuideEpsParams",       64),
    general("frozen_pullback_f16",  "ddim_unguide.cu",   "frozen_pullback", "f16",       "FrozenPullbackParams", 64),
    general("frozen_pullback_bf16", "ddim_unguide.cu",   "frozen_pullback", "bf16",      "FrozenPullbackParams", 64),
    general("clip_cosine_f16",      "clip_cosine.cu",    "run",             "f16",       "ClipCosineParams",     64),
    general("clip_cosine_bf16",     "clip_cosine.cu",    "run",             "bf16",      "ClipCosineParams",     64),
    general("embed_text_f16",       "embed.cu",          "text",            "f16",       "EmbedTextParams",      64),
    general("embed_text_bf16",      "embed.cu",          "text",            "bf16",      "EmbedTextParams",      64),
    general("embed_patches_f16",    "embed.cu",          "patches",         "f16",       "EmbedPatchesParams",   64),
    general("embed_patches_bf16",   "embed.cu",          "patches",         "bf16",      "EmbedPatchesParams",   64),
    general("resample_f16",         "resample.cu",       "bicubic",         "f16",       "ResampleParams",       64),
    general("resample_bf16",        "resample.cu",       "bicubic",         "bf16",      "ResampleParams",       64),
    general("resample_bwd_f16",     "resample.cu",       "bicubic_bwd",     "f16",       "ResampleParams",       64),
    general("resample_bwd_bf16",    "resample.cu",       "bicubic_bwd",     "bf16",      "ResampleParams",       64),
    general("upsample_f16",         "resample.cu",       "nearest",         "f16",       "UpsampleParams",       64),
    general("upsample_bf16",        "resample.cu",       "nearest",         "bf16",      "UpsampleParams",       64),
    general("upsample_bwd_f16",     "resample.cu",       "nearest_bwd",     "f16",       "UpsampleParams",       64),
    general("upsample_bwd_bf16",    "resample.cu",       "nearest_bwd",     "bf16",      "UpsampleParams",       64),
    general("layer_norm_f16",       "layer_norm.cu",     "run",             "f16",       "LayerNormParams",      64),
    general("layer_norm_bf16",      "layer_norm.cu",     "run",             "bf16",      "LayerNormParams",      64),
    general("layer_norm_bwd_f16",   "layer_norm_bwd.cu", "run",             "f16",       "LayerNormBwdParams",   64),
    general("layer_norm_bwd_bf16",  "layer_norm_bwd.cu", "run",             "bf16",      "LayerNormBwdParams",   64),
    general("layer_norm_f16_c512",       "layer_norm.cu",      "warps",           "f16, 2",    "LayerNormParams",      96),
    general("layer_norm_bwd_f16_c512",   "layer_norm_bwd.cu",  "warps",           "f16, 2",    "LayerNormBwdParams",   128),
    general("layer_norm_f16_c1280",      "layer_norm.cu",      "warps",           "f16, 5",    "LayerNormParams",      96),
    general("layer_norm_bwd_f16_c1280",  "layer_norm_bwd.cu",  "warps",           "f16, 5",    "LayerNormBwdParams",   128),
    general("layer_norm_bf16_c512",      "layer_norm.cu",      "warps",           "bf16, 2",   "LayerNormParams",      96),
    general("layer_norm_bwd_bf16_c512",  "layer_norm_bwd.cu",  "warps",           "bf16, 2",   "LayerNormBwdParams",   128),
    general("layer_norm_bf16_c1280",     "layer_norm.cu",      "warps",           "bf16, 5",   "LayerNormParams",      96),
    general("layer_norm_bwd_bf16_c1280", "layer_norm_bwd.cu",  "warps",           "bf16, 5",   "LayerNormBwdParams",   128),
    general("group_norm_f16",       "group_norm.cu",     "run",             "f16",       "GroupNormParams",      64),
    general("group_norm_bf16",      "group_norm.cu",     "run",             "bf16",      "GroupNormParams",      64),
    general("group_norm_bwd_f16",   "group_norm_bwd.cu", "run",             "f16",       "GroupNormBwdParams",   64),
    general("group_norm_bwd_bf16",  "group_norm_bwd.cu", "run",             "bf16",      "GroupNormBwdParams",   64),
    general("group_norm_fold_f32",       "group_norm_tiled.cu","fold",            "",          "GroupFoldParams",      64),
    general("group_norm_tiles_f16",      "group_norm_tiled.cu","tiles",           "f16",       "GroupTilesParams",     80),
    general("group_norm_apply_f16",      "group_norm_tiled.cu","apply",           "f16, 0",    "GroupApplyParams",     96),
    general("group_norm_tiles_bwd_f16",  "group_norm_tiled_bwd.cu","tiles",           "f16, 0",    "GroupBwdParams",       128),
    general("group_norm_apply_bwd_f16",  "group_norm_tiled_bwd.cu","apply",           "f16, 0",    "GroupBwdParams",       128),
    general("group_norm_apply_f16_silu", "group_norm_tiled.cu","apply",           "f16, 1",    "GroupApplyParams",     96),
    general("group_norm_tiles_bwd_f16_silu","group_norm_tiled_bwd.cu","tiles",           "f16, 1",    "GroupBwdParams",       128),
    general("group_norm_apply_bwd_f16_silu","group_norm_tiled_bwd.cu","apply",           "f16, 1",    "GroupBwdParams",       128),
    general("group_norm_tiles_bf16",     "group_norm_tiled.cu","tiles",           "bf16",      "GroupTilesParams",     80),
    general("group_norm_apply_bf16",     "group_norm_tiled.cu","apply",           "bf16, 0",   "GroupApplyParams",     96),
    general("group_norm_tiles_bwd_bf16", "group_norm_tiled_bwd.cu","tiles",           "bf16, 0",   "GroupBwdParams",       128),
    general("group_norm_apply_bwd_bf16", "group_norm_tiled_bwd.cu","apply",           "bf16, 0",   "GroupBwdParams",       128),
    general("group_norm_apply_bf16_silu","group_norm_tiled.cu","apply",           "bf16, 1",   "GroupApplyParams",     96),
    general("group_norm_tiles_bwd_bf16_silu","group_norm_tiled_bwd.cu","tiles",           "bf16, 1",   "GroupBwdParams",       128),
    general("group_norm_apply_bwd_bf16_silu","group_norm_tiled_bwd.cu","apply",           "bf16, 1",   "GroupBwdParams",       128),
    general("gemm_f16",             "gemm.cu",           "run",             "f16",       "GemmParams",           64),
    general("gemm_bf16",            "gemm.cu",           "run",             "bf16",      "GemmParams",           64),
    tiled("gemm_f16_m128n160k32s4",      "gemm_tile.cu",     "f16, 128, 160, 32, 4", "GemmTileParams", 81920, 255),
    tiled("gemm_bf16_m128n160k32s4",     "gemm_tile.cu",     "bf16, 128, 160, 32, 4","GemmTileParams", 81920, 255),
    tiled("gemm_f16_m128n128k32s4",      "gemm_tile.cu",     "f16, 128, 128, 32, 4", "GemmTileParams", 65536, 255),
    tiled("gemm_bf16_m128n128k32s4",     "gemm_tile.cu",     "bf16, 128, 128, 32, 4","GemmTileParams", 65536, 255),
    tiled("gemm_f16_m128n64k32s4",       "gemm_tile.cu",     "f16, 128, 64, 32, 4",  "GemmTileParams", 49152, 168),
    tiled("gemm_bf16_m128n64k32s4",      "gemm_tile.cu",     "bf16, 128, 64, 32, 4", "GemmTileParams", 49152, 168),
    tiled("gemm_f16_m64n64k32s4",        "gemm_tile.cu",     "f16, 64, 64, 32, 4",   "GemmTileParams", 32768, 128),
    tiled("gemm_bf16_m64n64k32s4",       "gemm_tile.cu",     "bf16, 64, 64, 32, 4",  "GemmTileParams", 32768, 128),
    tiled("gemm_bwd_f16_m128n160k32s4",  "gemm_tile_bwd.cu", "f16, 128, 160, 32, 4", "GemmTileParams", 81920, 255),
    tiled("gemm_bwd_bf16_m128n160k32s4", "gemm_tile_bwd.cu", "bf16, 128, 160, 32, 4","GemmTileParams", 81920, 255),
    tiled("gemm_bwd_f16_m128n128k32s4",  "gemm_tile_bwd.cu", "f16, 128, 128, 32, 4", "GemmTileParams", 65536, 255),
    tiled("gemm_bwd_bf16_m128n128k32s4", "gemm_tile_bwd.cu", "bf16, 128, 128, 32, 4","GemmTileParams", 65536, 255),
    tiled("gemm_bwd_f16_m128n64k32s4",   "gemm_tile_bwd.cu", "f16, 128, 64, 32, 4",  "GemmTileParams", 49152, 168),
    tiled("gemm_bwd_bf16_m128n64k32s4",  "gemm_tile_bwd.cu", "bf16, 128, 64, 32, 4", "GemmTileParams", 49152, 168),
    tiled("gemm_bwd_f16_m64n64k32s4",    "gemm_tile_bwd.cu", "f16, 64, 64, 32, 4",   "GemmTileParams", 32768, 128),
    tiled("gemm_bwd_bf16_m64n64k32s4",   "gemm_tile_bwd.cu", "bf16, 64, 64, 32, 4",  "GemmTileParams", 32768, 128),
    hopper("gemm_f16_m256n128k64s3_sm90",        "gemm_sm90.cu", "f16, 2, 128, 3, false", "GemmSm90Params", 214016),
    hopper("gemm_bf16_m256n128k64s3_sm90",       "gemm_sm90.cu", "bf16, 2, 128, 3, false", "GemmSm90Params", 214016),
    hopper("gemm_f16_m128n160k64s4_sm90",        "gemm_sm90.cu", "f16, 1, 160, 4, false", "GemmSm90Params", 230400),
    hopper("gemm_bf16_m128n160k64s4_sm90",       "gemm_sm90.cu", "bf16, 1, 160, 4, false", "GemmSm90Params", 230400),
    hopper("gemm_f16_m128n64k64s4_sm90",         "gemm_sm90.cu", "f16, 1, 64, 4, false", "GemmSm90Params", 132096),
    hopper("gemm_bf16_m128n64k64s4_sm90",        "gemm_sm90.cu", "bf16, 1, 64, 4, false", "GemmSm90Params", 132096),
    hopper("gemm_bwd_f16_m256n128k64s3_sm90",    "gemm_sm90.cu", "f16, 2, 128, 3, true", "GemmSm90Params", 214016),
    hopper("gemm_bwd_bf16_m256n128k64s3_sm90",   "gemm_sm90.cu", "bf16, 2, 128, 3, true", "GemmSm90Params", 214016),
    hopper("gemm_bwd_f16_m128n160k64s4_sm90",    "gemm_sm90.cu", "f16, 1, 160, 4, true", "GemmSm90Params", 230400),
    hopper("gemm_bwd_bf16_m128n160k64s4_sm90",   "gemm_sm90.cu", "bf16, 1, 160, 4, true", "GemmSm90Params", 230400),
    hopper("gemm_bwd_f16_m128n64k64s4_sm90",     "gemm_sm90.cu", "f16, 1, 64, 4, true", "GemmSm90Params", 132096),
    hopper("gemm_bwd_bf16_m128n64k64s4_sm90",    "gemm_sm90.cu", "bf16, 1, 64, 4, true", "GemmSm90Params", 132096),
    clustered("gemm_f16_m128n160k64s4c4_sm90",           "gemm_sm90.cu", "f16, 1, 160, 4, false, 4", "GemmSm90Params", 4),
    clustered("gemm_bf16_m128n160k64s4c4_sm90",          "gemm_sm90.cu", "bf16, 1, 160, 4, false, 4", "GemmSm90Params", 4),
    clustered("gemm_f16_m128n160k64s4c8_sm90",           "gemm_sm90.cu", "f16, 1, 160, 4, false, 8", "GemmSm90Params", 8),
    clustered("gemm_bf16_m128n160k64s4c8_sm90",          "gemm_sm90.cu", "bf16, 1, 160, 4, false, 8", "GemmSm90Params", 8),
    clustered("gemm_bwd_f16_m128n160k64s4c4_sm90",       "gemm_sm90.cu", "f16, 1, 160, 4, true, 4", "GemmSm90Params", 4),
    clustered("gemm_bwd_bf16_m128n160k64s4c4_sm90",      "gemm_sm90.cu", "bf16, 1, 160, 4, true, 4", "GemmSm90Params", 4),
    clustered("gemm_bwd_f16_m128n160k64s4c8_sm90",       "gemm_sm90.cu", "f16, 1, 160, 4, true, 8", "GemmSm90Params", 8),
    clustered("gemm_bwd_bf16_m128n160k64s4c8_sm90",      "gemm_sm90.cu", "bf16, 1, 160, 4, true, 8", "GemmSm90Params", 8),
    general("conv2d_f16",           "conv2d.cu",         "run",             "f16",       "Conv2dParams",         96),
    general("conv2d_bf16",          "conv2d.cu",         "run",             "bf16",      "Conv2dParams",         96),
    general("conv2d_bwd_f16",       "conv2d_dgrad.cu",   "run",             "f16",       "Conv2dBwdParams",      96),
    general("conv2d_bwd_bf16",      "conv2d_dgrad.cu",   "run",             "bf16",      "Conv2dBwdParams",      96),
    tiled("conv2d_f16_m128n128k32s4",     "conv2d_tile.cu", "f16, 128, 128, 4", "Conv2dTileParams", 65536, 255),
    tiled("conv2d_bf16_m128n128k32s4",    "conv2d_tile.cu", "bf16, 128, 128, 4", "Conv2dTileParams", 65536, 255),
    tiled("conv2d_f16_m128n64k32s4",      "conv2d_tile.cu", "f16, 128, 64, 4", "Conv2dTileParams", 49152, 184),
    tiled("conv2d_bf16_m128n64k32s4",     "conv2d_tile.cu", "bf16, 128, 64, 4", "Conv2dTileParams", 49152, 184),
    tiled("conv2d_f16_m64n64k32s4",       "conv2d_tile.cu", "f16, 64, 64, 4", "Conv2dTileParams", 32768, 144),
    tiled("conv2d_bf16_m64n64k32s4",      "conv2d_tile.cu", "bf16, 64, 64, 4", "Conv2dTileParams", 32768, 144),
    tiled("conv2d_bwd_f16_m128n128k32s4", "conv2d_dgrad_tile.cu", "f16, 128, 128, 4", "Conv2dBwdTileParams", 65536, 255),
    tiled("conv2d_bwd_bf16_m128n128k32s4","conv2d_dgrad_tile.cu", "bf16, 128, 128, 4", "Conv2dBwdTileParams", 65536, 255),
    tiled("conv2d_bwd_f16_m128n64k32s4",  "conv2d_dgrad_tile.cu", "f16, 128, 64, 4", "Conv2dBwdTileParams", 49152, 184),
    tiled("conv2d_bwd_bf16_m128n64k32s4", "conv2d_dgrad_tile.cu", "bf16, 128, 64, 4", "Conv2dBwdTileParams", 49152, 184),
    tiled("conv2d_bwd_f16_m64n64k32s4",   "conv2d_dgrad_tile.cu", "f16, 64, 64, 4", "Conv2dBwdTileParams", 32768, 144),
    tiled("conv2d_bwd_bf16_m64n64k32s4",  "conv2d_dgrad_tile.cu", "bf16, 64, 64, 4", "Conv2dBwdTileParams", 32768, 144),
    gathered("conv2d_f16_gather_m64n64",      "run",         "f16, 64, 64", "Conv2dParams"),
    gathered("conv2d_bwd_f16_gather_m64n64",  "backward",    "f16, 64, 64", "Conv2dBwdParams"),
    gathered("conv2d_bwd_f16_patches_m64n64", "patches_bwd", "f16, 64, 64", "Conv2dBwdParams"),
    gathered("conv2d_bf16_gather_m64n64",      "run",         "bf16, 64, 64", "Conv2dParams"),
    gathered("conv2d_bwd_bf16_gather_m64n64",  "backward",    "bf16, 64, 64", "Conv2dBwdParams"),
    gathered("conv2d_bwd_bf16_patches_m64n64", "patches_bwd", "bf16, 64, 64", "Conv2dBwdParams"),
    narrow("conv2d_f16_n8",     "run",      "f16", "Conv2dParams"),
    narrow("conv2d_bwd_f16_n8", "backward", "f16", "Conv2dBwdParams"),
    narrow("conv2d_bf16_n8",     "run",      "bf16", "Conv2dParams"),
    narrow("conv2d_bwd_bf16_n8", "backward", "bf16", "Conv2dBwdParams"),
    hopper("conv2d_f16_m256n128k64s3_sm90",        "conv2d_sm90.cu", "f16, 2, 128, 3", "Conv2dSm90Params", 214016),
    hopper("conv2d_bf16_m256n128k64s3_sm90",       "conv2d_sm90.cu", "bf16, 2, 128, 3", "Conv2dSm90Params", 214016),
    hopper("conv2d_f16_m128n160k64s4_sm90",        "conv2d_sm90.cu", "f16, 1, 160, 4", "Conv2dSm90Params", 230400),
    hopper("conv2d_bf16_m128n160k64s4_sm90",       "conv2d_sm90.cu", "bf16, 1, 160, 4", "Conv2dSm90Params", 230400),
    hopper("conv2d_f16_m128n64k64s4_sm90",         "conv2d_sm90.cu", "f16, 1, 64, 4", "Conv2dSm90Params", 132096),
    hopper("conv2d_bf16_m128n64k64s4_sm90",        "conv2d_sm90.cu", "bf16, 1, 64, 4", "Conv2dSm90Params", 132096),
    hopper("conv2d_bwd_f16_m256n128k64s3_sm90",    "conv2d_dgrad_sm90.cu", "f16, 2, 128, 3", "Conv2dBwdSm90Params", 214016),
    hopper("conv2d_bwd_bf16_m256n128k64s3_sm90",   "conv2d_dgrad_sm90.cu", "bf16, 2, 128, 3", "Conv2dBwdSm90Params", 214016),
    hopper("conv2d_bwd_f16_m128n160k64s4_sm90",    "conv2d_dgrad_sm90.cu", "f16, 1, 160, 4", "Conv2dBwdSm90Params", 230400),
    hopper("conv2d_bwd_bf16_m128n160k64s4_sm90",   "conv2d_dgrad_sm90.cu", "bf16, 1, 160, 4", "Conv2dBwdSm90Params", 230400),
    hopper("conv2d_bwd_f16_m128n64k64s4_sm90",     "conv2d_dgrad_sm90.cu", "f16, 1, 64, 4", "Conv2dBwdSm90Params", 132096),
    hopper("conv2d_bwd_bf16_m128n64k64s4_sm90",    "conv2d_dgrad_sm90.cu", "bf16, 1, 64, 4", "Conv2dBwdSm90Params", 132096),
    clustered("conv2d_f16_m128n160k64s4c4_sm90",         "conv2d_sm90.cu", "f16, 1, 160, 4, 4", "Conv2dSm90Params", 4),
    clustered("conv2d_bf16_m128n160k64s4c4_sm90",        "conv2d_sm90.cu", "bf16, 1, 160, 4, 4", "Conv2dSm90Params", 4),
    clustered("conv2d_f16_m128n160k64s4c8_sm90",         "conv2d_sm90.cu", "f16, 1, 160, 4, 8", "Conv2dSm90Params", 8),
    clustered("conv2d_bf16_m128n160k64s4c8_sm90",        "conv2d_sm90.cu", "bf16, 1, 160, 4, 8", "Conv2dSm90Params", 8),
    clustered("conv2d_bwd_f16_m128n160k64s4c4_sm90",     "conv2d_dgrad_sm90.cu", "f16, 1, 160, 4, 4", "Conv2dBwdSm90Params", 4),
    clustered("conv2d_bwd_bf16_m128n160k64s4c4_sm90",    "conv2d_dgrad_sm90.cu", "bf16, 1, 160, 4, 4", "Conv2dBwdSm90Params", 4),
    clustered("conv2d_bwd_f16_m128n160k64s4c8_sm90",     "conv2d_dgrad_sm90.cu", "f16, 1, 160, 4, 8", "Conv2dBwdSm90Params", 8),
    clustered("conv2d_bwd_bf16_m128n160k64s4c8_sm90",    "conv2d_dgrad_sm90.cu", "bf16, 1, 160, 4, 8", "Conv2dBwdSm90Params", 8),
    general("attention_f16",        "attention.cu",      "run",             "f16",       "AttentionParams",      64),
    general("attention_bf16",       "attention.cu",      "run",             "bf16",      "AttentionParams",      64),
    general("attention_bwd_f16",        "attention_bwd.cu", "run",        "f16",                     "AttentionBwdParams", 80),
    general("attention_bwd_delta_f16",  "attention_bwd.cu", "delta",      "f16",                     "AttentionBwdParams", 40),
    general("attention_bwd_bf16",       "attention_bwd.cu", "run",        "bf16",                    "AttentionBwdParams", 80),
    general("attention_bwd_delta_bf16", "attention_bwd.cu", "delta",      "bf16",                    "AttentionBwdParams", 40),
    heads("attention_f16_d40",           "attention_mma.cu",     "run",     "f16, 40",   "AttentionParams",    49152, 255),
    heads("attention_f16_d64",           "attention_mma.cu",     "run",     "f16, 64",   "AttentionParams",    65536, 255),
    heads("attention_f16_d80",           "attention_mma.cu",     "run",     "f16, 80",   "AttentionParams",    40960, 255),
    heads("attention_f16_d160",          "attention_mma.cu",     "run",     "f16, 160",  "AttentionParams",    81920, 255),
    heads("attention_bf16_d40",          "attention_mma.cu",     "run",     "bf16, 40",  "AttentionParams",    49152, 255),
    heads("attention_bf16_d64",          "attention_mma.cu",     "run",     "bf16, 64",  "AttentionParams",    65536, 255),
    heads("attention_bf16_d80",          "attention_mma.cu",     "run",     "bf16, 80",  "AttentionParams",    40960, 255),
    heads("attention_bf16_d160",         "attention_mma.cu",     "run",     "bf16, 160", "AttentionParams",    81920, 255),
    hopper("attention_f16_d40k80_sm90", "attention_sm90.cu", "f16, 40, 80", "AttentionSm90Params", 95232),
    hopper("attention_f16_d40k128_sm90", "attention_sm90.cu", "f16, 40, 128", "AttentionSm90Params", 132096),
    hopper("attention_f16_d64k80_sm90", "attention_sm90.cu", "f16, 64, 80", "AttentionSm90Params", 95232),
    hopper("attention_f16_d64k128_sm90", "attention_sm90.cu", "f16, 64, 128", "AttentionSm90Params", 132096),
    hopper("attention_f16_d80k80_sm90", "attention_sm90.cu", "f16, 80, 80", "AttentionSm90Params", 142336),
    hopper("attention_f16_d80k128_sm90", "attention_sm90.cu", "f16, 80, 128", "AttentionSm90Params", 197632),
    hopper("attention_f16_d160k80_sm90", "attention_sm90.cu", "f16, 160, 80", "AttentionSm90Params", 185344),
    hopper("attention_f16_d160k128_sm90", "attention_sm90.cu", "f16, 160, 128", "AttentionSm90Params", 205824),
    hopper("attention_bf16_d40k80_sm90", "attention_sm90.cu", "bf16, 40, 80", "AttentionSm90Params", 95232),
    hopper("attention_bf16_d40k128_sm90", "attention_sm90.cu", "bf16, 40, 128", "AttentionSm90Params", 132096),
    hopper("attention_bf16_d64k80_sm90", "attention_sm90.cu", "bf16, 64, 80", "AttentionSm90Params", 95232),
    hopper("attention_bf16_d64k128_sm90", "attention_sm90.cu", "bf16, 64, 128", "AttentionSm90Params", 132096),
    hopper("attention_bf16_d80k80_sm90", "attention_sm90.cu", "bf16, 80, 80", "AttentionSm90Params", 142336),
    hopper("attention_bf16_d80k128_sm90", "attention_sm90.cu", "bf16, 80, 128", "AttentionSm90Params", 197632),
    hopper("attention_bf16_d160k80_sm90", "attention_sm90.cu", "bf16, 160, 80", "AttentionSm90Params", 185344),
    hopper("attention_bf16_d160k128_sm90", "attention_sm90.cu", "bf16, 160, 128", "AttentionSm90Params", 205824),
    hopper("attention_bwd_f16_d64k64_sm90", "attention_bwd_sm90.cu", "f16, 64", "AttentionBwdSm90Params", 132096),
    hopper("attention_bwd_bf16_d64k64_sm90", "attention_bwd_sm90.cu", "bf16, 64", "AttentionBwdSm90Params", 132096),
    heads("attention_bwd_dq_f16_d40",    "attention_bwd_dq.cu",  "run", "f16, 40",   "AttentionBwdParams", 49152, 192),
    heads("attention_bwd_dkv_f16_d40",   "attention_bwd_dkv.cu", "run", "f16, 40",   "AttentionBwdParams", 49152, 255),
    heads("attention_bwd_dq_f16_d64",    "attention_bwd_dq.cu",  "run", "f16, 64",   "AttentionBwdParams", 65536, 192),
    heads("attention_bwd_dkv_f16_d64",   "attention_bwd_dkv.cu", "run", "f16, 64",   "AttentionBwdParams", 65536, 255),
    heads("attention_bwd_dq_f16_d80",    "attention_bwd_dq.cu",  "run", "f16, 80",   "AttentionBwdParams", 51200, 192),
    heads("attention_bwd_dkv_f16_d80",   "attention_bwd_dkv.cu", "run", "f16, 80",   "AttentionBwdParams", 51200, 255),
    heads("attention_bwd_dq_f16_d160",   "attention_bwd_dq.cu",  "run", "f16, 160",  "AttentionBwdParams", 71680, 192),
    heads("attention_bwd_dkv_f16_d160",  "attention_bwd_dkv.cu", "run", "f16, 160",  "AttentionBwdParams", 71680, 255),
    heads("attention_bwd_dq_bf16_d40",   "attention_bwd_dq.cu",  "run", "bf16, 40",  "AttentionBwdParams", 49152, 192),
    heads("attention_bwd_dkv_bf16_d40",  "attention_bwd_dkv.cu", "run", "bf16, 40",  "AttentionBwdParams", 49152, 255),
    heads("attention_bwd_dq_bf16_d64",   "attention_bwd_dq.cu",  "run", "bf16, 64",  "AttentionBwdParams", 65536, 192),
    heads("attention_bwd_dkv_bf16_d64",  "attention_bwd_dkv.cu", "run", "bf16, 64",  "AttentionBwdParams", 65536, 255),
    heads("attention_bwd_dq_bf16_d80",   "attention_bwd_dq.cu",  "run", "bf16, 80",  "AttentionBwdParams", 51200, 192),
    heads("attention_bwd_dkv_bf16_d80",  "attention_bwd_dkv.cu", "run", "bf16, 80",  "AttentionBwdParams", 51200, 255),
    heads("attention_bwd_dq_bf16_d160",  "attention_bwd_dq.cu",  "run", "bf16, 160", "AttentionBwdParams", 71680, 192),
    heads("attention_bwd_dkv_bf16_d160", "attention_bwd_dkv.cu", "run", "bf16, 160", "AttentionBwdParams", 71680, 255),
    general("softmax_f16",              "softmax.cu",       "run",        "f16",                     "SoftmaxParams",      48),
    general("softmax_bwd_f16",          "softmax.cu",       "backward",   "f16",                     "SoftmaxParams",      48),
    general("round_rows_f16",           "softmax.cu",       "round_rows", "f16",                     "SoftmaxParams",      48),
    general("softmax_bf16",             "softmax.cu",       "run",        "bf16",                    "SoftmaxParams",      48),
    general("softmax_bwd_bf16",         "softmax.cu",       "backward",   "bf16",                    "SoftmaxParams",      48),
    general("round_rows_bf16",          "softmax.cu",       "round_rows", "bf16",                    "SoftmaxParams",      48),
    general("attention_product_nt_f16",      "attention_product.cu", "run",        "f16, f32, attention_product::NT",   "ProductParams",      64),
    general("attention_product_nn_f16",      "attention_product.cu", "run",        "f16, f16, attention_product::NN",   "ProductParams",      64),
    general("attention_product_tn_f16",      "attention_product.cu", "run",        "f16, f32, attention_product::TN",   "ProductParams",      64),
    general("attention_product_nt_bf16",     "attention_product.cu", "run",        "bf16, f32, attention_product::NT",  "ProductParams",      64),
    general("attention_product_nn_bf16",     "attention_product.cu", "run",        "bf16, bf16, attention_product::NN", "ProductParams",      64),
    general("attention_product_tn_bf16",     "attention_product.cu", "run",        "bf16, f32, attention_product::TN",  "ProductParams",      64),
    product("attention_product_nt_f16_m128n128k32s3",  "f16, f32, attention_product_tile::NT"),
    product("attention_product_nn_f16_m128n128k32s3",  "f16, f16, attention_product_tile::NN"),
    product("attention_product_tn_f16_m128n128k32s3",  "f16, f32, attention_product_tile::TN"),
    product("attention_product_nt_bf16_m128n128k32s3", "bf16, f32, attention_product_tile::NT"),
    product("attention_product_nn_bf16_m128n128k32s3", "bf16, bf16, attention_product_tile::NN"),
    product("attention_product_tn_bf16_m128n128k32s3", "bf16, f32, attention_product_tile::TN"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_grammar() {
        for (i, kernel) in KERNELS.iter().enumerate() {
            assert!(KERNELS[..i].iter().all(|other| other.name != kernel.name), "{} twice", kernel.name);
            let typed = ["_f16", "_bf16", "_f32"].iter().any(|dtype| kernel.name.contains(dtype));
            assert!(typed, "{} does not say its type", kernel.name);
            assert!(kernel.file.ends_with(".cu") && kernel.threads % 32 == 0 && kernel.registers <= 255);
        }
    }

    #[test]
    fn an_entry_names_the_function_its_arguments_and_its_params() {
        let entry = find("activate_f16").expect("a row").entry();
        let call = "KERNEL_ENTRY(activate_f16, 256, PointwiseParams, pointwise::activate<f16>)\n";
        assert!(entry.ends_with(call), "{entry}");
    }

    #[test]
    fn only_rows_for_hopper_are_left_out_of_other_targets() {
        assert!(TARGETS.iter().all(|target| Arch::Sm80.runs_on(target)));
        assert!(TARGETS.iter().filter(|target| Arch::Sm90a.runs_on(target)).eq(["sm_90a"].iter()));
    }
}
