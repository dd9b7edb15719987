"""A job ends with one line and its exit code, whatever a library does with the exception of a signal."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.stops import stop_on_signals, user_errors

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
JOB = """
import time
from rqa_ray import stops
from rqa_ray.stops import user_errors
stops.GRACE_SECONDS, stops.AGAIN_SECONDS = {grace}, 1
with user_errors():
    for said in ("ready", "swallowed"):
        try:
            print(said, flush=True)
            time.sleep(60)
        except BaseException:
            {reaction}
"""


def job(reaction: str, grace: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", JOB.format(reaction=reaction, grace=grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_job_with_one_line(number, code):
    process = job("raise", grace=60)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("stopped\n", "")
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_job_whose_library_swallows_the_exception_ends_soon_after(number, code):
    process = job("pass", grace=0.3)
    process.send_signal(number)
    assert process.communicate(timeout=30) == (
        "swallowed\n",
        "stopped, without waiting any longer for a library to end\n",
    )
    assert process.returncode == code


def test_an_exception_that_is_lost_comes_again():
    process = job("if said == 'swallowed': raise", grace=60)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("swallowed\nstopped\n", "")
    assert process.returncode == 130


def test_a_second_signal_ends_a_job_at_once():
    process = job("pass", grace=60)
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == "swallowed\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 143


def test_the_handlers_of_before_are_back_after_the_block():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number, _ in SIGNALS] != before
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


def test_an_input_error_of_a_task_of_ray_is_one_line(capsys):
    error = InputError("ray::task()\n  File ...\nInputError: d.jsonl:1: wrong")
    error.cause = InputError("d.jsonl:1: wrong")  # as RayTaskError.as_instanceof_cause makes it
    with pytest.raises(SystemExit), user_errors():
        raise error
    assert capsys.readouterr().err == "error: d.jsonl:1: wrong\n"


def test_a_terminal_without_utf_8_shows_question_marks_and_ends_nothing(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    with user_errors():
        print("für 5 €", flush=True)
    assert screen.buffer.getvalue() == b"f?r 5 ?\n"


def test_no_job_imports_a_large_library_before_it_handles_signals():
    jobs = sorted((Path(__file__).parents[1] / "jobs").glob("*.py"))
    imports = [line for job in jobs for line in job.read_text().splitlines() if line.startswith(("from ", "import "))]
    loaded = "sorted({'transformers', 'torch', 'pyarrow', 'numpy'} & set(sys.modules))"
    words = "\n".join([*imports, f"print({loaded})"])
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    assert "from rqa_ray.stops import user_errors" in imports and done.stdout == "[]\n"
