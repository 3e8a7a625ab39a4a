"""Everything that is to be measured and proved on a GPU, on a machine without Rust and without a network.

    python3 benches/gpu/run.py --pack FILE --out FOLDER [--seconds 460] [--only STAGE] [--again] [--list]
                               [--dry LIBRARIES]

FILE of --pack is what benches/gpu/pack.sh made, or a folder with the same inside. Call it again and again with the same
--out until it says that everything is done: every call goes on where the last one ended and takes no longer than
--seconds. The folder may come from an earlier machine of the same kind; results of another device, driver or commit are
refused, and want another folder. Models are drawn on every machine anew, just before the first part that takes them.
What lies in the folder, eight files at most:

    state.json       what is done, and why what failed did            machine.txt   device, driver, versions
    proofs.txt       kernels and whole models on the device           probes.json   what the hardware does, recorded
    ours.jsonl       our steps, images and kernels                    torch.jsonl   PyTorch: eager, compiled; memory
    sanitizer.txt    compute-sanitizer's words

Every line of a .jsonl names its part. A part that fails or does not end leaves the lines that it has made, each marked
`unfinished`; when it is run again (--again) what it makes takes their place.

--dry LIBRARIES tries all of it without a GPU: small sizes, PyTorch on the CPU, the stand-in for the driver in the
folder LIBRARIES. Its numbers mean nothing and say so.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# Families of proofs with their seconds; the flags by which `bench kernels` takes a part of all kernels. Tests hold that
# every family and every kernel is in exactly one.
TABLE = json.loads((HERE / "parts.json").read_text())


class Part:
    """One thing to do: a command, the file that its words go to, how long it may take, and what it takes."""

    def __init__(self, name, file, seconds, command, settings=None, model=None, tool=None):
        self.name, self.file, self.seconds, self.command = name, file, seconds, list(map(str, command))
        self.settings, self.model, self.tool = settings or {}, model, tool


def drawing(model, a):
    """What makes a model's files in --scratch."""
    return Part(f"2 draw {model}", "machine.txt", 300, [sys.executable, HERE / "draw.py", model, a.scratch])


def is_drawn(model, a):
    return model == "small" or (a.scratch / model / "whole").exists()


def parts(a):
    """Most valuable first."""
    python, binary, proofs = sys.executable, a.pack / "unguide", a.pack / "gpu-tests"
    device, weights = "cpu" if a.dry else "cuda", a.scratch
    models = ["small"] if a.dry else ["sd15", "sd21"]
    on_device = {"UNGUIDE_TEST_GPU": 0, "UNGUIDE_TEST_STUB": int(bool(a.dry))}
    few = {"UNGUIDE_TEST_STEPS": 1, "UNGUIDE_TEST_EVERY": 40, "UNGUIDE_TEST_RUNS": 2} if a.dry else {}

    def proof(name, seconds, test, file="proofs.txt", settings=None, before=(), tool=None):
        command = [*before, proofs, "--exact", test, "--include-ignored", "--nocapture", "--test-threads", 1]
        return Part(name, file, seconds, command, on_device | few | (settings or {}), tool=tool)

    def kernels(dtype):
        # A process a family: a fault costs what is left of one.
        for family, seconds in TABLE["proofs"].items():
            chosen = {"UNGUIDE_TEST_FAMILY": family}
            yield proof(f"1 kernels {dtype} {family}", seconds, f"kernels_with_{dtype}_hold", settings=chosen)

    yield Part("1 machine", "machine.txt", 120, [python, HERE / "machine.py", binary])
    yield from kernels("f16")
    yield proof("1 goldens", 300, "the_demo_draws_its_golden_images")
    yield Part("1 probes", "probes.json", 120, [python, HERE / "probes.py", *(["--dry"] if a.dry else [])])
    yield from kernels("bf16")
    for model in models:
        for batch in (1, 8):
            common = [python, HERE / "ours.py", binary, weights, model, device, "--batch", batch]
            yield Part(f"2 ours {model} batch {batch}", "ours.jsonl", 420, common, model=model)
    for model in ["demo"] if a.dry else models:
        # A part of the launches at a time: together they take longer than a call may.
        for name, part in TABLE["kernels"].items():
            command = [binary, "bench", "kernels", "--device", "cuda", "--preset", model, "--json", *part["flags"]]
            if a.dry:
                command += ["--warm-up", 0, "--duration", 0]
            yield Part(f"2 kernels {model} {name}", "ours.jsonl", part["seconds"], command)

    def torch(name, model, seconds, *options):
        command = [python, HERE / "torch_steps.py", weights, model, device, *options]
        return Part(name, "torch.jsonl", seconds, command, model=model)
    for model in models:
        for batch in (1, 8):
            yield torch(f"3 torch eager {model} batch {batch}", model, 240, "--batch", batch)
    memory = [python, ROOT / "benches/torch_memory.py", "--model", weights / "sd15"]
    if not a.dry:
        yield Part("3 torch memory", "torch.jsonl", 240, memory, model="sd15")
    for mode in ["default"] if a.dry else ["default", "max-autotune"]:
        for model in models:
            name = f"4 torch compile {mode} {model}"
            yield torch(name, model, 450, "--batch", 1, "--compile", mode)
    yield proof("5 determinism", 440, "every_run_and_every_batch_give_the_same_bits")
    for tool in ("memcheck", "racecheck"):
        # One proof of thirty: some twenty cases.
        before = ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9]
        some = {"UNGUIDE_TEST_EVERY": 30}
        yield proof(f"6 {tool}", 440, "kernels_with_f16_hold", "sanitizer.txt", some, before, before[0])


