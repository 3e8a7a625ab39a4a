"""Stable Diffusion's UNet and VAE decoder in plain PyTorch, for machines without diffusers.

The modules have diffusers' names, so its checkpoints load strictly. `step` is the computation that `unguide` does at a
step: both rows of classifier-free guidance, x0, and with a guard the gradient of log p_h with respect to x0. The vision
tower is transformers'. `python benches/gpu/check_models.py` holds everything here against diffusers.
"""
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# At or below it p_h has no usable logarithm; as in src/safety/density.rs.
FLOOR = 1e-6


class Block(nn.Module):
    """A module whose activations are computed again in the backward pass while `checkpointing` is set."""

    checkpointing = False

    def __call__(self, *args):
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


class Resnet(Block):
    def __init__(self, c_in, c_out, time, groups, eps):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, c_in, eps), nn.GroupNorm(groups, c_out, eps)
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, c_out) if time else None
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x, time=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if self.conv_shortcut else x)


class Attention(nn.Module):
    def __init__(self, c, context, heads, bias=False):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c, bias), nn.Linear(context, c, bias), nn.Linear(context, c, bias)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x, context=None):
        context = x if context is None else context

        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        y = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    def __init__(self, c, hidden):
        super().__init__()
        self.proj = nn.Linear(c, 2 * hidden)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.ModuleList([Geglu(c, 4 * c), nn.Identity(), nn.Linear(4 * c, c)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(Block):
    def __init__(self, c, context, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn1, self.attn2 = Attention(c, c, heads), Attention(c, context, heads)
        self.ff = FeedForward(c)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, c, context, heads, groups, linear):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, 1e-6)
        self.linear = linear
        self.proj_in = nn.Linear(c, c) if linear else nn.Conv2d(c, c, 1)
        self.proj_out = nn.Linear(c, c) if linear else nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(c, context, heads)])

    def forward(self, x, context):
        b, c, h, w = x.shape
        y = self.norm(x)
        y = y if self.linear else self.proj_in(y)
        y = y.permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = self.proj_in(y) if self.linear else y
        for block in self.transformer_blocks:
            y = block(y, context)
        y = self.proj_out(y) if self.linear else y
        y = y.reshape(b, h, w, c).permute(0, 3, 1, 2)
        return x + (y if self.linear else self.proj_out(y))


