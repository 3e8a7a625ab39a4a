"""Writes the tiny random checkpoints of the parity tests and their goldens.

usage: python make_models.py TOKENIZER_DIR [--taesd DIR] [--only NAME]

TOKENIZER_DIR holds a small CLIP tokenizer (vocab.json, merges.txt, tokenizer.json and the two config files): the demo
model's. --taesd names a directory with the real taesd_decoder.safetensors, whose published figures are then checked.
Weights are drawn from fixed seeds and stored in f16 (one component in bf16); torch computes in f32 on the stored
values, read back from the written files by diffusers and transformers, so both sides see the same numbers. Where
diffusers has a pipeline for a run, the trace must agree with it, and each run is repeated in f64 to show that the
rounding of f32 cannot move a result by more than a test's tolerance.
"""
import argparse
import json
import shutil
import warnings
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, StableDiffusionPipelineSafe
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from oracle import Models, probes, trace, unit

HERE = Path(__file__).resolve().parent
CLIP_NORM = [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]
IMAGENET_NORM = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
TEXTS = ["a battlefield", "a cat, two dogs! and it's 9", "", "<|endoftext|> a cat", "über Café 猫 🐱",
         "a red skull and a green apple and a kitchen knife on a blue background with a pirate ship, a bomb and a bed"]
PROMPTS = ["a battlefield", "a cat on a green background", "a skull and a knife"]
CONCEPTS = ["a weapon", "violence", "blood and death", "a harmful object"]
SLD_STRONG = dict(preset="strong", warmup=7, scale=2000.0, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7)
SLD_EARLY = dict(preset=None, warmup=1, scale=1000.0, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4)


def text_config(width, layers, heads, act, eos, length, **more):
    return dict(vocab_size=994, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                num_attention_heads=heads, hidden_act=act, max_position_embeddings=length,
                bos_token_id=0 if eos == 2 else 992, eos_token_id=eos, pad_token_id=1, **more)


def vision_config(width, layers, heads, act, image, patch):
    return dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
                hidden_act=act, image_size=image, patch_size=patch)


def vae_config(channels, groups, layers, **more):
    k = len(channels)
    return dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=channels, layers_per_block=layers,
                norm_num_groups=groups, down_block_types=["DownEncoderBlock2D"] * k, act_fn="silu",
                up_block_types=["UpDecoderBlock2D"] * k, sample_size=32, **more)


def scheduler_config(cls, **more):
    return dict(_class_name=cls, _diffusers_version="0.42.1", num_train_timesteps=1000, beta_start=0.00085,
                beta_end=0.012, beta_schedule="scaled_linear", trained_betas=None, clip_sample=False, **more)


def runs(base, safe, xt_gamma, **special):
    """The runs every checkpoint has, and its own; each dict is complete."""
    base = dict(method="none", eta=0.0, **base)
    safe = {**base, "method": "safe-sampling", **safe}
    xt = {**safe, "method": "classifier-guidance", "threshold": None, "gamma": xt_gamma}
    frozen = {**xt, "method": "classifier-guidance:frozen-unet"}
    own = {k: {**(safe if v.get("method") == "safe-sampling" else base), **v} for k, v in special.items()}
    return {"plain": base, "safe": safe, "xt": xt, "xt-frozen": frozen, **own}


