"""A wrong address or folder for Ray in the environment gives one line; no test here starts Ray."""

import re
import signal
import socket
import sys

import pytest
import ray
from ray._private.utils import validate_socket_filepath

from rqa_ray.cluster.connection import check_that_one_listens, connect
from rqa_ray.errors import InputError


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("http://localhost:8265", "is where `ray job submit` sends jobs; submit this job, or unset RAY_ADDRESS"),
        ("nonsense", r"is no address \(host:port\) \(.*\); unset it to run on this machine"),
        ("localhost:abc", r"is no address \(host:port\)"),
        ("localhost:70000", r"is no address \(host:port\) \(a host and a port up to 65535 are needed\)"),
        ("tcp://127.0.0.1:6379", r"is no address \(host:port\) \(Ray has no addresses of tcp\)"),
        ("redis://127.0.0.1:6379", r"is no address \(host:port\)"),
        ("ray://127.0.0.1", r"is no address \(host:port\)"),
    ],
)
def test_an_address_that_is_none_is_one_line(address, wrong, monkeypatch):
    raised = refusal({"RAY_ADDRESS": address}, monkeypatch)
    assert raised.match(f"^RAY_ADDRESS={address}: {wrong}")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_where_nothing_listens_is_one_line_in_seconds(form, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # once closed, nobody has its port
        address = form.format(listener.getsockname()[1])
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would wait for minutes"))
    raised = refusal({"RAY_ADDRESS": address}, monkeypatch)
    assert raised.match(f"^RAY_ADDRESS={re.escape(address)}: no Ray cluster answers there .*; unset it to run on this")


def test_an_address_where_one_listens_is_left_to_ray():
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        check_that_one_listens(f"localhost:{port}")
        check_that_one_listens(f"ray://localhost:{port}")


def test_sigterm_while_ray_starts_is_left_to_the_job(monkeypatch):
    def start(**options: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            connect()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(77))
        with pytest.raises(SystemExit) as of_job:
            connect()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (end.value.code, of_job.value.code) == (143, 77)


def test_a_folder_too_long_for_sockets_is_one_line(monkeypatch, tmp_path):
    folder = str(tmp_path / ("long" * 20))
    monkeypatch.setattr(ray, "init", lambda **options: validate_socket_filepath(f"{folder}/ray/session/sockets/one"))
    raised = refusal({"RAY_TMPDIR": folder, "RAY_ADDRESS": ""}, monkeypatch)
    assert raised.match(f"^{folder}: too long a path for Ray's sockets; set TMPDIR to a shorter one$")


def test_a_machine_too_busy_for_ray_is_one_line_after_a_second_start(monkeypatch):
    started = []

    def start(**options: object) -> None:
        started.append(options)
        raise Exception("The current node timed out during startup. This could happen because ...")  # Ray's own words

    monkeypatch.setattr(ray, "init", start)
    raised = refusal({"RAY_ADDRESS": ""}, monkeypatch)
    assert raised.match("^Ray has twice not started in 30 s, the machine is too busy; end other programs$")
    assert len(started) == 2


def refusal(environment: dict[str, str], monkeypatch) -> pytest.ExceptionInfo:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as raised:
        connect()
    assert "\n" not in str(raised.value)
    return raised
