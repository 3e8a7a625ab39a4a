//! Where a run computes, and in which type: `--device`, `--cpu` and `--dtype`.

use super::args::{DTypeArg, GenerateArgs};
use crate::cuda;
use crate::error::{Error, Result};
use crate::launch::Storage;
use crate::manifest::TARGETS;

/// Where a run computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The kernels of GPUs on the CPU: those of that one of [`TARGETS`].
    Simt(Storage, &'static str),
    /// The GPU of that number.
    Cuda(usize, Storage),
}

impl Device {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Simt(..) => "simt",
            Self::Cuda(..) => "cuda",
        }
    }

    /// What it stores.
    pub const fn dtype(self) -> &'static str {
        match self {
            Self::Cpu => "f32",
            Self::Simt(storage, _) | Self::Cuda(_, storage) => storage.name(),
        }
    }
}

/// The device that the flags ask for, if it can be used.
pub fn device(args: &GenerateArgs) -> Result<Device> {
    let word = if args.cpu { "cpu" } else { args.device.as_str() };
    match word.split(':').next().unwrap_or_default() {
        "cpu" if word == "cpu" => cpu(args.dtype),
        "auto" if word == "auto" => match args.dtype {
            Some(DTypeArg::F32) => Ok(Device::Cpu),
            dtype => match cuda::first_usable() {
                Ok(gpu) => Ok(Device::Cuda(gpu.ordinal, storage(dtype)?)),
                Err(error) => {
                    let device = cpu(dtype)?;
                    tracing::warn!("computing on the CPU: {error}");
                    Ok(device)
                }
            },
        },
        "simt" => {
            let storage = storage(args.dtype)?;
            let arch =
                word.strip_prefix("simt").and_then(|rest| rest.strip_prefix(':')).unwrap_or(TARGETS[0]);
            let target = TARGETS.into_iter().find(|target| *target == arch).ok_or_else(|| {
                let problem = format!("expected simt or simt:ARCH of {}, found `{word}`", TARGETS.join(", "));
                Error::usage("--device", problem)
            })?;
            if cfg!(feature = "simt") {
                return Ok(Device::Simt(storage, target));
            }
            let problem = "this build has no simulated device: build it with `--features simt`, which takes a C++ \
                           compiler; or use --device cpu";
            Err(Error::Device { device: word.to_owned(), problem: problem.to_owned() })
        }
        "cuda" => {
            let storage = storage(args.dtype)?;
            let ordinal = match word.strip_prefix("cuda").and_then(|rest| rest.strip_prefix(':')) {
                None => 0,
                Some(digits) => digits.parse().map_err(|_| {
                    Error::usage("--device", format!("expected cuda or cuda:N, found `{word}`"))
                })?,
            };
            cuda::usable(ordinal).map(|_| Device::Cuda(ordinal, storage))
        }
        _ => {
            let problem = format!("expected auto, cpu, simt[:ARCH] or cuda[:N], found `{word}`");
            Err(Error::usage("--device", problem))
        }
    }
}

fn cpu(dtype: Option<DTypeArg>) -> Result<Device> {
    match dtype {
        None | Some(DTypeArg::F32) => Ok(Device::Cpu),
        Some(_) => Err(Error::usage("--dtype", "the CPU computes in f32; leave it out or say f32")),
    }
}

/// What a device with kernels stores.
pub fn storage(dtype: Option<DTypeArg>) -> Result<Storage> {
    match dtype {
        None | Some(DTypeArg::F16) => Ok(Storage::F16),
        Some(DTypeArg::Bf16) => Ok(Storage::Bf16),
        Some(DTypeArg::F32) => {
            Err(Error::usage("--dtype", "the kernels store f16 or bf16; f32 is for --device cpu"))
        }
    }
}
