"""Writes noise.json: what torch.randn draws on the CPU, for tests/sampler.rs.

Written with torch 2.15.0 (pip install torch==2.15.0 numpy). The CUDA generator needs a GPU; its vector in
tests/sampler.rs is the one that is published for seed 0.
"""

import json
import pathlib

import torch

assert torch.__version__.startswith("2.15.0"), torch.__version__
SEEDS = [0, 1, 42, 2**31, 2**63 - 1]
SIZES = [1, 5, 15, 16, 17, 100, 16384]
STREAM = [5, 16384, 1, 17, 3, 15, 16, 2]  # draws from one generator, some of which leave half a pair behind
STRIDE = 1499


def summary(values):
    """A short array whole; a long one by its ends, every STRIDE-th value and its sum."""
    numbers = values.tolist()
    if len(numbers) <= 100:
        return {"count": len(numbers), "values": numbers}
    return {
        "count": len(numbers),
        "first": numbers[:8],
        "last": numbers[-8:],
        "strided": numbers[::STRIDE],
        "sum": values.double().sum().item(),
    }


def draws(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    return [summary(torch.randn(size, generator=generator)) for size in sizes]


golden = {
    "stride": STRIDE,
    # Seeds as text: a JSON number above 2^53 is not safe everywhere.
    "single": [{"seed": str(seed), "draw": draws(seed, [size])[0]} for seed in SEEDS for size in SIZES],
    "streams": [{"seed": str(seed), "draws": draws(seed, STREAM)} for seed in SEEDS],
}
pathlib.Path(__file__).with_name("noise.json").write_text(json.dumps(golden, indent=None) + "\n")
