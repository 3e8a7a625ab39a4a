"""Writes ldm_names.json: two tiny checkpoints with the original (latent diffusion) names.

    python make_ldm_names.py [--full]

For each tensor of a diffusers / transformers model the original name is derived here, and diffusers'
own converter must lead back to where we began; so the pairs are diffusers' truth. "sd1" has CLIP's
text encoder and convolutions around its transformers, "sd2" OpenCLIP's and matrices. `--full` takes
the sizes of Stable Diffusion 1.5 and 2.1 instead; the test that reads the file then needs 10 GB of disk.

Written with diffusers 0.42.1 and transformers 5.23.0; refuses others.
"""

import json
import pathlib
import re
import sys

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as convert

assert (diffusers.__version__, transformers.__version__) == ("0.42.1", "5.23.0"), "pinned versions"

UNET_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
               "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
                "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj"}


def unet_name(key, layers):
    """Every level but the coarsest has transformers, so going up the first has none."""
    for ours, theirs in UNET_OUTSIDE.items():
        if key.startswith(ours + "."):
            return theirs + key[len(ours):]
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, i, rest = match.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(i)}.{unet_resnet(rest)}"
    tree, level, kind, i, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key).groups()
    level, i = int(level), int(i)
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.{1 if level == 0 else 2}.{rest}"
    block = level * (layers + 1) + i
    block = f"input_blocks.{block + 1}" if tree == "down" else f"output_blocks.{block}"
    return f"{block}.0.{unet_resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def unet_resnet(rest):
    part, parameter = rest.rsplit(".", 1)
    return f"{UNET_RESNET[part]}.{parameter}"


def vae_name(key, levels):
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if match := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(\w+)$", key):
        return f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)


def tagged(shapes):
    """Tensors that can be told apart by their first value."""
    return {name: torch.full(shape, float(i + 1)) for i, (name, shape) in enumerate(shapes.items())}


def check_round_trip(stored, pairs, converted):
    """The converter's result must hold under our name what is stored under the original one."""
    assert set(converted) == set(pairs), set(converted) ^ set(pairs)
    for ours, theirs in pairs.items():
        assert converted[ours].flatten()[0] == stored[theirs].flatten()[0], (ours, theirs)


def shapes_of(model):
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def checkpoint(sd2, full):
    channels = [320, 640, 1280, 1280] if full else [8, 16, 16]
    vae_channels = [128, 256, 512, 512] if full else [8, 8, 16]
    layers, width = (2, 1024 if sd2 else 768) if full else (1, 24 if sd2 else 12)
    text_layers = (23 if sd2 else 12) if full else 2
    count = len(channels)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=channels, layers_per_block=layers, cross_attention_dim=width, norm_num_groups=4,
            down_block_types=["CrossAttnDownBlock2D"] * (count - 1) + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (count - 1),
            attention_head_dim=4, use_linear_projection=sd2)
        vae = diffusers.AutoencoderKL(
            block_out_channels=vae_channels, layers_per_block=layers, latent_channels=4, norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * len(vae_channels), up_block_types=["UpDecoderBlock2D"] * len(vae_channels))
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
            vocab_size=30, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=text_layers,
            num_attention_heads=2, max_position_embeddings=7))
    stored, ours = {}, {}

    def add(name, shape, original, original_shape=None, part="whole"):
        stored[original] = original_shape or shape
        ours[name] = [shape, original, part]

    # UNet
    shapes = shapes_of(unet)
    pairs = {key: unet_name(key, layers) for key in shapes}
    tensors = tagged({pairs[key]: shape for key, shape in shapes.items()})
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    check_round_trip(tensors, pairs, convert.convert_ldm_unet_checkpoint(prefixed, dict(unet.config)))
    for key, shape in shapes.items():
        add(f"unet.{key}", shape, f"model.diffusion_model.{pairs[key]}")

    # VAE, whose attention is stored as 1x1 convolutions
    shapes = shapes_of(vae)
    pairs = {key: vae_name(key, len(vae_channels)) for key in shapes}
    as_conv = {key: shape + [1, 1] if ".attentions." in key and len(shape) == 2 else shape for key, shape in shapes.items()}
    tensors = tagged({pairs[key]: shape for key, shape in as_conv.items()})
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    check_round_trip(tensors, pairs, convert.convert_ldm_vae_checkpoint(prefixed, dict(vae.config)))
    for key, shape in shapes.items():
        add(f"vae.{key}", shape, f"first_stage_model.{pairs[key]}", as_conv[key])

    # Text encoder; this version of transformers leaves out the level that checkpoints have
    shapes = {key if key.startswith("text_model.") else f"text_model.{key}": shape for key, shape in shapes_of(text).items()}
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith("position_ids")}
    prefix = "cond_stage_model.model." if sd2 else "cond_stage_model.transformer."
    for key, shape in shapes.items():
        name = f"text_encoder.{key}"
        inner = key.removeprefix("text_model.")
        if not sd2:
            add(name, shape, prefix + key)
        elif match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", inner):
            fused = f"{prefix}transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            add(name, shape, fused, [3 * shape[0], *shape[1:]], "qkv".index(match[2]))
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(\w+)", inner):
            add(name, shape, f"{prefix}transformer.resblocks.{match[1]}.{OPENCLIP[match[2]]}.{match[3]}")
        elif inner == "embeddings.position_embedding.weight":
            add(name, shape, prefix + "positional_embedding")
        else:
            add(name, shape, prefix + inner.replace("embeddings.", "").replace("final_layer_norm", "ln_final"))
    if sd2:
        tensors = tagged({name: shape for name, shape in stored.items() if name.startswith(prefix)})
        converted = convert.convert_open_clip_checkpoint(text, tensors)
        original = {ours[f"text_encoder.{key}"][1] for key in converted if not key.endswith("position_ids")}
        assert original == set(tensors), original ^ set(tensors)
        for key, tensor in converted.items():
            assert tensor.flatten()[0] == tensors[ours[f"text_encoder.{key}"][1]].flatten()[0], key
        # diffusers leaves out the projection, which Stable Diffusion does not use, and the last layer.
        add("text_encoder.text_projection.weight", [width, width], prefix + "text_projection", None, "transposed")
        first = prefix + "transformer.resblocks.0."
        last = prefix + f"transformer.resblocks.{text_layers}."
        stored.update({name.replace(first, last): shape for name, shape in stored.items() if name.startswith(first)})
        stored[prefix + "logit_scale"] = []
    else:
        stored[prefix + "text_model.embeddings.position_ids"] = [1, 7]
    stored.update({"alphas_cumprod": [10], "betas": [10], "model_ema.decay": [], "model_ema.diffusion_modelout0bias": [4]})
    return {"stored": stored, "ours": ours}


def main():
    full = "--full" in sys.argv[1:]
    golden = {"sd1": checkpoint(False, full), "sd2": checkpoint(True, full)}
    target = pathlib.Path(__file__).with_name("ldm_names.json")
    lines = []
    for name, parts in golden.items():
        tables = [f'"{key}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table.items()) + "\n}"
                  for key, table in parts.items()]
        lines.append(f'"{name}": {{' + ", ".join(tables) + "}")
    target.write_text("{" + ",\n".join(lines) + "}\n")
    print({name: (len(parts["stored"]), len(parts["ours"])) for name, parts in golden.items()}, target.stat().st_size)


main()
