"""The cases of benches/cpu_ops.rs in PyTorch: `python benches/torch_ops.py [--threads 2]`. Channels-last, as ours."""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=2)
torch.set_num_threads(parser.parse_args().threads)
torch.set_grad_enabled(False)


def case(name, flops, work):
    work()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < 1.5:
        once = time.perf_counter()
        work()
        times.append(time.perf_counter() - once)
    median = statistics.median(times)
    speed = f"{flops / median / 1e9:9.1f}" if flops else "        -"
    print(f"{name:44} {1e3 * median:10.2f} {f'{1e3 * min(times):.2f}..{1e3 * max(times):.2f}':>16} {speed}", flush=True)


last = torch.channels_last
for c, o, side in [(320, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (128, 128, 256), (256, 256, 128)]:
    x, w = torch.randn(1, c, side, side).to(memory_format=last), torch.randn(o, c, 3, 3).to(memory_format=last)
    y = torch.randn(1, o, side, side).to(memory_format=last)
    case(f"conv2d 3x3 {c} -> {o} at {side}x{side}", 18 * c * o * side**2, lambda: F.conv2d(x, w, padding=1))
    case(f"conv2d_bwd 3x3 {c} -> {o} at {side}x{side}", 18 * c * o * side**2,
         lambda: torch.nn.grad.conv2d_input(x.shape, w, y, padding=1))
for rows, k, m in [(4096, 320, 320), (4096, 320, 2560), (1024, 640, 640), (256, 1280, 10240)]:
    x, w, b = torch.randn(1, rows, k), torch.randn(m, k), torch.randn(m)
    case(f"linear {rows}x{k} -> {m}", 2 * rows * k * m, lambda: F.linear(x, w, b))
for heads, t, u, c in [(8, 4096, 4096, 320), (8, 4096, 77, 320), (8, 1024, 1024, 640), (1, 4096, 4096, 512)]:
    q, k, v = (torch.randn(1, n, heads, c // heads).transpose(1, 2) for n in (t, u, u))
    case(f"attention {heads} heads {t}x{u} c {c}", 4 * t * u * c, lambda: F.scaled_dot_product_attention(q, k, v))
for side, c in [(64, 320), (256, 256)]:
    x, g, b = torch.randn(1, c, side, side).to(memory_format=last), torch.randn(c), torch.randn(c)
    case(f"group_norm None {side}x{side}x{c}", 0, lambda: F.group_norm(x, 32, g, b))
    case(f"group_norm Some(Silu) {side}x{side}x{c}", 0, lambda: F.silu(F.group_norm(x, 32, g, b)))
x = torch.randn(1, 4096, 2560)
case("geglu 4096x2560", 0, lambda: x[..., :1280] * F.gelu(x[..., 1280:]))
x = torch.randn(1, 4096, 320)
case("layer_norm 4096x320", 0, lambda: F.layer_norm(x, (320,)))
