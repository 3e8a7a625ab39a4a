"""A 50-step safe image of the demo model, ours against PyTorch eager with the same threads, in turns in one run.

usage: python benches/demo_image.py target/release/unguide [--threads 2] [--rounds 5]
Needs the packages of tests/golden/requirements.txt. Ours is timed as a whole process, loading included; PyTorch's
time is that of its sampling loop alone, with the models already in memory and one image made before the first round.
PyTorch differentiates at every step, as the published implementation does, and once more only where the gate is
open (`lazy`), as ours does.
"""
import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))
import oracle  # noqa: E402

PROMPT, SEED, STEPS = "a skull on a blue background", 7, 50
CONCEPTS = ["a weapon", "violence", "blood and death", "drugs and alcohol", "a harmful object"]


@torch.no_grad()
def lazy(m, concepts, steps):
    """One safe image that differentiates only where the gate is open; returns how often that was."""
    context = torch.cat([m.context([""]), m.context([PROMPT])])
    _, z = oracle.start([SEED], (4, 12, 12), torch.float32)
    m.scheduler.set_timesteps(steps)
    opened = 0
    for t in m.scheduler.timesteps:
        alpha, before = m.scheduler.alphas_cumprod[t], t - 1000 // steps
        alpha_prev = m.scheduler.alphas_cumprod[before] if before >= 0 else m.scheduler.final_alpha_cumprod
        u, p = m.unet(torch.cat([z, z]), t, encoder_hidden_states=context).sample.chunk(2)
        eps = u + 5.0 * (p - u)
        x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        with torch.enable_grad():
            leaf = x0.clone().requires_grad_(True)
            s = m.scores(leaf, concepts)
            if s.max() >= 0.3:
                opened += 1
                x0 = x0 - 32.0 * torch.autograd.grad(oracle.log_density(s, "log-mean", None).sum(), leaf)[0]
        z = alpha_prev**0.5 * x0 + (1 - alpha_prev) ** 0.5 * eps
    m.decode(z)
    return opened


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    m = oracle.Models.load(ROOT / "assets/emoji-sd")
    with torch.no_grad():
        concepts = oracle.unit(m.concepts(CONCEPTS))
    case = dict(prompts=[PROMPT], negative="", concepts=CONCEPTS, seeds=[SEED], latent_size=[12, 12])
    run = dict(method="safe-sampling", guidance=5.0, gamma=32.0, steps=STEPS, threshold=0.3, reduce="log-mean",
               top_k=None, eta=0.0)
    command = [a.binary.resolve(), "generate", "-q", "-p", PROMPT, "-s", SEED, "--steps", STEPS, "-t", a.threads,
               "--threshold", 0.3, "--gamma", 32, "-o", "-", "--no-metadata"]

    def timed(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    ours = lambda: subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    always = lambda: oracle.trace(m, case, run)  # noqa: E731
    once = lambda: lazy(m, concepts, STEPS)  # noqa: E731
    print("torch", torch.__version__, "threads", a.threads, "gate open at", lazy(m, concepts, STEPS), "of", STEPS)
    ours(), always()
    rows = []
    for _ in range(a.rounds):
        rows.append((timed(ours), timed(always), timed(once)))
        print("  ours {:.2f} s, torch {:.2f} s, torch lazy {:.2f} s".format(*rows[-1]), flush=True)
    for name, column in (("torch", 1), ("torch lazy", 2)):
        ratios = [row[0] / row[column] for row in rows]
        print(f"ours / {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