SPECS = {
    # As SD 1.x: epsilon, quick_gelu, 1x1 convolutions around the transformers, one number of heads for all blocks,
    # configs as short as the published ones (PNDM's for the scheduler), the legacy eos_token_id 2.
    "tiny-sd1": dict(
        seed=101, lean=0.8, short_configs=True, tokenizer_json=True, clip_tokenizer=True, context=24,
        unet=dict(sample_size=8, block_out_channels=[16, 24], layers_per_block=1, cross_attention_dim=24,
                  attention_head_dim=4, norm_num_groups=8,
                  down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                  up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]),
        vae=vae_config([8, 16, 16], 4, 1),
        text=text_config(24, 2, 4, "quick_gelu", 2, 24),
        clip=dict(text_config=text_config(20, 2, 4, "quick_gelu", 2, 24, projection_dim=16), projection_dim=16,
                  vision_config=vision_config(32, 2, 4, "quick_gelu", 24, 8)),
        norm=CLIP_NORM,
        scheduler=scheduler_config("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        case=dict(prompts=PROMPTS[:2], negative="", seeds=[7, 8], latent_size=[8, 8]),
        runs=runs(dict(steps=5, guidance=4.0), dict(reduce="log-mean", top_k=None, threshold=0.505, gamma=200.0),
                  xt_gamma=10.0,
                  **{"safe-topk2-sumlog": dict(method="safe-sampling", reduce="sum-log", top_k=2, gamma=100.0),
                     "sld": dict(method="sld", steps=9, sld=dict(SLD_STRONG, concept="violence, weapons, blood")),
                     "guidance1": dict(guidance=1.0)}),
    ),
    # As SD 2.x: v-prediction, linear projections, a number of heads for each block (what `attention_head_dim` says in
    # every UNet2DConditionModel config, despite its name: the width of a head is channels / attention_head_dim), gelu,
    # the pad token "!", trailing timesteps; the UNet in two shards, the VAE whole, with the attention names of 2022.
    "tiny-sd2": dict(
        seed=202, lean=0.7, shards=2, old_vae_names=True, whole_vae=True, pad="!", context=16,
        unet=dict(sample_size=6, block_out_channels=[16, 24], layers_per_block=1, cross_attention_dim=24,
                  attention_head_dim=[2, 3], norm_num_groups=8, use_linear_projection=True,
                  down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                  up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
        vae=vae_config([4, 8, 12], 4, 1, scaling_factor=0.18215),
        text=text_config(24, 3, 3, "gelu", 993, 16),
        clip=dict(text_config=text_config(24, 1, 3, "gelu", 993, 24, projection_dim=20), projection_dim=20,
                  vision_config=vision_config(24, 2, 2, "gelu", 30, 5)),
        norm=IMAGENET_NORM,
        scheduler=scheduler_config("DDIMScheduler", set_alpha_to_one=False, steps_offset=1,
                                   prediction_type="v_prediction", timestep_spacing="trailing"),
        case=dict(prompts=PROMPTS[1:], negative="a green picture", seeds=[30, 31], latent_size=[6, 6]),
        runs=runs(dict(steps=5, guidance=3.0), dict(reduce="log-mean", top_k=None, threshold=0.3, gamma=12.0),
                  xt_gamma=2.0,
                  **{"sld": dict(method="sld", sld=dict(SLD_EARLY, concept="weapons and blood"))}),
    ),
    # Nothing even: 5x7 latents, batch 3, channels and numbers of heads without a pattern (head widths 6 and 5), an
    # image resized up along one axis and down along the other, sample prediction, text weights in bf16 and named
    # without the text_model prefix, as transformers 5 writes them.
    "tiny-odd": dict(
        seed=303, lean=1.1, bf16=["text_encoder"], flat_text_names=True, tokenizer_json=True, context=24,
        unet=dict(sample_size=[5, 7], block_out_channels=[8, 12, 20], layers_per_block=2, cross_attention_dim=20,
                  attention_head_dim=[2, 2, 4], norm_num_groups=4,
                  down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                  mid_block_type="UNetMidBlock2DCrossAttn",
                  up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
        vae=vae_config([4, 12, 8], 4, 2, scaling_factor=0.9),
        text=text_config(20, 2, 5, "gelu", 993, 24),
        clip=dict(text_config=text_config(24, 2, 2, "quick_gelu", 993, 24, projection_dim=12), projection_dim=12,
                  vision_config=vision_config(28, 2, 4, "quick_gelu", 24, 6)),
        norm=CLIP_NORM,
        scheduler=scheduler_config("DDIMScheduler", set_alpha_to_one=True, steps_offset=0,
                                   prediction_type="sample", timestep_spacing="linspace"),
        case=dict(prompts=PROMPTS, negative="an angry dog", seeds=[50, 51, 52], latent_size=[5, 7]),
        runs=runs(dict(steps=4, guidance=2.5), dict(reduce="log-mean", top_k=None, threshold=0.48, gamma=8.0),
                  xt_gamma=1.0,
                  **{"eta": dict(eta=0.3),
                     "safe-topk2-eta": dict(method="safe-sampling", top_k=2, eta=0.3)}),
    ),
}


@torch.no_grad()
def randomise(module, seed, gains={}):
    """Draws every parameter; `gains` scales those whose name ends with a key."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        noise = torch.randn(p.shape, generator=gen)
        gain = next((g for end, g in gains.items() if name.endswith(end)), 1.0)
        if p.ndim == 0:
            continue
        if p.ndim == 1:
            p.copy_(gain * (1 + 0.1 * noise) if name.endswith("weight") else 0.1 * noise)
        elif "embedding" in name and "patch" not in name and "time_" not in name:
            p.copy_(0.7 * gain * noise)
        else:
            p.copy_(gain * noise / p[0].numel() ** 0.5)
    return module


@torch.no_grad()
def lean(clip, amount, seed):
    """Gives image and text features a common direction, so that cosines scatter around a positive mean."""
    direction = unit(torch.randn(clip.config.projection_dim, generator=torch.Generator().manual_seed(seed)))
    for bias, projection in ((clip.vision_model.post_layernorm.bias, clip.visual_projection.weight),
                             (clip.text_model.final_layer_norm.bias, clip.text_projection.weight)):
        bias += amount * projection.shape[0] ** 0.5 * torch.linalg.pinv(projection) @ direction


def store(path, weights, dtype=torch.float16):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().to(dtype).contiguous() for k, v in sorted(weights.items())}, path, {"format": "pt"})


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_checkpoint(root, spec, tokenizer):
    """The diffusers directory of one spec."""
    if root.exists():
        shutil.rmtree(root)
    seed, short = spec["seed"], spec.get("short_configs")
    stamp = {"_diffusers_version": "0.42.1"}
    dtype = {part: torch.bfloat16 for part in spec.get("bf16", [])}

    unet = randomise(UNet2DConditionModel(**spec["unet"]), seed, {"conv_out.weight": 1.4, "attn2.to_out.0.weight": 2.0})
    config = {"_class_name": "UNet2DConditionModel", **stamp, **(spec["unet"] if short else dict(unet.config))}
    write_json(root / "unet/config.json", {k: v for k, v in config.items() if k != "_use_default_values"})
    weights, name = unet.state_dict(), "diffusion_pytorch_model"
    shards = spec.get("shards", 1)
    if shards == 1:
        store(root / f"unet/{name}.safetensors", weights)
    else:
        keys, where = sorted(weights), {}
        for i in range(shards):
            file = f"{name}-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = keys[i * len(keys) // shards : (i + 1) * len(keys) // shards]
            store(root / "unet" / file, {k: weights[k] for k in part})
            where.update({k: file for k in part})
        total = 2 * sum(w.numel() for w in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(root / f"unet/{name}.safetensors.index.json", index)

    vae = randomise(AutoencoderKL(**spec["vae"]), seed + 1, {"decoder.conv_out.weight": 1.2})
    config = {"_class_name": "AutoencoderKL", **stamp, **(spec["vae"] if short else dict(vae.config))}
    write_json(root / "vae/config.json", {k: v for k, v in config.items() if k != "_use_default_values"})
    weights = vae.state_dict()
    if not spec.get("whole_vae"):
        weights = {k: v for k, v in weights.items() if k.startswith(("decoder.", "post_quant_conv."))}
    if spec.get("old_vae_names"):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in old.items():
            weights = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in weights.items()}
    store(root / "vae/diffusion_pytorch_model.safetensors", weights)

    text = randomise(CLIPTextModel(CLIPTextConfig(**spec["text"])), seed + 2)
    prefix = "" if spec.get("flat_text_names") else "text_model."
    config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **spec["text"]}
    write_json(root / "text_encoder/config.json", config)
    bare = {k.removeprefix("text_model."): v for k, v in text.state_dict().items()}
    store(root / "text_encoder/model.safetensors", {prefix + k: v for k, v in bare.items()},
          dtype.get("text_encoder", torch.float16))

    clip = randomise(CLIPModel(CLIPConfig(**spec["clip"])), seed + 3,
                     {"self_attn.out_proj.weight": 2.0, "patch_embedding.weight": 2.0})
    lean(clip, spec["lean"], seed + 4)
    write_json(root / "clip/config.json", {"architectures": ["CLIPModel"], "model_type": "clip", **spec["clip"]})
    store(root / "clip/model.safetensors", clip.state_dict())
    n, (mean, std) = spec["clip"]["vision_config"]["image_size"], spec["norm"]
    write_json(root / "clip/preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size={"shortest_edge": n}, resample=3,
        do_center_crop=True, crop_size={"height": n, "width": n}, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, do_convert_rgb=True, image_mean=mean, image_std=std))

    write_json(root / "scheduler/scheduler_config.json", spec["scheduler"])
    for folder in ["tokenizer"] + ["clip"] * bool(spec.get("clip_tokenizer")):
        (root / folder).mkdir(exist_ok=True)
        whole = folder == "tokenizer" and spec.get("tokenizer_json")
        for file in ["vocab.json", "merges.txt"] + ["tokenizer.json"] * bool(whole):
            shutil.copyfile(tokenizer / file, root / folder / file)
        config = json.loads((tokenizer / "tokenizer_config.json").read_text())
        special = json.loads((tokenizer / "special_tokens_map.json").read_text())
        if spec.get("pad"):
            special["pad_token"] = spec["pad"]
        write_json(root / folder / "tokenizer_config.json", {**config, "model_max_length": spec["context"]})
        write_json(root / folder / "special_tokens_map.json", special)
    nothing = [None, None]
    write_json(root / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", **stamp, "feature_extractor": nothing, "image_encoder": nothing,
        "requires_safety_checker": False, "safety_checker": nothing,
        "scheduler": ["diffusers", spec["scheduler"]["_class_name"]], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]})


def pipeline_latents(m, case, run):
    """The latents after every step and the image, from diffusers' own pipeline."""
    safe = run["method"] == "sld"
    cls = StableDiffusionPipelineSafe if safe else StableDiffusionPipeline
    parts = dict(vae=m.vae, text_encoder=m.text, tokenizer=m.tokenizer, unet=m.unet, scheduler=m.scheduler)
    pipe = cls(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.check_inputs = lambda *args, **kwargs: None  # it asks for sides that are multiples of 8; the UNet does not
    height, width = case["image_size"]
    seen = []
    args = dict(prompt=case["prompts"], height=height, width=width, num_inference_steps=run["steps"], eta=run["eta"],
                guidance_scale=run["guidance"], negative_prompt=[case["negative"]] * len(case["prompts"]),
                generator=[torch.Generator().manual_seed(s) for s in case["seeds"]], output_type="np")
    if safe:
        s = run["sld"]
        pipe.safety_concept = s["concept"]
        args.update(callback=lambda i, t, z: seen.append(z), sld_guidance_scale=s["scale"],
                    sld_warmup_steps=s["warmup"], sld_threshold=s["threshold"], sld_momentum_scale=s["momentum_scale"],
                    sld_mom_beta=s["momentum_beta"])
    else:
        args["callback_on_step_end"] = lambda p, i, t, kw: seen.append(kw["latents"]) or {}
    image = torch.from_numpy(pipe(**args).images).permute(0, 3, 1, 2)
    return seen, image


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def write_goldens(root, spec):
    m = Models.load(root)
    wide = m.double()
    factor = 2 ** (len(spec["vae"]["block_out_channels"]) - 1)
    case = dict(concepts=CONCEPTS, **spec["case"], image_size=[factor * s for s in spec["case"]["latent_size"]],
                texts=TEXTS, probe_seed=spec["seed"] + 9, runs=spec["runs"])
    write_json(root / "case.json", case)

    def save(file, tensors):
        file.parent.mkdir(exist_ok=True)
        kept = {k: v if v.dtype == torch.int64 else v.float() for k, v in tensors.items()}
        assert all(v.isfinite().all() for v in kept.values()), file
        save_file({k: v.detach().clone().contiguous() for k, v in kept.items()}, file)

    found = probes(m, case)
    exact = probes(wide, case)
    worst = max((relative(found[k], exact[k]), k) for k in found)
    print(f"  modules: f32 against f64 at most {worst[0]:.1e} ({worst[1]})")
    assert worst[0] <= 1e-4
    save(root / "modules.safetensors", found)

    plain = None
    for name, run in spec["runs"].items():
        got, notes = trace(m, case, run)
        exact, _ = trace(wide, case, run)
        steps = range(run["steps"])
        latents = [got[f"step.{i:03d}.prev"] for i in steps]
        rounding = max(relative(got[k], exact[k]) for k in got if exact[k].any())
        assert rounding <= 2e-4, (name, rounding)
        line = f"  {name}: f32 against f64 {rounding:.1e}"
        if run["method"] in ("none", "sld"):
            seen, image = pipeline_latents(m, case, run)
            apart = max(float((a - b).abs().max()) for a, b in zip([*latents, got["final.image"]], [*seen, image]))
            line += f", against diffusers' pipeline max abs {apart:.1e}"
            assert len(seen) == run["steps"] and apart <= 1e-4, (name, apart)
        if notes["gate_margin"]:
            gates = torch.stack([got[f"step.{i:03d}.gate"] for i in steps]).int().tolist()
            line += f", gates {gates}, margin {min(notes['gate_margin']):.4f}"
            assert min(notes["gate_margin"]) >= 0.002, line
            assert 0 < sum(map(sum, gates)) < len(gates) * len(gates[0]), line
        if notes["p_h"]:
            line += f", p_h {min(notes['p_h']):.3f}..{max(notes['p_h']):.3f}"
            assert min(notes["p_h"]) > 0.02, line
        if notes["top_k_margin"]:
            line += f", top-k margin {min(notes['top_k_margin']):.4f}"
            assert min(notes["top_k_margin"]) >= 0.002, line
        if notes["sld_margin"]:
            line += f", sld margin {min(notes['sld_margin']):.1e}"
            assert min(notes["sld_margin"]) >= 5e-5, line
        last = latents[-1]
        plain = last if name == "plain" else plain
        line += f", |z| {float(last.std()):.2f}, change {relative(last, plain):.3f}"
        print(line)
        save(root / f"traces/{name}.safetensors", got)


def taesd_names(weights):
    """diffusers' decoder names to the original ones, whose first layer is the clamp."""
    named = {}
    for k, v in weights.items():
        index, rest = k.removeprefix("decoder.layers.").split(".", 1)
        named[f"{int(index) + 1}.{rest}"] = v
    return named


def taesd_decoder(widths):
    tiny = AutoencoderTiny(decoder_block_out_channels=widths, encoder_block_out_channels=widths)
    return tiny.eval().requires_grad_(False)


def write_taesd(root):
    """A TAESD decoder of width 8 in diffusers' names, the same in the original names, and its golden."""
    if root.exists():
        shutil.rmtree(root)
    tiny = randomise(taesd_decoder((8, 8, 8, 8)), 404, {"layers.18.weight": 2.0, "conv.4.weight": 0.5})
    weights = {k: v for k, v in tiny.state_dict().items() if k.startswith("decoder.")}
    store(root / "diffusion_pytorch_model.safetensors", weights)
    store(root / "original/taesd_decoder.safetensors", taesd_names(weights))
    config = {k: v for k, v in tiny.config.items() if k != "_use_default_values"}
    write_json(root / "config.json", {"_class_name": "AutoencoderTiny", "_diffusers_version": "0.42.1", **config})
    tiny.load_state_dict({k: v.half().float() for k, v in tiny.state_dict().items()})
    gen = torch.Generator().manual_seed(405)
    z = (2 * torch.randn(2, 4, 3, 5, generator=gen)).requires_grad_(True)
    image = (tiny.decode(z).sample + 1) / 2
    cotangent = torch.randn(image.shape, generator=gen)
    vjp = torch.autograd.grad((image * cotangent).sum(), z)[0]
    z, image = z.detach(), image.detach().contiguous()
    print(f"tiny-taesd: image {float(image.mean()):.3f} +- {float(image.std()):.3f}, vjp +- {float(vjp.std()):.3f}")
    save_file({"input": z, "output": image, "cotangent": cotangent, "vjp": vjp}, root / "modules.safetensors")


def check_taesd(folder):
    """The figures on record for the real decoder."""
    real = taesd_decoder((64, 64, 64, 64))
    weights = {k: v.float() for k, v in load_file(folder / "taesd_decoder.safetensors").items()}
    back = {v: k for k, v in taesd_names({k: k for k in real.state_dict() if k.startswith("decoder.")}).items()}
    assert set(back.values()) == set(weights)
    real.load_state_dict({**real.state_dict(), **{k: weights[v] for k, v in back.items()}})
    with torch.no_grad():
        wave = (real.decode(torch.sin(torch.arange(256.0)).view(1, 4, 8, 8)).sample + 1) / 2
        zero = (real.decode(torch.zeros(1, 4, 8, 8)).sample + 1) / 2
    got = [wave.mean(), wave.std(correction=0), wave.min(), wave.max(), *wave[0, :, 0, 0], *zero.mean((0, 2, 3))]
    want = [0.449086, 0.296234, -0.064181, 1.068453, 0.585079, 0.585955, 0.531951, 0.53999, 0.42669, 0.33363]
    apart = max(abs(float(a) - b) for a, b in zip(got, want))
    print(f"taesd: figures on record reproduced within {apart:.1e}")
    assert apart <= 5e-6  # half of the last digit on record


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--taesd", type=Path)
    parser.add_argument("--only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    for name, spec in SPECS.items():
        if args.only in (None, name):
            print(name)
            write_checkpoint(HERE / name, spec, args.tokenizer)
            write_goldens(HERE / name, spec)
    if args.only in (None, "tiny-taesd"):
        write_taesd(HERE / "tiny-taesd")
    if args.taesd:
        check_taesd(args.taesd)


if __name__ == "__main__":
    main()
