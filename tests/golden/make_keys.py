"""Writes the names and shapes of every parameter of the published layouts: keys/{sd15,sd21,clip}.json.

usage: python make_keys.py

The models are built on the meta device from the published configs, so nothing is downloaded and no weight exists.
A file maps a component to its `config` (what its config.json says) and its `parameters`, name to shape, where
`{0,1,2}` in a name stands for each of its items in turn; several braces mean every combination. Text towers carry
the `text_model.` prefix of the published files (transformers 5 itself writes them without).
"""
import json
import re
from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).resolve().parent / "keys"
DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
UNET_SD15 = dict(
    act_fn="silu", attention_head_dim=8, block_out_channels=[320, 640, 1280, 1280], center_input_sample=False,
    cross_attention_dim=768, down_block_types=DOWN, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
    in_channels=4, layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-05, norm_num_groups=32, out_channels=4,
    sample_size=64, up_block_types=UP)
UNET_SD21 = dict(
    UNET_SD15, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, dual_cross_attention=False,
    num_class_embeds=None, only_cross_attention=False, sample_size=96, upcast_attention=True,
    use_linear_projection=True)
VAE_SD15 = dict(
    act_fn="silu", block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4, in_channels=3,
    latent_channels=4, layers_per_block=2, norm_num_groups=32, out_channels=3, sample_size=512,
    up_block_types=["UpDecoderBlock2D"] * 4)
VAE_SD21 = dict(VAE_SD15, sample_size=768, scaling_factor=0.18215)


def text(width, layers, heads, act, projection, **more):
    return dict(model_type="clip_text_model", attention_dropout=0.0, bos_token_id=0, eos_token_id=2, pad_token_id=1,
                hidden_act=act, hidden_size=width, intermediate_size=4 * width, layer_norm_eps=1e-05,
                max_position_embeddings=77, num_attention_heads=heads, num_hidden_layers=layers,
                projection_dim=projection, vocab_size=49408, **more)


def clip(text_width, projection, width, layers, heads, patch, image=224, act="quick_gelu", text_layers=12):
    return dict(model_type="clip", projection_dim=projection, logit_scale_init_value=2.6592,
                text_config=text(text_width, text_layers, text_width // 64, act, projection),
                vision_config=dict(hidden_act=act, hidden_size=width, image_size=image, intermediate_size=4 * width,
                                   layer_norm_eps=1e-05, num_attention_heads=heads, num_channels=3,
                                   num_hidden_layers=layers, patch_size=patch, projection_dim=projection))


FILES = {
    "sd15": {
        "unet": (UNet2DConditionModel, UNET_SD15),
        "vae": (AutoencoderKL, VAE_SD15),
        "text_encoder": (CLIPTextModel, text(768, 12, 12, "quick_gelu", 768)),
    },
    "sd21": {
        "unet": (UNet2DConditionModel, UNET_SD21),
        "vae": (AutoencoderKL, VAE_SD21),
        "text_encoder": (CLIPTextModel, text(1024, 23, 16, "gelu", 512)),
    },
    "clip": {
        "vit-b-32": (CLIPModel, clip(512, 512, 768, 12, 12, 32)),
        "vit-b-16": (CLIPModel, clip(512, 512, 768, 12, 12, 16)),
        "vit-l-14": (CLIPModel, clip(768, 768, 1024, 24, 16, 14)),
        "vit-h-14": (CLIPModel, clip(1024, 1024, 1280, 32, 16, 14, act="gelu", text_layers=24)),
    },
}


def shapes(cls, config):
    config = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        if cls is CLIPTextModel:
            model = cls(CLIPTextConfig(**config))
        elif cls is CLIPModel:
            model = cls(CLIPConfig(**config))
        else:
            model = cls(**config)
    prefix = "text_model." if cls is CLIPTextModel else ""
    return {prefix + k.removeprefix(prefix): list(v.shape) for k, v in model.state_dict().items()}


def compact(table):
    """Merges names of one shape that differ in a single part between dots, from the last part to the first."""
    for place in reversed(range(max(len(name.split(".")) for name in table))):
        groups = {}
        for name, shape in table.items():
            parts = name.split(".")
            own = parts[place] if place < len(parts) else None
            groups.setdefault((tuple(parts[:place]), tuple(parts[place + 1 :]), tuple(shape)), []).append(own)
        table = {}
        for (head, tail, shape), own in groups.items():
            part = [own[0]] if len(own) == 1 else ["{" + ",".join(own) + "}"]
            table[".".join([*head, *(part if part != [None] else []), *tail])] = list(shape)
    return table


def expand(table):
    full = {}
    for name, shape in table.items():
        pieces = [p[1:-1].split(",") if p[0] == "{" else [p] for p in re.split(r"(\{[^}]*\})", name) if p]
        for choice in product(*pieces):
            full["".join(choice)] = shape
    return full


def main():
    HERE.mkdir(exist_ok=True)
    for file, components in FILES.items():
        lines = []
        for name, (cls, config) in components.items():
            full = shapes(cls, config)
            short = compact(full)
            assert expand(short) == full
            count = sum(torch.Size(s).numel() for s in full.values())
            print(f"{file} {name}: {len(full)} tensors in {len(short)} lines, {count} parameters")
            rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in short.items())
            lines.append(f'{json.dumps(name)}: {{"config": {json.dumps(config)},\n "parameters": {{\n{rows}\n }}}}')
        (HERE / f"{file}.json").write_text("{" + ",\n".join(lines) + "}\n")
        json.loads((HERE / f"{file}.json").read_text())


if __name__ == "__main__":
    main()
