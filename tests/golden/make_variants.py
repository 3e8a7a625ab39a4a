"""Writes keys/variants.json: names and shapes for configurations that no published model has.

usage: python make_variants.py

They take every branch of the formats that we build: lists instead of numbers, levels of different depth, attention in
other places, optional layers left out. The file has the form of those by make_keys.py; its configs are as the libraries
themselves write them, with all fields.
"""
import json

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from make_keys import HERE, compact, expand

VARIANTS = {
    "unet": (UNet2DConditionModel, dict(
        sample_size=(6, 10), block_out_channels=(32, 48, 64), layers_per_block=(1, 3, 2), attention_head_dim=(2, 3, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8,
        transformer_layers_per_block=(1, 2, 3), cross_attention_dim=24, time_embedding_dim=40)),
    "unet of one level": (UNet2DConditionModel, dict(
        block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
        cross_attention_dim=12, layers_per_block=1, use_linear_projection=True)),
    "vae": (AutoencoderKL, dict(
        block_out_channels=(16, 24), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False)),
    "taesd": (AutoencoderTiny, {}),
    "taesd of two levels": (AutoencoderTiny, dict(
        decoder_block_out_channels=(8, 8), num_decoder_blocks=(2, 1), encoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1))),
}


def main():
    entries = []
    for name, (cls, config) in VARIANTS.items():
        with torch.device("meta"):
            model = cls(**config)
        full = {key: list(value.shape) for key, value in model.state_dict().items()}
        short = compact(full)
        assert expand(short) == full
        rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in short.items())
        written = json.dumps(json.loads(model.to_json_string()))
        entries.append(f'{json.dumps(name)}: {{"config": {written},\n "parameters": {{\n{rows}\n }}}}')
    (HERE / "variants.json").write_text("{" + ",\n".join(entries) + "}\n")


if __name__ == "__main__":
    main()
