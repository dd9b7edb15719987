"""With --json, stdout has one line of JSON and nothing else, or nothing if the job fails."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rqa_ray.job_output import JobResult, plain, result_output

JOB = """
import atexit, os, subprocess, sys
from rqa_ray.errors import InputError
from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors
from tests.test_job_output import Found

with user_errors():
    with result_output(as_json=True) as show:
        print("a line of progress")
        os.write(1, b"a line of a library\\n")
        subprocess.run(["echo", "a line of a child"])
        if "wrong" in sys.argv:
            raise InputError("d.jsonl:1: wrong")
        show(Found("gold", {"loss": float("nan")}, files=["out/a"]))
    print("a late line")
    atexit.register(print, "a line at the end")
"""


@dataclass
class Found(JobResult):
    """A result of a job."""

    chosen: str
    metrics: dict[str, float]

    def describe(self) -> str:
        return f"chosen: {self.chosen}"


def run(*words: str) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", JOB, *words], capture_output=True, text=True, cwd=root)


def test_the_result_is_alone_on_stdout_whoever_else_prints_and_whenever():
    done = run()
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert json.loads(done.stdout) == {"files": ["out/a"], "report": None, "chosen": "gold", "metrics": {"loss": None}}
    for line in ("of progress", "of a library", "of a child", "at the end"):
        assert f"a line {line}\n" in done.stderr
    assert "a late line\n" in done.stderr


def test_a_job_that_fails_leaves_stdout_empty():
    done = run("wrong")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.endswith("error: d.jsonl:1: wrong\n")


def test_a_person_gets_lines(capsys):
    with result_output(as_json=False) as show:
        print("a line of progress")
        show(Found("gold", {}))
    assert capsys.readouterr().out == "a line of progress\nchosen: gold\n"


def test_a_result_may_say_itself_what_a_program_gets():
    class Answer(Found):
        def for_json(self) -> dict:
            return {"best": Found(self.chosen, self.metrics), 1: [(2, float("inf"))]}

    one = {"chosen": "a", "metrics": {}, "files": [], "report": None}
    assert plain(Answer("a", {})) == {"best": one, "1": [[2, None]]}
