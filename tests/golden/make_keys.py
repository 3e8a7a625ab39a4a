<<<<<<< HEAD
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
=======
"""Writes keys.json: the tensors that diffusers and transformers have for a configuration.

Models live on the meta device, so nothing is downloaded and no weight is made:

    pip install -r requirements.txt && python make_keys.py

A case has the network's name, the configuration as the library itself writes it, and the tensors as a
tree of names with shapes for leaves. Equal siblings with consecutive numbers are one entry, "0-11".
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel


def unet(**fields):
    return "unet", UNet2DConditionModel(**fields), lambda name: True


def vae(**fields):
    return "vae", AutoencoderKL(**fields), lambda name: name.startswith(("decoder.", "post_quant_conv."))


def tiny_vae(**fields):
    return "taesd", AutoencoderTiny(**fields), lambda name: name.startswith("decoder.")


def text(**fields):
    return "text_encoder", CLIPTextModel(CLIPTextConfig(**fields)), lambda name: True


def clip(text, vision, projection):
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    return "clip", CLIPModel(config), lambda name: name != "logit_scale"


SD_VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    sample_size=512,
)

CASES = {
    "sd15": lambda: unet(sample_size=64, cross_attention_dim=768),
    "sd21": lambda: unet(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "uneven unet": lambda: unet(
        sample_size=(6, 10),
        block_out_channels=(32, 48, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=(1, 3, 2),
        attention_head_dim=(2, 3, 4),
        transformer_layers_per_block=(1, 2, 3),
        norm_num_groups=8,
        cross_attention_dim=24,
        time_embedding_dim=40,
    ),
    "one level": lambda: unet(
        block_out_channels=(16,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        cross_attention_dim=12,
        layers_per_block=1,
    ),
    "sd vae": lambda: vae(**SD_VAE),
    "bare vae": lambda: vae(
        block_out_channels=(16, 24),
        up_block_types=("UpDecoderBlock2D",) * 2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
    "taesd": tiny_vae,
    "sd15 text": lambda: text(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        projection_dim=768,
    ),
    "sd21 text": lambda: text(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=23,
        hidden_act="gelu",
    ),
    "vit-b-32": lambda: clip({}, {}, 512),
    "vit-b-16": lambda: clip({}, dict(patch_size=16), 512),
    "vit-l-14": lambda: clip(
        dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768),
        dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=24,
            patch_size=14,
            projection_dim=768,
        ),
        768,
    ),
    "vit-h-14": lambda: clip(
        dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=24,
            hidden_act="gelu",
            projection_dim=1024,
        ),
        dict(
            hidden_size=1280,
            intermediate_size=5120,
            num_attention_heads=16,
            num_hidden_layers=32,
            hidden_act="gelu",
            patch_size=14,
            projection_dim=1024,
        ),
        1024,
    ),
}


def tree(tensors):
    root = {}
    for name, shape in tensors:
        *path, leaf = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = shape
    return folded(root)


def folded(node):
    """The same tree with runs of equal numbered siblings as one entry."""
    if not isinstance(node, dict):
        return node
    out = []
    for key, child in sorted(node.items(), key=lambda item: (not item[0].isdigit(), int(item[0]) if item[0].isdigit() else item[0])):
        child = folded(child)
        if key.isdigit() and out and out[-1][2] == child and out[-1][1] == int(key) - 1:
            out[-1][1] = int(key)
        else:
            out.append([key, int(key) if key.isdigit() else None, child])
    return {key if last in (None, int(key)) else f"{key}-{last}": child for key, last, child in out}


def config(model):
    text = model.to_json_string() if hasattr(model, "to_json_string") else model.config.to_json_string(use_diff=False)
    return json.loads(text)


def case(build):
    with torch.device("meta"):
        component, model, wanted = build()
    tensors = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items() if wanted(name)]
    # Files keep the level that the library dropped from memory.
    if component == "text_encoder" and not tensors[0][0].startswith("text_model."):
        tensors = [(f"text_model.{name}", shape) for name, shape in tensors]
    return {"component": component, "config": config(model), "tensors": tree(tensors)}


if __name__ == "__main__":
    cases = {name: case(build) for name, build in CASES.items()}
    lines = [f" {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in cases.items()]
    Path(__file__).with_name("keys.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
>>>>>>> work-e
