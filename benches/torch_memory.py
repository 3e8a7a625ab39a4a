"""Peak GPU memory of PyTorch for the computations of `unguide memory`: one JSON line a case.

    python benches/torch_memory.py [--size 512] [--dtype f16] [--batch 1] > torch_memory.jsonl

Stable Diffusion 1.5 and a ViT-L/14 guard with random weights, one guided step: the UNet with both rows of
classifier-free guidance, x0, the decoder, bicubic resizing, the vision tower, the cosine with four concepts, and
the gradient of log p_h with respect to x0 or to x_t. Eager, with scaled-dot-product attention, weights frozen,
gradient checkpointing off and on. What is reported is torch.cuda.max_memory_allocated: weights and activations,
without the context and the allocator's reserve, which stands beside it. Needs torch with CUDA and transformers; without
a GPU it says so and measures nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path


def guided_step(models, z, context, concepts, gradient):
    """The gradient of log p_h with respect to x0 or x_t of one sample, as the method has it."""
    import torch

    alpha, guidance, t = 0.5, 7.5, torch.tensor([500], device=z.device)
    leaf = z.detach().requires_grad_(gradient == "xt")
    with torch.set_grad_enabled(gradient == "xt"):
        x0 = (leaf - (1 - alpha) ** 0.5 * models.rows(leaf, t, context, guidance)) / alpha**0.5
    return models.gradient(x0, concepts, None if gradient == "x0" else leaf)


def measure(models, args, gradient, checkpointing, dtype):
    import torch

    models.checkpointing(checkpointing)
    side = args.size // 8
    torch.manual_seed(0)
    z = torch.randn(args.batch, 4, side, side, device="cuda")
    context = torch.randn(2 * args.batch, 77, 768, device="cuda", dtype=dtype)
    concepts = torch.nn.functional.normalize(torch.randn(4, 768, device="cuda"), dim=-1)
    peaks = []
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        result = guided_step(models, z, context, concepts, gradient)
        torch.cuda.synchronize()
        if not bool(torch.isfinite(result).all()):
            print("the gradient is not finite; its memory is counted all the same", file=sys.stderr)
        del result
        peaks.append((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
    return min(peaks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["f16", "bf16", "f32"], default="f16")
    parser.add_argument("--model", type=Path, help="a folder of benches/gpu/draw.py; drawn if absent")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("torch is not installed: nothing was measured")
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: nothing was measured")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))
    from draw import draw
    from torch_models import Models

    root = args.model or draw("sd15", Path(tempfile.mkdtemp()), "cuda")
    models = Models(root, "cuda", dtype)
    weights = sum(p.numel() * p.element_size() for part in models.parts() for p in part.parameters())
    for gradient in ("x0", "xt"):
        for checkpointing in (False, True):
            allocated, reserved = measure(models, args, gradient, checkpointing, dtype)
            line = {
                "implementation": "torch eager",
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name(),
                "model": "sd15",
                "method": "safe",
                "gradient": gradient,
                "gradient_checkpointing": checkpointing,
                "batch": args.batch,
                "size": args.size,
                "dtype": args.dtype,
                "weights_bytes": weights,
                "total_bytes": allocated,
                "reserved_bytes": reserved,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
