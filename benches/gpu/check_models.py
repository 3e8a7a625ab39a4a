"""Holds benches/gpu/torch_models.py against diffusers, on the small models of the golden tests: run where diffusers is.

    python benches/gpu/check_models.py
"""
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from torch_models import Models, UNet

ROOT = Path(__file__).resolve().parents[2]


def distance(got, want):
    return float((got - want).norm() / want.norm())


def main():
    # With projections that are matrices, and other heads at every level.
    kinds = dict(down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
                 up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2)
    theirs = UNet2DConditionModel(block_out_channels=[16, 24, 32], layers_per_block=2, norm_num_groups=8,
                                  cross_attention_dim=12, attention_head_dim=[2, 3, 4], use_linear_projection=True,
                                  **kinds).eval()
    ours = UNet(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)
    z, context = torch.randn(2, 4, 12, 20), torch.randn(2, 5, 12)
    with torch.no_grad():
        worst = distance(ours(z, torch.tensor([7]), context), theirs(z, 7, encoder_hidden_states=context).sample)
    print(f"three levels with linear projections: relative L2 {worst:.1e}")
    for name in ("tiny-sd1", "demo"):
        root = ROOT / ("assets/emoji-sd" if name == "demo" else f"tests/golden/{name}")
        models = Models(root, "cpu", torch.float32, channels_last=True)
        theirs = UNet2DConditionModel.from_pretrained(root / "unet", torch_dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(root / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
        torch.manual_seed(1)
        z = torch.randn(2, 4, 16, 16)
        context = torch.randn(2, 7, theirs.config.cross_attention_dim)
        with torch.no_grad():
            time = torch.tensor([441])
            unet = distance(models.unet(z, time, context), theirs(z, 441, encoder_hidden_states=context).sample)
            decoder = distance(models.vae(z), vae.decode(z).sample)
        concepts = torch.nn.functional.normalize(torch.randn(3, models.vision.config.projection_dim), dim=-1)
        plain = models.gradient(z[:1], concepts)
        models.checkpointing(True)
        again = distance(models.gradient(z[:1], concepts), plain)
        models.checkpointing(False)
        print(f"{name}: relative L2 of the UNet {unet:.1e}, the decoder {decoder:.1e}, a gradient that is computed "
              f"with checkpointing {again:.1e}")
        worst = max(worst, unet, decoder, again)
    sys.exit(0 if worst < 2e-5 else "the models differ")


if __name__ == "__main__":
    main()
