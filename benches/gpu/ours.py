"""Our steps and images on a device: first held against PyTorch, then timed. One JSON line a measurement.

    python benches/gpu/ours.py BINARY FOLDER MODEL DEVICE [--batch N]

A step of the model in FOLDER runs with --trace from the same noise and the same text as benches/gpu/torch_models.py in
f32 on the same device: eps, x0, scores and the gradient must agree. If they do not, no time is printed.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from draw import draw
from torch_models import FLOOR, Models

PROMPT, SEED, GUIDANCE, STEPS = "a battlefield at night", 11, 7.5, 20
CONCEPTS = ["violence", "nudity", "a weapon", "blood"]
# Relative L2 of what f16 stores against f32; gradients go through two towers more.
NEAR, NEAR_GRADIENT = 2e-2, 5e-2


def alphas(root):
    config = json.loads((root / "scheduler/scheduler_config.json").read_text())
    first, last, count = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]
    return torch.cumprod(1 - torch.linspace(first, last, count, dtype=torch.float64) ** 2, 0), config


def tokens(root, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(root / "tokenizer/tokenizer.json"))
    tokenizer.no_padding()
    limit = json.loads((root / "text_encoder/config.json").read_text())["max_position_embeddings"]
    ids = tokenizer.encode(text).ids[:limit]
    return torch.tensor([ids + [ids[-1]] * (limit - len(ids))])


class Ours:
    def __init__(self, a, root, folder):
        self.binary, self.root, self.folder, self.a = a.binary, root, folder, a
        size = [] if a.model == "small" else ["-W", a.pixels, "-H", a.pixels]
        self.device = "cuda" if a.device == "cuda" else a.our_device
        self.common = [a.binary, "generate", "-q", "-m", root, "-p", PROMPT, "-s", SEED, "--guidance-scale", GUIDANCE,
                       "--device", self.device, "--overwrite", "--json", *size]

    def run(self, *options):
        """Wall time of every line of JSON, and the lines."""
        command = [*self.common, "-o", self.folder / "%d.png", *options]
        start, lines = time.perf_counter(), []
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                lines.append((time.perf_counter() - start, json.loads(line)))
        if process.returncode != 0:
            sys.exit(f"unguide ends with {process.returncode}: {' '.join(map(str, command))}")
        return lines

    def verify(self, method, options):
        """The largest relative L2 distances of a step's tensors; an error where one is too large."""
        a, trace = self.a, self.folder / "trace.safetensors"
        # What is called f32 shall be f32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.run("-b", 1, "--steps", 2, "--trace", trace, *options)
        got = {name: tensor.to(a.device) for name, tensor in load_file(trace).items()}
        models = Models(self.root, a.device, torch.float32)
        cumulative, config = alphas(self.root)
        t = config["num_train_timesteps"] // 2 + config.get("steps_offset", 0)
        alpha = float(cumulative[t])
        z = got["step.000.latents"]
        with torch.no_grad():
            context = torch.cat([models.context(tokens(self.root, text).to(a.device)) for text in ("", PROMPT)])
            out = models.rows(z, torch.tensor([t], device=a.device), context, GUIDANCE)
        eps = out
        if config.get("prediction_type") == "v_prediction":
            eps = alpha**0.5 * out + (1 - alpha) ** 0.5 * z
        x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        want = {"eps": (eps, NEAR), "x0": (x0, NEAR)}
        distances = {}
        for name, (tensor, bound) in want.items():
            mine = got[f"step.000.{name}"]
            distances[name] = float((mine - tensor).norm() / tensor.norm())
            if not distances[name] <= bound:
                sys.exit(f"{a.model} {method}: {name} is {distances[name]:.1e} away from torch's: no time is printed")
        if method != "plain":
            if not bool((got["step.000.gate"] > 0).all()):
                sys.exit(f"{a.model} {method}: the gate is shut where it must be open: no time is printed")
            # Theirs are the concepts' embeddings too: from the same files and words, by transformers.
            mine = got["step.000.gradient"]
            direction = models_gradient(models, self.root, got["step.000.x0"], a.device)
            distances["gradient"] = float((mine - direction).norm() / direction.norm())
            if not distances["gradient"] <= NEAR_GRADIENT:
                sys.exit(f"{a.model} {method}: the gradient is {distances['gradient']:.1e} away: no time is printed")
        return distances


def models_gradient(models, root, x0, device):
    from safetensors.torch import load_file as load
    from transformers import CLIPConfig, CLIPModel

    config = json.loads((root / "clip/config.json").read_text())
    clip = CLIPModel(CLIPConfig(**config)).eval().to(device)
    stored = load(root / "clip/model.safetensors")
    clip.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=False)
    with torch.no_grad():
        limit = clip.config.text_config.max_position_embeddings
        texts = [clip.get_text_features(tokens(root, text)[:, :limit].to(device)) for text in CONCEPTS]
    texts = [text if torch.is_tensor(text) else text.pooler_output for text in texts]
    concepts = torch.nn.functional.normalize(torch.cat(texts).float(), dim=-1)
    if not float(models.scores(x0, concepts).mean()) > FLOOR:
        # log p_h has no meaning there; the largest score stands for it.
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_(True)
            scores = models.scores(leaf, concepts)
            best = scores.max(-1).values
            value = torch.where(best > 0, best.clamp_min(FLOOR).log(), best)
            return torch.autograd.grad(value.sum(), leaf)[0]
    return models.gradient(x0, concepts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("device", choices=["cuda", "cpu"], help="of PyTorch")
    parser.add_argument("--our-device", default="cpu", help="ours where PyTorch is on the CPU: to try this script")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    a = parser.parse_args()
    a.pixels = 768 if a.model == "sd21" else 512
    root, folder = draw(a.model, a.folder), a.folder / "ours"
    folder.mkdir(parents=True, exist_ok=True)
    ours = Ours(a, root, folder)
    name = torch.cuda.get_device_name() if a.device == "cuda" else f"{ours.device}, not a GPU: a try of this script"
    concepts = [flag for text in CONCEPTS for flag in ("--concept", text)]
    guard = ["--threshold", -1, "--gamma", 1, *concepts]
    methods = {"plain": ["--safety", "none"], "guarded, gate open": guard, "guarded, gate shut": guard}
    steps = 4 if a.model == "small" else a.steps
    for method, options in methods.items():
        verified = ours.verify(method, options)
        timed = [1 if option == -1 and "shut" in method else option for option in options]
        # Two batches of images: the second is what an image takes when everything is loaded.
        lines = ours.run("-b", 2 * a.batch, "--batch-size", a.batch, "--steps", steps, *timed)
        seconds = lines[-1][1]["step_seconds"][2:]
        print(json.dumps({
            "implementation": "unguide", "device": name, "model": a.model, "method": method, "batch": a.batch,
            "pixels": a.pixels if a.model != "small" else "its own", "dtype": lines[-1][1]["settings"]["dtype"],
            "relative_l2_against_torch_f32": verified, "steps": steps,
            "step_ms": {"median": 1e3 * statistics.median(seconds), "least": 1e3 * min(seconds),
                        "most": 1e3 * max(seconds), "of": len(seconds)},
            "images_s": lines[-1][0] - lines[a.batch - 1][0], "cold_start": lines[0][1]["cold_start"],
        }), flush=True)


if __name__ == "__main__":
    main()
