"""Checkpoints with random weights, as diffusers directories: the published sizes, or small ones to try the scripts.

    python benches/gpu/draw.py sd15|sd21-base|sd21|small FOLDER

Names and shapes are those of tests/golden/keys. Matrices and filters have variance 1 / fan-in, so that activations
stay as large as trained ones do; norms are near 1; never zeros. Needs torch and safetensors alone.
"""
import json
import math
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"sd15": "sd15", "sd21-base": "sd21", "sd21": "sd21"}


def expand(key):
    """`a.{b,c}.d` as names."""
    found = re.search(r"\{([^{}]*)\}", key)
    if not found:
        return [key]
    return [name for word in found[1].split(",") for name in expand(key[: found.start()] + word + key[found.end() :])]


def drawn(parameters, generator, device):
    tensors = {}
    for key, shape in parameters.items():
        for name in expand(key):
            noise = torch.randn(shape, generator=generator, device=device)
            is_norm = len(shape) == 1 and name.endswith("weight")
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 2500
            if "embedding" in name and len(shape) == 2:
                fan_in = 2500
            tensors[name] = ((1.0 if is_norm else 0.0) + noise / math.sqrt(fan_in)).half().contiguous().cpu()
    return tensors


def small():
    """The smallest model of the golden tests, whose own weights do."""
    return ROOT / "tests/golden/tiny-sd1"


def draw(name, folder: Path, device="cpu", seed=0):
    """Makes FOLDER/NAME unless it is whole already, and returns it."""
    root = folder / name
    if name == "small":
        return small()
    if (root / "whole").exists():
        return root
    keys = json.loads((ROOT / f"tests/golden/keys/{NAMES[name]}.json").read_text())
    clip = json.loads((ROOT / "tests/golden/keys/clip.json").read_text())["vit-l-14"]
    generator = torch.Generator(device).manual_seed(seed)
    parts = {part: (value["config"], value["parameters"]) for part, value in keys.items()}
    parts["clip"] = (clip["config"], clip["parameters"])
    for part, (config, parameters) in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / "config.json").write_text(json.dumps(config))
        file = "diffusion_pytorch_model.safetensors" if part in ("unet", "vae") else "model.safetensors"
        save_file(drawn(parameters, generator, device), root / part / file, metadata={"format": "pt"})
    if name == "sd21-base":
        path = root / "unet/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 64}))
    (root / "scheduler").mkdir(exist_ok=True)
    (root / "scheduler/scheduler_config.json").write_text(json.dumps({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
        "prediction_type": "v_prediction" if name == "sd21" else "epsilon",
    }))
    demo = ROOT / "assets/emoji-sd"
    for part in ("tokenizer", "clip"):
        for file in ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
            text = (demo / "tokenizer" / file).read_text()
            (root / part / file).parent.mkdir(exist_ok=True)
            (root / part / file).write_text(text.replace('"model_max_length": 24', '"model_max_length": 77'))
    (root / "clip/preprocessor_config.json").write_text((demo / "clip/preprocessor_config.json").read_text())
    (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (root / "whole").touch()
    return root


if __name__ == "__main__":
    print(draw(sys.argv[1], Path(sys.argv[2]), "cuda" if torch.cuda.is_available() else "cpu"))
