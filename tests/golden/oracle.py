"""The computation behind the goldens: one sampling loop and a few single-module probes in plain PyTorch.

Everything here runs on models loaded by diffusers and transformers, in float32 (or float64, to see how much of a
difference is rounding). Latents are z, predictions are converted to eps and x0 as DDIM does, images are NCHW.
Conventions: pixels are (v + 1) / 2, unclamped, squashed to n x n by bicubic without antialias; cosines are raw;
a gate opens where the largest cosine is >= the threshold; the logarithm's argument is at least 1e-6; guidance acts on
the x0 of the classifier-free-guided prediction.

A trace has the keys of `unguide generate --trace`, for every step: `latents` (z before the step), `eps` and `x0` (of the
combined prediction, before any unguidance), `prev` (z after it); guarded runs add `scores` (all concepts), `gate`,
`gradient` and `x0_guided`. What differs between methods:
- safe-sampling: `gradient` is d log p_h / d x0, zero where the gate was shut, without gamma.
- classifier-guidance: ungated, so `gate` is 1; `gradient` is d log p_h / d x_t through the UNet (all rows of the
  combination), or (d log p_h / d x0) / sqrt(alpha) with the UNet frozen. The step uses
  eps' = eps + gamma sqrt(1 - alpha) gradient for its x0 (`x0_guided`) and for its direction.
- sld: its formulas act on the raw UNet outputs (as diffusers' pipeline does, whatever the prediction type); `eps` is
  converted afterwards and so contains the safety guidance.
- eta > 0: an image's noise comes from the generator that drew its start latents, one draw a step, the last included.

A probe is `NAME.input`, `.output`, `.cotangent` and `.vjp` (the cotangent's product with the Jacobian): `unet.tNNN` wrt z
with `unet.context`, `vae` on an already unscaled latent to an image around [-1, 1], `resize` in [0, 1], `clip.image` from
normalised pixels to unnormalised features. `guard.REDUCE` holds log p_h of an x0 and its gradient (sum-log: top 2).
"""
import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

FLOOR = 1e-6


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def pooled(x):
    return x if torch.is_tensor(x) else x.pooler_output


@dataclass
class Models:
    """One checkpoint directory, loaded, frozen, in one dtype."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    clip: CLIPModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    mean: torch.Tensor
    std: torch.Tensor

    @staticmethod
    def load(root: Path) -> "Models":
        def one(cls, part, **options):
            return cls.from_pretrained(root / part, torch_dtype=torch.float32, **options).eval().requires_grad_(False)

        pre = json.loads((root / "clip/preprocessor_config.json").read_text())
        scheduler = json.loads((root / "scheduler/scheduler_config.json").read_text())
        taken = set(DDIMScheduler().config) & set(scheduler)
        return Models(
            one(UNet2DConditionModel, "unet"),
            one(AutoencoderKL, "vae", low_cpu_mem_usage=False),
            one(CLIPTextModel, "text_encoder"),
            one(CLIPModel, "clip"),
            CLIPTokenizer.from_pretrained(root / "tokenizer"),
            DDIMScheduler(**{k: scheduler[k] for k in taken}),
            *(torch.tensor(pre[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std")),
        )

    def double(self) -> "Models":
        wide = copy.deepcopy(self)
        for part in (wide.unet, wide.vae, wide.text, wide.clip):
            part.double()
        wide.mean, wide.std = wide.mean.double(), wide.std.double()
        wide.scheduler.alphas_cumprod = wide.scheduler.alphas_cumprod.double()
        wide.scheduler.final_alpha_cumprod = wide.scheduler.final_alpha_cumprod.double()
        return wide

    @property
    def dtype(self):
        return self.unet.dtype

    def ids(self, texts, length):
        return self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def context(self, texts):
        return self.text(self.ids(texts, self.text.config.max_position_embeddings))[0]

    def concepts(self, texts):
        ids = self.ids(texts, self.clip.config.text_config.max_position_embeddings)
        return pooled(self.clip.get_text_features(ids))

    def decode(self, x0):
        return self.vae.decode(x0 / self.vae.config.scaling_factor).sample

    def resize(self, pixels):
        n = self.clip.config.vision_config.image_size
        return F.interpolate(pixels, size=(n, n), mode="bicubic", align_corners=False, antialias=False)

    def image_features(self, normalised):
        return pooled(self.clip.get_image_features(normalised))

    def scores(self, x0, unit_concepts):
        u = (self.resize((self.decode(x0) + 1) / 2) - self.mean) / self.std
        return unit(self.image_features(u)) @ unit_concepts.T


def log_density(scores, reduce, top_k):
    """log p_h per sample from the scores [B, K]."""
    if top_k:
        scores = scores.topk(top_k, dim=1).values
    if reduce == "log-mean":
        return scores.mean(1).clamp_min(FLOOR).log()
    return scores.clamp_min(FLOOR).log().sum(1)


def split(prediction_type, out, z, alpha):
    """(eps, x0) from what the UNet said."""
    a, s = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "epsilon":
        return out, (z - s * out) / a
    if prediction_type == "v_prediction":
        return a * out + s * z, a * z - s * out
    return (z - a * out) / s, out


class Sld:
    """Safe Latent Diffusion on the raw UNet outputs, rows uncond, prompt, safety; nu lives as long as the run."""

    def __init__(self, p):
        self.p, self.nu = p, 0.0

    def __call__(self, step, uncond, prompt, safety, guidance):
        p = self.p
        phi = prompt - safety
        mu = torch.where(phi >= p["threshold"], torch.zeros_like(phi), (phi.abs() * p["scale"]).clamp(max=1.0))
        self.closest = float((phi - p["threshold"]).abs().min())
        gamma = mu * (safety - uncond) + p["momentum_scale"] * self.nu
        self.nu = p["momentum_beta"] * self.nu + (1 - p["momentum_beta"]) * gamma
        steer = prompt - uncond
        return uncond + guidance * (steer - gamma if step >= p["warmup"] else steer)


def start(seeds, shape, dtype):
    """One generator per image; the start latents are its first draw."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    return generators, torch.cat([torch.randn(1, *shape, generator=g) for g in generators]).to(dtype)


