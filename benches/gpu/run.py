"""Everything that is to be measured and proved on a GPU, on a machine without Rust and without a network.

    python3 benches/gpu/run.py --pack FILE --out FOLDER [--seconds 460] [--only STAGE] [--list] [--dry LIBRARIES]

FILE of --pack is what benches/gpu/pack.sh made, or a folder with the same inside. Call it again and again with the same
--out until it says that everything is done: every call goes on where the last one ended and takes no longer than
--seconds. The folder may come from an earlier machine of the same kind; results of another device, driver or commit are
refused, and want another folder. What lies in it, eight files at most:

    state.json       what is done, and why what failed did            machine.txt   device, driver, versions
    proofs.txt       kernels and whole models on the device           probes.json   what the hardware does, recorded
    ours.jsonl       our steps, images and kernels                    torch.jsonl   PyTorch: eager, compiled; memory
    sanitizer.txt    compute-sanitizer's words

--dry LIBRARIES tries all of it without a GPU: small sizes, PyTorch on the CPU, the stand-in for the driver in the
folder LIBRARIES. Its numbers mean nothing and say so.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


# Words of kernels' names: every kernel that a program launches has one.
KERNELS = ["gemm", "conv2d_f16", "conv2d_bwd", "attention product softmax round_rows", "norm join",
           "add affine silu gelu geglu ddim clip embed timestep resample place upsample sld"]


class Part:
    """One thing to do: a command, the file that its words go to, and how long it may take."""

    def __init__(self, name, file, seconds, command, settings=None, needs=None):
        self.name, self.file, self.seconds, self.command = name, file, seconds, list(map(str, command))
        self.settings, self.needs = settings or {}, needs


def parts(a):
    """Most valuable first."""
    python, binary, proofs = sys.executable, a.pack / "unguide", a.pack / "gpu-tests"
    device, weights = "cpu" if a.dry else "cuda", a.scratch
    models = ["small"] if a.dry else ["sd15", "sd21"]
    on_device = {"UNGUIDE_TEST_GPU": 0, "UNGUIDE_TEST_STUB": int(bool(a.dry))}
    few = {"UNGUIDE_TEST_STEPS": 1, "UNGUIDE_TEST_EVERY": 40, "UNGUIDE_TEST_RUNS": 2} if a.dry else {}

    def proof(name, seconds, test, file="proofs.txt", settings=None, before=(), needs=None):
        command = [*before, proofs, "--exact", test, "--nocapture", "--test-threads", 1]
        return Part(name, file, seconds, command, on_device | few | (settings or {}), needs)

    yield Part("1 machine", "machine.txt", 120, [python, HERE / "machine.py", binary])
    yield proof("1 kernels f16", 400, "kernels_with_f16_hold")
    yield proof("1 kernels bf16", 400, "kernels_with_bf16_hold")
    yield proof("1 goldens", 300, "the_demo_draws_its_golden_images")
    yield Part("1 probes", "probes.json", 120, [python, HERE / "probes.py", *(["--dry"] if a.dry else [])])
    for model in models:
        yield Part(f"2 draw {model}", "machine.txt", 300, [python, HERE / "draw.py", model, weights])
    for model in models:
        for batch in (1, 8):
            common = [python, HERE / "ours.py", binary, weights, model, device, "--batch", batch]
            yield Part(f"2 ours {model} batch {batch}", "ours.jsonl", 420, common, needs=f"2 draw {model}")
    for model in ["demo"] if a.dry else models:
        # A part of the launches at a time: together they take longer than a call may.
        for kernels in ["group_norm_f16"] if a.dry else KERNELS:
            chosen = [word for kernel in kernels.split() for word in ("--filter", kernel)]
            command = [binary, "bench", "kernels", "--device", "cuda", "--preset", model, "--json", *chosen]
            yield Part(f"2 kernels {model} {kernels}", "ours.jsonl", 440, command)

    def torch(name, model, seconds, *options):
        command = [python, HERE / "torch_steps.py", weights, model, device, *options]
        return Part(name, "torch.jsonl", seconds, command, needs=f"2 draw {model}")
    for model in models:
        for batch in (1, 8):
            yield torch(f"3 torch eager {model} batch {batch}", model, 240, "--batch", batch)
    memory = [python, ROOT / "benches/torch_memory.py", "--model", weights / "sd15"]
    if not a.dry:
        yield Part("3 torch memory", "torch.jsonl", 240, memory, needs="2 draw sd15")
    for mode in ["default"] if a.dry else ["default", "max-autotune"]:
        for model in models:
            name = f"4 torch compile {mode} {model}"
            yield torch(name, model, 450, "--batch", 1, "--compile", mode)
    yield proof("5 determinism", 440, "every_run_and_every_batch_give_the_same_bits")
    for tool in ("memcheck", "racecheck"):
        # One proof of thirty: some twenty cases.
        before = ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9]
        some = {"UNGUIDE_TEST_EVERY": 30}
        yield proof(f"6 {tool}", 440, "kernels_with_f16_hold", "sanitizer.txt", some, before, needs="tool")


def identity(a):
    """What a result belongs to: device, driver and binary."""
    if a.dry:
        return "a dry run without a GPU: its numbers mean nothing"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    words = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    version = subprocess.run([a.pack / "unguide", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{words}; {version.strip()}; {(a.pack / 'commit').read_text().strip()}"


def run(part, a, left):
    """Adds the part's words to its file and returns `done`, or why it is not."""
    settings = {"UNGUIDE_CACHE_DIR": a.scratch / "kernels", "PYTHONPATH": HERE} | part.settings
    if a.dry:
        settings["LD_LIBRARY_PATH"] = a.dry
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    words = a.out / f".{part.file}.part"
    start = time.monotonic()
    with words.open("w") as output:
        try:
            # What is data goes to the file; what is said beside it, too, where the file is for people.
            beside = subprocess.STDOUT if part.file.endswith(".txt") else None
            code = subprocess.run(part.command, cwd=ROOT, env=environment, stdout=output, stderr=beside,
                                  timeout=min(part.seconds, left)).returncode
        except subprocess.TimeoutExpired:
            code = "no end within its time"
        except OSError as error:
            code = str(error)
    text = words.read_text(errors="replace")
    words.unlink()
    if code != 0 and part.file.endswith(".jsonl"):
        # What is tried again would stand there twice.
        text = ""
    head = f"== {part.name}\n" if part.file.endswith(".txt") else ""
    if part.file.endswith(".json"):
        (a.out / part.file).write_text(text)
    else:
        with (a.out / part.file).open("a") as output:
            output.write(head + text)
    took = time.monotonic() - start
    return "done" if code == 0 else f"failed: {code}", round(took, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/unguide-gpu"))
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--only", default="", help="stages or parts whose name begins so")
    parser.add_argument("--again", action="store_true", help="what failed is tried again")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--dry", type=Path)
    a = parser.parse_args()
    for name in ("pack", "out", "scratch", "dry"):
        setattr(a, name, getattr(a, name) and getattr(a, name).resolve())
    if a.list:
        return print(*(f"{part.name:32} {part.seconds:4} s  {part.file}" for part in parts(a)), sep="\n")
    end = time.monotonic() + a.seconds
    for folder in (a.out, a.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    if a.pack.is_file():
        with tarfile.open(a.pack) as packed:
            packed.extractall(a.scratch / "pack", filter="data")
        a.pack = a.scratch / "pack"
    path, here = a.out / "state.json", identity(a)
    state = json.loads(path.read_text()) if path.exists() else {}
    if not state and any(a.out.iterdir()):
        sys.exit(f"--out {a.out}: expected an empty folder, or one with a state.json of this script")
    if state and state["on"] != here:
        sys.exit(f"--out {a.out}: its results are of {state['on']}, and this is {here}: name another folder")
    state = state or {"on": here, "parts": {}}
    print("on", here)
    waiting = 0
    for part in parts(a):
        before = state["parts"].get(part.name, {}).get("result", "")
        drawn = part.name.startswith("2 draw") and not a.dry and not (a.scratch / part.name[7:] / "whole").exists()
        finished = before == "done" and not drawn or before and before != "done" and not a.again
        if finished or not part.name.startswith(a.only):
            continue
        left = end - time.monotonic()
        if part.needs == "tool" and shutil.which(part.command[0]) is None:
            result, took = f"not possible: there is no {part.command[0]}", 0
        elif part.needs and part.needs != "tool" and state["parts"].get(part.needs, {}).get("result") != "done":
            waiting += 1
            continue
        elif left < min(part.seconds, a.seconds - 15) and not a.dry:
            waiting += 1
            continue
        else:
            result, took = run(part, a, left)
        state["parts"][part.name] = {"result": result, "seconds": took}
        path.write_text(json.dumps(state, indent=1))
        print(f"{part.name:32} {took:7.1f} s  {result}", flush=True)
    failed = [name for name, part in state["parts"].items() if part["result"] != "done"]
    print("everything is done" if waiting == 0 else f"{waiting} parts wait: call again with the same --out")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