class Resample(nn.Module):
    def __init__(self, c, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(c, c, 3, stride=1 if up else 2, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)


class Level(nn.Module):
    """Resnets, each with a transformer behind it where the level attends, and a change of size at the end."""

    def __init__(self, resnets, attentions, resample):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if resample is not None:
            setattr(self, "upsamplers" if resample.up else "downsamplers", nn.ModuleList([resample]))

    @property
    def resample(self):
        found = getattr(self, "upsamplers", None) or getattr(self, "downsamplers", None)
        return found[0] if found else None


UNET_DEFAULTS = {
    "use_linear_projection": False, "norm_eps": 1e-5, "norm_num_groups": 32, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 2,
}
VAE_DEFAULTS = {
    "norm_num_groups": 32, "latent_channels": 4, "out_channels": 3, "layers_per_block": 1, "scaling_factor": 0.18215,
}


class UNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        config = UNET_DEFAULTS | config
        channels, layers, groups = config["block_out_channels"], config["layers_per_block"], config["norm_num_groups"]
        context, linear, eps = config["cross_attention_dim"], config["use_linear_projection"], config["norm_eps"]
        heads = config["attention_head_dim"]
        heads = [heads] * len(channels) if isinstance(heads, int) else heads
        time, self.first = 4 * channels[0], channels[0]

        def resnet(c_in, c_out):
            return Resnet(c_in, c_out, time, groups, eps)

        def transformers(kind, i, count):
            if "CrossAttn" not in kind:
                return []
            return [Transformer(channels[i], context, heads[i], groups, linear) for _ in range(count)]

        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(channels[0], time)
        self.time_embedding.linear_2 = nn.Linear(time, time)
        self.down_blocks = nn.ModuleList()
        skips, last = [channels[0]], len(channels) - 1
        for i, kind in enumerate(config["down_block_types"]):
            resnets = [resnet(channels[max(i - 1, 0)] if j == 0 else channels[i], channels[i]) for j in range(layers)]
            skips += [channels[i]] * (layers + (i < last))
            down = Resample(channels[i], up=False) if i < last else None
            self.down_blocks.append(Level(resnets, transformers(kind, i, layers), down))
        c = channels[-1]
        self.mid_block = Level([resnet(c, c), resnet(c, c)], [Transformer(c, context, heads[-1], groups, linear)], None)
        self.up_blocks = nn.ModuleList()
        for i, kind in zip(reversed(range(len(channels))), config["up_block_types"]):
            resnets = []
            for _ in range(layers + 1):
                resnets.append(resnet(c + skips.pop(), channels[i]))
                c = channels[i]
            up = Resample(c, up=True) if i > 0 else None
            self.up_blocks.append(Level(resnets, transformers(kind, i, layers + 1), up))
        self.conv_norm_out = nn.GroupNorm(groups, channels[0], eps)
        self.conv_out = nn.Conv2d(channels[0], config["out_channels"], 3, padding=1)

    def time(self, t, dtype):
        half = self.first // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)[None]
        embedding = self.time_embedding
        return embedding.linear_2(F.silu(embedding.linear_1(torch.cat([angles.cos(), angles.sin()], -1).to(dtype))))

    def forward(self, x, t, context):
        time = self.time(t.expand(x.shape[0]), x.dtype)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            for j, resnet in enumerate(level.resnets):
                x = resnet(x, time)
                x = level.attentions[j](x, context) if hasattr(level, "attentions") else x
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = self.mid_block.resnets[0](x, time)
        x = self.mid_block.resnets[1](self.mid_block.attentions[0](x, context), time)
        for level in self.up_blocks:
            for j, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], 1), time)
                x = level.attentions[j](x, context) if hasattr(level, "attentions") else x
            x = level.resample(x) if level.resample is not None else x
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class SpatialAttention(Attention):
    def __init__(self, c, groups):
        super().__init__(c, c, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, c, 1e-6)

    def forward(self, x):
        y = super().forward(self.group_norm(x).flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).reshape(x.shape)


class Decoder(nn.Module):
    """Latents, already unscaled, to an image around [-1, 1]."""

    def __init__(self, config):
        super().__init__()
        config = VAE_DEFAULTS | config
        channels, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        latent, layers = config["latent_channels"], config["layers_per_block"] + 1
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = d = nn.Module()
        d.conv_in = nn.Conv2d(latent, channels[0], 3, padding=1)

        def resnet(c_in, c_out):
            return Resnet(c_in, c_out, 0, groups, 1e-6)

        c = channels[0]
        d.mid_block = Level([resnet(c, c), resnet(c, c)], [SpatialAttention(c, groups)], None)
        d.up_blocks = nn.ModuleList()
        for i, wide in enumerate(channels):
            resnets = [resnet(c if j == 0 else wide, wide) for j in range(layers)]
            d.up_blocks.append(Level(resnets, [], Resample(wide, up=True) if i < len(channels) - 1 else None))
            c = wide
        d.conv_norm_out = nn.GroupNorm(groups, c, 1e-6)
        d.conv_out = nn.Conv2d(c, config["out_channels"], 3, padding=1)

    def forward(self, z):
        d = self.decoder
        x = d.conv_in(self.post_quant_conv(z))
        x = d.mid_block.resnets[1](d.mid_block.attentions[0](d.mid_block.resnets[0](x)))
        for level in d.up_blocks:
            for resnet in level.resnets:
                x = resnet(x)
            x = level.resample(x) if level.resample is not None else x
        return d.conv_out(F.silu(d.conv_norm_out(x)))