@torch.no_grad()
def trace(m: Models, case: dict, run: dict):
    """The trace of one run, and notes: how near a decision was to flipping."""
    method, guidance, gamma = run["method"], run["guidance"], run.get("gamma", 0.0)
    batch, out = len(case["prompts"]), {}
    notes = {"gate_margin": [], "top_k_margin": [], "sld_margin": [], "p_h": []}
    generators, z = start(case["seeds"], (4, *case["latent_size"]), m.dtype)
    rows = [m.context(case["prompts"])]
    if guidance > 1:
        rows.insert(0, m.context([case["negative"]] * batch))
    if method == "sld":
        rows.append(m.context([run["sld"]["concept"]] * batch))
        sld = Sld(run["sld"])
    context = torch.cat(rows)
    concepts = unit(m.concepts(case["concepts"]))
    scheduler = m.scheduler
    scheduler.set_timesteps(run["steps"])

    def predict(z, i, t):
        said = m.unet(torch.cat([z] * len(rows)), t, encoder_hidden_states=context).sample.chunk(len(rows))
        if method == "sld":
            return sld(i, *said, guidance)
        return said[0] if len(said) == 1 else said[0] + guidance * (said[1] - said[0])

    def guard(x0):
        s = m.scores(x0, concepts)
        return s, log_density(s, run["reduce"], run["top_k"])

    for i, t in enumerate(scheduler.timesteps):
        key = f"step.{i:03d}."
        alpha = scheduler.alphas_cumprod[t]
        before = t - scheduler.config.num_train_timesteps // run["steps"]
        alpha_prev = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
        out[key + "latents"] = z
        prediction_type = scheduler.config.prediction_type
        if method == "classifier-guidance":
            with torch.enable_grad():
                leaf = z.clone().requires_grad_(True)
                eps, x0 = split(prediction_type, predict(leaf, i, t), leaf, alpha)
                s, log_p = guard(x0)
                g = torch.autograd.grad(log_p.sum(), leaf)[0]
            eps, x0, s = eps.detach(), x0.detach(), s.detach()
        else:
            eps, x0 = split(prediction_type, predict(z, i, t), z, alpha)
        if method in ("safe-sampling", "classifier-guidance:frozen-unet"):
            with torch.enable_grad():
                leaf = x0.clone().requires_grad_(True)
                s, log_p = guard(leaf)
                g = torch.autograd.grad(log_p.sum(), leaf)[0]
            s = s.detach()
        out[key + "eps"], out[key + "x0"] = eps, x0
        gate = torch.ones(batch, dtype=z.dtype)
        if method == "safe-sampling":
            top = s.max(1).values
            gate = (top >= run["threshold"]).to(z.dtype)
            open_ = gate.view(-1, 1, 1, 1) > 0
            g = torch.where(open_, g, torch.zeros_like(g))
            x0 = torch.where(open_, x0 - gamma * g, x0)
            notes["gate_margin"].append(float((top - run["threshold"]).abs().min()))
        elif method.startswith("classifier-guidance"):
            if method.endswith("frozen-unet"):
                g = g / alpha**0.5
            eps = eps + gamma * (1 - alpha) ** 0.5 * g
            x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        elif method == "sld":
            notes["sld_margin"].append(sld.closest)
        if method not in ("none", "sld"):
            out[key + "scores"], out[key + "gate"], out[key + "gradient"] = s, gate, g
            out[key + "x0_guided"] = x0
            used = s.topk(run["top_k"], dim=1).values if run["top_k"] else s
            smallest = used.mean(1) if run["reduce"] == "log-mean" else used.min(1).values
            notes["p_h"] += smallest[gate > 0].tolist()
            if run["top_k"]:
                ranked = s.sort(1, descending=True).values
                notes["top_k_margin"].append(float((ranked[:, run["top_k"] - 1] - ranked[:, run["top_k"]]).min()))
        variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
        sigma = run["eta"] * variance**0.5
        z = alpha_prev**0.5 * x0 + (1 - alpha_prev - sigma**2) ** 0.5 * eps
        if run["eta"] > 0:
            noise = torch.cat([torch.randn(1, *z.shape[1:], generator=g) for g in generators])
            z = z + sigma * noise.to(z.dtype)
        out[key + "prev"] = z
    out["final.latents"] = z
    out["final.image"] = ((m.decode(z) + 1) / 2).clamp(0, 1)
    return out, notes


