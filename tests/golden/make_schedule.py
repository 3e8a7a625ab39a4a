"""Writes schedule.json: timesteps, alphas and DDIM steps of diffusers, for tests/sampler.rs.

Written with diffusers 0.42.1, torch 2.15.0, numpy 2 (pip install diffusers==0.42.1 torch==2.15.0). The
alphas are diffusers' own float32 ones; the steps are taken by its DDIMScheduler.step on float64 tensors with
those alphas widened, so that what is compared is the formula and not the rounding.
"""

import json
import pathlib

import diffusers
import torch
from diffusers import DDIMScheduler

assert diffusers.__version__ == "0.42.1" and torch.__version__.startswith("2.15.0")
STEPS = [1, 2, 7, 20, 30, 50, 999, 1000]
SD = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
CONFIGS = {
    "sd": SD,
    "linear": dict(clip_sample=False),
    "cosine": dict(clip_sample=False, beta_schedule="squaredcos_cap_v2", num_train_timesteps=500),
    "zero_snr": dict(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "trained": dict(clip_sample=False, trained_betas=[0.1, 0.2, 0.3, 0.4, 0.5], num_train_timesteps=5),
    "short": dict(SD, num_train_timesteps=37),
}
ALPHAS_AT = [0, 1, 2, 3, 7, 21, 36, 41, 261, 499, 501, 502, 761, 981, 998, 999]


def alphas(config):
    table = DDIMScheduler(**config).alphas_cumprod
    at = [i for i in ALPHAS_AT if i < len(table)]
    return {
        "config": config,
        "at": at,
        "alphas": [table[i].item() for i in at],
        "sum": table.double().sum().item(),
    }


def timesteps(spacing, offset, steps):
    scheduler = DDIMScheduler(**dict(SD, timestep_spacing=spacing, steps_offset=offset))
    scheduler.set_timesteps(steps)
    all_ = scheduler.timesteps.tolist()
    kept = all_ if len(all_) <= 50 else all_[:5] + all_[-5:]
    return {
        "spacing": spacing,
        "offset": offset,
        "steps": steps,
        "count": len(all_),
        "ends": kept,
        "sum": sum(all_),
    }


def run(prediction, spacing, zero_snr, steps, eta, to_one):
    """A chain of DDIM steps on four numbers; the model's output and the noise are closed formulas."""
    config = dict(
        SD,
        prediction_type=prediction,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
        set_alpha_to_one=to_one,
    )
    scheduler = DDIMScheduler(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    z = torch.tensor([0.5, -1.25, 2.0, 0.0], dtype=torch.float64)
    taken = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        m = torch.tensor([((7 * i + 3 * j) % 11) / 8 - 0.625 for j in range(4)], dtype=torch.float64)
        noise = torch.tensor([((5 * i + 2 * j) % 9) / 4 - 1.0 for j in range(4)], dtype=torch.float64)
        step = scheduler.step(m, t, z, eta=eta, variance_noise=noise if eta > 0 else None)
        z = step.prev_sample
        taken.append({"t": t, "x0": step.pred_original_sample.tolist(), "prev": z.tolist()})
    return {"config": config, "steps": steps, "eta": eta, "taken": taken}


RUNS = [
    (prediction, spacing, zero_snr, steps, eta, to_one)
    for prediction, spacing, zero_snr in [
        ("epsilon", "leading", False),
        ("v_prediction", "leading", False),
        ("v_prediction", "trailing", True),
        ("sample", "linspace", False),
        ("sample", "trailing", True),
    ]
    for eta in [0.0, 0.5, 1.0]
    for steps, to_one in [(4, False), (7, True)]
]
golden = {
    "alphas": [alphas(config) for config in CONFIGS.values()],
    "timesteps": [
        timesteps(spacing, offset, steps)
        for spacing, offset in [("leading", 1), ("leading", 0), ("trailing", 1), ("linspace", 1)]
        for steps in STEPS
    ],
    "runs": [run(*case) for case in RUNS],
}
pathlib.Path(__file__).with_name("schedule.json").write_text(json.dumps(golden) + "\n")