class Models:
    """UNet, decoder, guard's vision tower and text encoder of a checkpoint directory, frozen."""

    def __init__(self, root: Path, device, dtype, channels_last=True):
        from safetensors.torch import load_file
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

        def config(part):
            return json.loads((root / part / "config.json").read_text())

        def load(part, file, build, keep=lambda name: True):
            stored = load_file(root / part / file)
            with torch.device("meta"):
                module = build(config(part))
            wanted = {name: tensor.to(device, dtype) for name, tensor in stored.items() if keep(name)}
            known = module.state_dict()
            # Some releases of transformers have a level less inside.
            wanted = {name if name in known else name.removeprefix("text_model."): t for name, t in wanted.items()}
            missing, unexpected = module.load_state_dict(wanted, strict=False, assign=True)
            missing = [name for name in missing if not name.endswith("position_ids")]
            assert not missing and not unexpected, (part, missing[:5], unexpected[:5])
            for name, buffer in list(module.named_buffers()):
                if buffer.is_meta:
                    owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
                    owner.register_buffer(leaf, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
            return module.eval().requires_grad_(False)

        def vision(clip):
            return CLIPVisionModelWithProjection(
                CLIPVisionConfig(**clip["vision_config"] | {"projection_dim": clip["projection_dim"]})
            )

        weights = "diffusion_pytorch_model.safetensors"
        self.unet = load("unet", weights, UNet)
        self.vae = load("vae", weights, Decoder, lambda name: name.startswith(("decoder.", "post_quant")))
        seen = ("vision_model.", "visual_projection.")
        self.vision = load("clip", "model.safetensors", vision, lambda name: name.startswith(seen))
        self.text = load("text_encoder", "model.safetensors", lambda c: CLIPTextModel(CLIPTextConfig(**c)))
        self.scaling, self.device, self.dtype = (VAE_DEFAULTS | config("vae"))["scaling_factor"], device, dtype
        if channels_last:
            for module in (self.unet, self.vae, self.vision):
                module.to(memory_format=torch.channels_last)
        pixels = json.loads((root / "clip/preprocessor_config.json").read_text())
        self.mean, self.std = (
            torch.tensor(pixels[key], device=device).view(1, 3, 1, 1) for key in ("image_mean", "image_std")
        )

    def parts(self):
        return (self.unet, self.vae, self.vision, self.text)

    def checkpointing(self, on):
        for part in self.parts():
            for module in part.modules():
                if isinstance(module, Block):
                    module.checkpointing = on
        switch = "gradient_checkpointing_enable" if on else "gradient_checkpointing_disable"
        getattr(self.vision, switch)()
        self.vision.train(on)

    def context(self, ids):
        return self.text(ids).last_hidden_state

    def rows(self, z, t, context, guidance):
        """eps of both rows combined, in f32. z: [n, 4, h, w]; context: [2 n, 77, c], uncond first."""
        x = torch.cat([z, z]).to(self.dtype, memory_format=torch.channels_last)
        uncond, cond = self.unet(x, t, context).float().chunk(2)
        return uncond + guidance * (cond - uncond)

    def decode(self, z):
        """Pixels in [0, 1], not clamped."""
        return self.vae((z / self.scaling).to(self.dtype)).float() * 0.5 + 0.5

    def scores(self, x0, concepts):
        size = self.vision.config.image_size
        pixels = F.interpolate(self.decode(x0), (size, size), mode="bicubic", align_corners=False)
        embedding = self.vision(((pixels - self.mean) / self.std).to(self.dtype)).image_embeds.float()
        return F.normalize(embedding, dim=-1) @ concepts.T

    def gradient(self, x0, concepts, wrt=None):
        """d log p_h / d x0 (or with respect to `wrt`, on which x0 depends), p_h the mean of the cosines."""
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_(True) if wrt is None else x0
            density = self.scores(x0, concepts).mean(-1).clamp_min(FLOOR)
            return torch.autograd.grad(density.log().sum(), x0 if wrt is None else wrt)[0]

    def step(self, z, t, context, guidance, alpha, before, concepts=None, gamma=0.0):
        """One DDIM step; with concepts a guarded one whose gate is open."""
        eps = self.rows(z, t, context, guidance)
        x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        if concepts is not None:
            # Sample by sample, as we do: the guard's memory does not grow with the batch.
            x0 = x0 - gamma * torch.cat([self.gradient(one, concepts) for one in x0.split(1)])
        return before**0.5 * x0 + (1 - before) ** 0.5 * eps