def identity(a):
    """What a result belongs to: device, driver and binary."""
    if a.dry:
        return "a dry run without a GPU: its numbers mean nothing"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    words = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    version = subprocess.run([a.pack / "unguide", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{words}; {version.strip()}; {(a.pack / 'commit').read_text().strip()}"


def execute(part, environment, output, seconds):
    """Runs a part's command, and ends whatever it has started: its exit status, or why there is none."""
    # What is data goes to the file; what is said beside it, too, where the file is for people.
    beside = subprocess.STDOUT if part.file.endswith(".txt") else None
    try:
        # With a group of its own: a program that a command started outlives it, and would go on using the GPU.
        process = subprocess.Popen(part.command, cwd=ROOT, env=environment, stdout=output, stderr=beside,
                                   start_new_session=True)
    except OSError as error:
        return str(error)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"no end within {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            # Until nothing of it is left, if whoever inherits it looks after it.
            for _ in range(50):
                os.killpg(process.pid, 0)
                time.sleep(0.1)


def run(part, a, seconds):
    """Adds the part's words to its file: `done` or why it is not, and how long it took."""
    settings = {"UNGUIDE_CACHE_DIR": a.scratch / "kernels", "PYTHONPATH": HERE, "PYTHONUNBUFFERED": 1} | part.settings
    if a.dry:
        settings["LD_LIBRARY_PATH"] = a.dry
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    words = a.scratch / "words"
    start = time.monotonic()
    with words.open("w") as output:
        code = execute(part, environment, output, seconds)
    result, text = "done" if code == 0 else f"failed: {code}", words.read_text(errors="replace")
    took = round(time.monotonic() - start, 1)
    file = a.out / part.file
    before = file.read_text() if file.exists() else ""
    if part.file.endswith(".jsonl"):
        put(file, with_lines(before, part.name, text, result))
    elif part.file.endswith(".txt"):
        put(file, with_section(before, part.name, text, result))
    elif code == 0:
        put(file, text)
    return result, took


def put(path, text):
    """A file is there as it was or as it shall be, whenever this script ends."""
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(text)
    partial.replace(path)


def with_lines(before, name, text, result):
    """A file's lines of JSON with a part's new ones for its old ones, unless those are more and these not all."""
    mark = {} if result == "done" else {"unfinished": result}
    lines = []
    for line in text.splitlines():
        # The last one may be cut off, and others may be no data.
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line), dict):
                lines.append(json.dumps(row | {"part": name} | mark))
    others, old = [], []
    for line in before.splitlines():
        (old if json.loads(line)["part"] == name else others).append(line)
    kept = old if mark and len(old) > len(lines) else lines
    return "".join(f"{line}\n" for line in others + kept)


