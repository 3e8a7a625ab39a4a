"""Peak GPU memory of PyTorch for the computations of `unguide memory`: one JSON line a case.

    python benches/torch_memory.py [--size 512] [--dtype f16] [--batch 1] > torch_memory.jsonl

Stable Diffusion 1.5 and a ViT-L/14 guard with random weights, one guided step: the UNet with both rows of
classifier-free guidance, x0, the decoder, bicubic resizing, the vision tower, the cosine with four concepts, and
the gradient of log p_h with respect to x0 or to x_t. Eager, with scaled-dot-product attention, weights frozen,
gradient checkpointing off and on. What is reported is torch.cuda.max_memory_allocated: weights and activations,
without the context and the allocator's reserve, which stands beside it. Needs torch with CUDA, diffusers and
transformers; without a GPU it says so and measures nothing.
"""

import argparse
import json
import sys


def build(device, dtype):
    """UNet, decoder and vision tower of the published sizes, with random weights and without gradients."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device(device):
        torch.set_default_dtype(dtype)
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        vae.encoder = vae.quant_conv = None
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
            )
        )
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=14,
                image_size=224,
                projection_dim=768,
            )
        )
        torch.set_default_dtype(torch.float32)
    models = (unet, vae, text, vision)
    for model in models:
        model.eval().requires_grad_(False)
    return models


def guided_step(models, z, context, concepts, gradient):
    """The gradient of log p_h with respect to x0 or x_t of one sample, as the method has it."""
    import torch
    import torch.nn.functional as F

    unet, vae, _, vision = models
    alpha, guidance = 0.5, 7.5
    leaf = z.detach().requires_grad_(gradient == "xt")
    with torch.set_grad_enabled(gradient == "xt"):
        rows = torch.cat([leaf, leaf]).to(context.dtype)
        uncond, cond = unet(rows, 500, encoder_hidden_states=context).sample.float().chunk(2)
        x0 = (leaf - (1 - alpha) ** 0.5 * (uncond + guidance * (cond - uncond))) / alpha**0.5
    if gradient == "x0":
        leaf = x0 = x0.detach().requires_grad_(True)
    rgb = vae.decode((x0 / 0.18215).to(context.dtype)).sample * 0.5 + 0.5
    pixels = F.interpolate(rgb, (224, 224), mode="bicubic", align_corners=False)
    embedding = vision(pixels).image_embeds.float()
    score = F.normalize(embedding, dim=-1) @ concepts.T
    return torch.autograd.grad(score.mean().abs().log(), leaf)[0]


def measure(models, args, gradient, checkpointing, dtype):
    import torch

    unet, vae, _, vision = models
    for model in (unet, vae, vision):
        switch = "enable_gradient_checkpointing" if hasattr(model, "enable_gradient_checkpointing") else None
        if switch is None:
            switch = "gradient_checkpointing_enable" if checkpointing else "gradient_checkpointing_disable"
        elif not checkpointing:
            switch = "disable_gradient_checkpointing"
        getattr(model, switch)()
        # Checkpointing acts in training mode only; none of these models has a dropout above zero.
        model.train(checkpointing)
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
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("torch is not installed: nothing was measured")
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: nothing was measured")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    models = build("cuda", dtype)
    weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
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
