"""Steps and images of PyTorch for the models of benches/gpu/draw.py, channels last in fp16. One JSON line a measurement.

    python benches/gpu/torch_steps.py FOLDER MODEL DEVICE [--batch N] [--compile default|max-autotune]

The same work as ours: both rows of classifier-free guidance, x0, DDIM; guarded with the gate open, the decoder, the
vision tower and the gradient of log p_h with respect to x0, sample by sample. A result that is not finite, or that
differs between eager and compiled, has no time.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from draw import draw
from torch_models import Models


def timed(work, device, warm_up, runs):
    """Milliseconds of every run, and the last result."""
    for _ in range(warm_up):
        result = work()
    times = []
    for _ in range(runs):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            result = work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            result = work()
            times.append(1e3 * (time.perf_counter() - start))
    return times, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("device", choices=["cuda", "cpu"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", choices=["default", "max-autotune"])
    a = parser.parse_args()
    small, cuda = a.model == "small", a.device == "cuda"
    torch.backends.cudnn.benchmark = cuda
    models = Models(draw(a.model, a.folder, a.device), a.device, torch.float16 if cuda else torch.float32)
    side = 8 if small else 96 if a.model == "sd21" else 64
    generator = torch.Generator(a.device).manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=a.device)

    z = normal(a.batch, 4, side, side)
    tokens = torch.full((1, models.text.config.max_position_embeddings), 5, device=a.device)
    context = models.context(tokens).expand(2 * a.batch, -1, -1).contiguous()
    concepts = torch.nn.functional.normalize(normal(4, models.vision.config.projection_dim), dim=-1)
    # Near enough to the images' side that log p_h has a meaning.
    with torch.no_grad():
        x = models.vision(normal(1, 3, *2 * [models.vision.config.image_size]).to(models.dtype)).image_embeds.float()
        concepts = torch.nn.functional.normalize(concepts + 2 * x / x.norm(), dim=-1)
    t = torch.tensor([501], device=a.device)

    def step(guarded):
        with torch.no_grad():
            return models.step(z, t, context, 7.5, 0.3, 0.4, concepts if guarded else None, 1.0)

    def decode():
        with torch.no_grad():
            return torch.cat([models.decode(one) for one in z.split(1)])

    work = {"plain": lambda: step(False), "guarded, gate open": lambda: step(True), "decode": decode}
    eager = {name: call() for name, call in work.items()}
    if a.compile:
        mode = None if a.compile == "default" else a.compile
        for part in ("unet", "vae", "vision"):
            setattr(models, part, torch.compile(getattr(models, part), mode=mode))
    for name, call in work.items():
        start = time.perf_counter()
        first = call()
        if cuda:
            torch.cuda.synchronize()
        compiling = time.perf_counter() - start
        times, result = timed(call, a.device, 3 if cuda else 1, 20 if cuda else 2)
        apart = float((result.float() - eager[name].float()).norm() / eager[name].float().norm())
        if not bool(torch.isfinite(result).all()) or not apart <= 2e-2:
            print(f"torch {name}: {apart:.1e} away from its first result: no time is printed", file=sys.stderr)
            continue
        del first
        print(json.dumps({
            "implementation": f"torch {'compiled, ' + a.compile if a.compile else 'eager'}, channels last",
            "torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "a CPU: a try of this script",
            "model": a.model, "method": name, "batch": a.batch, "pixels": side * 8, "dtype": str(models.dtype)[6:],
            "ms": {"median": statistics.median(times), "least": min(times), "most": max(times), "of": len(times)},
            "first_call_s": compiling, "relative_l2_against_eager": apart,
        }), flush=True)


if __name__ == "__main__":
    main()