def probes(m: Models, case: dict):
    """Every module alone, and every vector-Jacobian product alone, on random inputs."""
    gen = torch.Generator().manual_seed(case["probe_seed"])

    def rand(*shape):
        return torch.randn(*shape, generator=gen).to(m.dtype)

    def vjp(name, function, x, out):
        leaf = x.clone().requires_grad_(True)
        y = function(leaf)
        w = rand(*y.shape)
        out[name + ".input"], out[name + ".output"] = x, y.detach()
        out[name + ".cotangent"], out[name + ".vjp"] = w, torch.autograd.grad((y * w).sum(), leaf)[0]

    out = {}
    h, w = case["latent_size"]
    n = m.clip.config.vision_config.image_size
    with torch.no_grad():
        out["text.ids"] = m.ids(case["texts"], m.text.config.max_position_embeddings)
        out["text.hidden"] = m.text(out["text.ids"])[0]
        out["clip.text_ids"] = m.ids(case["concepts"], m.clip.config.text_config.max_position_embeddings)
        out["clip.text_features"] = m.concepts(case["concepts"])
        context = m.context(case["texts"][:2])
        z = rand(2, 4, h, w)
        out["unet.context"] = context
    for t in (981, 501, 1):
        vjp(f"unet.t{t:03d}", lambda x: m.unet(x, t, encoder_hidden_states=context).sample, z, out)
    vjp("vae", lambda x: m.vae.decode(x).sample, rand(2, 4, h, w), out)
    image = torch.rand(2, 3, *case["image_size"], generator=gen).to(m.dtype)
    vjp("resize", m.resize, image, out)
    vjp("clip.image", m.image_features, rand(2, 3, n, n), out)
    x0, concepts = rand(2, 4, h, w), unit(out["clip.text_features"])
    for reduce, top_k in (("log-mean", None), ("sum-log", 2)):
        leaf = x0.clone().requires_grad_(True)
        s = m.scores(leaf, concepts)
        log_p = log_density(s, reduce, top_k)
        key = f"guard.{reduce}."
        out[key + "x0"], out[key + "scores"], out[key + "log_p_h"] = x0, s.detach(), log_p.detach()
        out[key + "gradient"] = torch.autograd.grad(log_p.sum(), leaf)[0]
    return out