def with_section(before, name, text, result):
    """The same of a file of words, in sections with a head each."""
    sections = re.split(r"^(?=== )", before, flags=re.MULTILINE)
    others = "".join(section for section in sections if not section.startswith(f"== {name}: "))
    return f"{others}== {name}: {result}\n{text}" + ("" if text.endswith("\n") or not text else "\n")


class Call:
    """One call of this script: what it knows, and how much of its time is left."""

    def __init__(self, a, state):
        self.a, self.state, self.end = a, state, time.monotonic() + a.seconds
        self.waiting, self.has_run, self.undrawn = 0, False, set()

    def left(self):
        return self.end - time.monotonic()

    def has_time_for(self, part):
        # What nothing but a drawing came before starts with what is left, or no call would ever have enough.
        return self.left() >= min(part.seconds, self.a.seconds - 15) or not self.has_run and self.left() > 15

    def result(self, name):
        return self.state["parts"].get(name, {}).get("result", "")

    def is_open(self, part):
        before = self.result(part.name)
        return part.name.startswith(self.a.only) and (not before or before != "done" and self.a.again)

    def note(self, part, result, took=0):
        self.state["parts"][part.name] = {"result": result, "seconds": took}
        put(self.a.out / "state.json", json.dumps(self.state, indent=1))
        print(f"{part.name:32} {took:7.1f} s  {result}", flush=True)

    def attempt(self, part):
        if part.tool and shutil.which(part.tool) is None:
            return self.note(part, f"not possible: there is no {part.tool}")
        if part.model in self.undrawn:
            return self.note(part, f"not possible: there is no {part.model}")
        if self.has_time_for(part) and part.model and not is_drawn(part.model, self.a):
            draw = drawing(part.model, self.a)
            self.note(draw, *run(draw, self.a, min(draw.seconds, self.left())))
            if self.result(draw.name) != "done":
                self.undrawn.add(part.model)
                return self.note(part, f"not possible: there is no {part.model}")
        if not self.has_time_for(part):
            self.waiting += 1
            return None
        self.has_run = True
        return self.note(part, *run(part, self.a, min(part.seconds, self.left())))


def end_with_signals():
    """Ended from outside, this script ends what it has started, as with Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/unguide-gpu"))
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--only", default="", help="stages or parts whose name begins so")
    parser.add_argument("--again", action="store_true", help="what failed is tried again")
    parser.add_argument("--list", action="store_true", help="what there is to do, how long it may take, where it goes")
    parser.add_argument("--dry", type=Path)
    a = parser.parse_args()
    for name in ("pack", "out", "scratch", "dry"):
        setattr(a, name, getattr(a, name) and getattr(a, name).resolve())
    if a.list:
        chosen = [part for part in parts(a) if part.name.startswith(a.only)]
        return print(*(f"{part.name:32} {part.seconds:4} s  {part.file}" for part in chosen), sep="\n")
    end_with_signals()
    call = Call(a, {"parts": {}})
    for folder in (a.out, a.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    if a.pack.is_file():
        with tarfile.open(a.pack) as packed:
            packed.extractall(a.scratch / "pack", filter="data")
        a.pack = a.scratch / "pack"
    path, here = a.out / "state.json", identity(a)
    if not path.exists() and any(a.out.iterdir()):
        sys.exit(f"--out {a.out}: expected an empty folder, or one with a state.json of this script")
    if path.exists():
        call.state = json.loads(path.read_text())
        if call.state["on"] != here:
            sys.exit(f"--out {a.out}: its results are of {call.state['on']}, this is {here}: name another folder")
    call.state["on"] = here
    print("on", here)
    for part in filter(call.is_open, parts(a)):
        call.attempt(part)
    failed = [name for name, part in call.state["parts"].items() if part["result"] != "done"]
    print("everything is done" if call.waiting == 0 else f"{call.waiting} parts wait: call again with the same --out")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
