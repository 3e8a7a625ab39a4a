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
