//! What launches are looked at for: the target of the binaries, and the device whose limits are their floors.

use crate::cuda;
use crate::error::{Error, Result};
use crate::launch::device::{GPUS, Gpu, target};

/// The target of `--arch`, else that of the device that measures, else that of `--gpu`; and the device of `--gpu`, else
/// the one that measures, if it is known, else the first that runs the target.
///
/// There is none where nobody has put limits of such a device down: floors are then unknown, not those of another one.
///
/// # Errors
/// Words that name nothing, and a device that does not run the target.
pub fn floors(
    arch: Option<&str>,
    gpu: Option<&str>,
    measures: Option<&cuda::Gpu>,
) -> Result<(&'static str, Option<&'static Gpu>)> {
    let named = gpu.map(named).transpose()?;
    let target = match (arch, measures, named) {
        (Some(word), ..) => target(word)?,
        (None, Some(gpu), _) => target_of(gpu)?,
        (None, None, Some(gpu)) => gpu.target,
        (None, None, None) => GPUS[0].target,
    };
    if let Some(gpu) = named.filter(|gpu| gpu.target != target) {
        let problem = format!("{} runs {}, and the binaries are for {target}", gpu.name, gpu.target);
        return Err(Error::usage("--gpu", problem));
    }
    let by_name = |gpu: &cuda::Gpu| {
        let name = gpu.name.to_lowercase().replace(' ', "");
        GPUS.iter().find(|known| known.target == target && name.contains(known.name))
    };
    Ok((target, named.or_else(|| measures.and_then(by_name)).or_else(|| Gpu::of_target(target))))
}

/// What runs on a device of this machine.
pub fn target_of(gpu: &cuda::Gpu) -> Result<&'static str> {
    gpu.target().map_err(|problem| Error::Device { device: gpu.name.clone(), problem })
}

fn named(word: &str) -> Result<&'static Gpu> {
    Gpu::named(word).ok_or_else(|| {
        let names: Vec<_> = GPUS.iter().map(|gpu| gpu.name).collect();
        Error::usage("--gpu", format!("expected one of {}, found `{word}`", names.join(", ")))
    })
}
