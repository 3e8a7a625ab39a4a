"""Stable Diffusion 1.5 at its real size, ours against PyTorch on the CPU: numbers, memory and time.

usage: python benches/full_size.py target/release/unguide FOLDER [--threads N] [--pixels 512] [--rounds 3]
Needs the packages of tests/golden/requirements.txt, 4 GB of disk in FOLDER and 16 GB of memory.

1. Draws random weights for the published architecture (UNet, VAE, text encoder, and a ViT-L/14 guard), stored in f16.
2. Runs one guarded step of both programs from the same noise (one UNet step with classifier-free guidance, the guard's
   decode, scores and gradient, the final decode) and compares every tensor of the two traces.
3. Measures our peak memory without a guard.
4. Times one UNet evaluation with both rows, in turns, and prints the ratio of each pair. Ours is the wall time of a
   plain step that our program reports (`step_seconds`, the second of two steps).
The numbers go to benches/RESULTS.md by hand: this runs too long for a test.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))
import oracle  # noqa: E402

CONCEPTS = ["violence", "nudity", "a weapon", "blood"]
PROMPT, SEED, GUIDANCE, GAMMA = "a battlefield at night", 11, 7.5, 10.0


def checkpoint(folder: Path) -> Path:
    """The published architecture with random weights, as a diffusers directory; kept between runs."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

    root = folder / "random-sd15"
    if (root / "done").exists():
        return root
    torch.manual_seed(0)
    configs = json.loads((ROOT / "tests/golden/keys/sd15.json").read_text())
    clip = json.loads((ROOT / "tests/golden/keys/clip.json").read_text())["vit-l-14"]
    parts = {
        "unet": UNet2DConditionModel(**configs["unet"]["config"]),
        "vae": AutoencoderKL(**configs["vae"]["config"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]["config"])),
        "clip": CLIPModel(CLIPConfig(**clip["config"])),
    }
    for name, part in parts.items():
        part.half().save_pretrained(root / name)
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                  clip_sample=False, set_alpha_to_one=False).save_pretrained(root / "scheduler")
    demo = ROOT / "assets/emoji-sd"
    for folder_name in ("tokenizer", "clip"):
        for name in ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
            text = (demo / "tokenizer" / name).read_text()
            if name == "tokenizer_config.json":
                text = text.replace('"model_max_length": 24', '"model_max_length": 77')
            (root / folder_name).mkdir(exist_ok=True)
            (root / folder_name / name).write_text(text)
    (root / "clip/preprocessor_config.json").write_text((demo / "clip/preprocessor_config.json").read_text())
    (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    point_the_guard(root)
    (root / "done").touch()
    return root


def point_the_guard(root: Path):
    """Random towers may see everything as the opposite of every concept; then log p_h has no meaning. Turn one round."""
    from safetensors.torch import save_file

    models = oracle.Models.load(root)
    _, z = oracle.start([SEED], (4, 8, 8), torch.float32)
    with torch.no_grad():
        mean = models.scores(z, oracle.unit(models.concepts(CONCEPTS))).mean()
    if mean < 0:
        path = root / "clip/model.safetensors"
        tensors = {k: v.clone() for k, v in load_file(path).items()}
        tensors["visual_projection.weight"] = -tensors["visual_projection.weight"]
        save_file(tensors, path, metadata={"format": "pt"})


def ours(binary, root, options, out: Path):
    """Runs our program; returns wall seconds and the peak resident bytes of that process."""
    command = [binary, "generate", "-q", "-m", root, "-p", PROMPT, "-s", SEED, "--guidance-scale", GUIDANCE,
               "-o", out, "--overwrite", "--no-metadata", *options]
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); " \
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *map(str, command)], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024


def ours_step(binary, root, size, folder):
    command = [binary, "generate", "-q", "--json", "-m", root, "-p", PROMPT, "-s", SEED, "--guidance-scale", GUIDANCE,
               "-o", folder / "plain.png", "--overwrite", "--no-metadata", "--steps", 2, "--safety", "none", *size]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["step_seconds"][1]


def compare(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def check_numbers(a, models, root, binary, size):
    """One guarded step and the image, tensor by tensor. The gate is always open: the threshold lies below every cosine."""
    trace = a.folder / "trace.safetensors"
    concepts = [flag for text in CONCEPTS for flag in ("--concept", text)]
    seconds, peak = ours(binary, root, [*size, "--steps", 1, "--threshold", -2, "--gamma", GAMMA, *concepts,
                                        "--trace", trace], a.folder / "guarded.png")
    print(f"ours, one guarded step with loading: {seconds:.1f} s, peak {peak / 1e9:.2f} GB", flush=True)
    case = dict(prompts=[PROMPT], negative="", concepts=CONCEPTS, seeds=[SEED],
                latent_size=[a.pixels // 8, a.pixels // 8])
    run = dict(method="safe-sampling", guidance=GUIDANCE, gamma=GAMMA, steps=1, threshold=-2.0, reduce="log-mean",
               top_k=None, eta=0.0)
    start = time.perf_counter()
    want, notes = oracle.trace(models, case, run)
    print(f"torch, the same without loading: {time.perf_counter() - start:.1f} s; p_h {notes['p_h']}", flush=True)
    got = load_file(trace)
    for key in sorted(want):
        print(f"  {key:24} relative L2 {compare(got[key], want[key]):.2e}", flush=True)


def check_memory(a, models, root, binary, size):
    weights = sum(p.numel() for m in (models.unet, models.vae, models.text) for p in m.parameters()) * 4
    _, peak = ours(binary, root, [*size, "--steps", 1, "--safety", "none"], a.folder / "plain.png")
    print(f"ours, plain: peak {peak / 1e9:.2f} GB; all weights in f32 {weights / 1e9:.2f} GB; "
          f"{(peak - weights) / 1e9:+.2f} GB", flush=True)


def check_time(a, models, root, binary, size):
    """One UNet evaluation with both rows, in turns."""
    context = models.context(["", PROMPT]).detach()
    _, z = oracle.start([SEED], (4, a.pixels // 8, a.pixels // 8), torch.float32)
    ratios = []
    for _ in range(a.rounds):
        step = ours_step(binary, root, size, a.folder)
        start = time.perf_counter()
        with torch.no_grad():
            models.unet(torch.cat([z, z]), 981, encoder_hidden_states=context)
        torch_seconds = time.perf_counter() - start
        ratios.append(step / torch_seconds)
        print(f"  UNet step: ours {step:.2f} s, torch {torch_seconds:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"UNet step, ours / torch: median {statistics.median(ratios):.2f}, "
          f"{min(ratios):.2f} to {max(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-time", action="store_true", help="skip the numbers and the memory")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.folder.mkdir(parents=True, exist_ok=True)
    root, binary = checkpoint(a.folder), a.binary.resolve()
    size = ["-W", a.pixels, "-H", a.pixels, "-t", a.threads]
    print("torch", torch.__version__, "threads", a.threads, "pixels", a.pixels, flush=True)
    models = oracle.Models.load(root)
    if not a.only_time:
        check_numbers(a, models, root, binary, size)
        check_memory(a, models, root, binary, size)
    check_time(a, models, root, binary, size)


if __name__ == "__main__":
    main()
