"""Holds what benches/gpu/run.py does with parts that hang, fail or are cut off, on any machine and in seconds.

    python3 benches/gpu/check_run.py
"""
import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import run
from run import Call, Part

HANGS = """
(sleep 60 & echo $! > {child}; wait) &
echo '{{"n": 1}}'; echo '{{"n": 2}}'; echo 1.5; printf '{{"n": '
sleep 60
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_part_that_hangs_ends_with_all_it_started_and_keeps_its_lines(a):
    child, other = a.scratch / "child", Part("other", "x.jsonl", 9, ["echo", '{"n": 7}'])
    assert run.run(other, a, 9)[0] == "done"
    start = time.monotonic()
    result, took = run.run(Part("p", "x.jsonl", 1, ["sh", "-c", HANGS.format(child=child)]), a, 1)
    assert result == "failed: no end within 1 s" and took < 8 and time.monotonic() - start < 9, (result, took)
    assert not is_alive(int(child.read_text())), "a child of a part goes on"
    mark = {"part": "p", "unfinished": result}
    kept = [{"n": 7, "part": "other"}, {"n": 1} | mark, {"n": 2} | mark]
    assert lines(a.out / "x.jsonl") == kept
    # Again with less: what there was stays. Again with all: that takes its place.
    run.run(Part("p", "x.jsonl", 9, ["sh", "-c", "echo '{\"n\": 1}'; exit 3"]), a, 9)
    assert lines(a.out / "x.jsonl") == kept
    assert run.run(Part("p", "x.jsonl", 9, ["echo", '{"n": 3}']), a, 9)[0] == "done"
    assert lines(a.out / "x.jsonl") == [kept[0], {"n": 3, "part": "p"}]


def words_of_a_part_that_runs_again_take_the_place_of_its_old_ones(a):
    for words, code in (("one", 1), ("two", 0)):
        for name in ("p", "p q"):
            run.run(Part(name, "x.txt", 9, ["sh", "-c", f"echo {words} {name}; exit {code}"]), a, 9)
    assert (a.out / "x.txt").read_text() == "== p: done\ntwo p\n== p q: done\ntwo p q\n"


def a_signal_ends_what_a_part_started(a):
    child = a.scratch / "child"
    code = f"import check_run, run; check_run.under_a_signal({str(a.out)!r}, {str(child)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=run.HERE)
    while not child.exists() or not child.read_text():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 143 and not is_alive(int(child.read_text()))


def under_a_signal(out, child):
    run.end_with_signals()
    run.run(Part("p", "x.jsonl", 60, ["sh", "-c", HANGS.format(child=child)]), given(Path(out)), 60)


class OnANewMachine(Call):
    """A call whose drawing takes nearly half of its time."""

    def note(self, part, result, took=0):
        super().note(part, result, took)
        self.end -= 18 if part.name.startswith("2 draw") else 0


def every_call_on_a_new_machine_gets_one_part_further(a):
    a.seconds, state = 40, {"parts": {}}
    draw = f"mkdir {a.scratch}/m; > {a.scratch}/m/whole"
    run.drawing = lambda model, a: Part("2 draw m", "m.txt", 9, ["sh", "-c", draw])
    todo = [Part(name, "x.jsonl", 30, ["echo", "{}"], model="m") for name in ("p", "q", "r")]
    for waiting in (2, 1, 0):
        call = OnANewMachine(a, state)
        for part in filter(call.is_open, todo):
            call.attempt(part)
        assert call.waiting == waiting, (call.waiting, state)
        shutil.rmtree(a.scratch / "m")
    assert {part["result"] for part in state["parts"].values()} == {"done"}, state
    assert [line["part"] for line in lines(a.out / "x.jsonl")] == ["p", "q", "r"]


def given(folder):
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return Namespace(out=folder, scratch=folder / "scratch", dry=None, seconds=460, only="", again=False)


if __name__ == "__main__":
    for check in (a_part_that_hangs_ends_with_all_it_started_and_keeps_its_lines,
                  words_of_a_part_that_runs_again_take_the_place_of_its_old_ones,
                  a_signal_ends_what_a_part_started, every_call_on_a_new_machine_gets_one_part_further):
        with tempfile.TemporaryDirectory() as folder:
            check(given(Path(folder)))
        print(check.__name__.replace("_", " "))
