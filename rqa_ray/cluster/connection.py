"""Connects to a Ray cluster, or starts a private one on this machine."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from typing import Any

import ray
from ray._common.network_utils import parse_address
from ray._private.services import canonicalize_bootstrap_address

from rqa_ray.cluster.nodes import nodes_now, nodes_to_come
from rqa_ray.errors import InputError, first_line

ANSWER_SECONDS = 5.0  # how long a machine may take to answer
OF_CLIENT = "ray://"  # addresses of Ray Client begin so
STARVED = "timed out during startup"  # in Ray's message, if its node has not started in 30 s


def connect() -> str:
    """Connects to the cluster that RAY_ADDRESS names, or starts a private one; returns a line that says which."""
    found = signal.getsignal(signal.SIGTERM)
    on_sigterm = found if callable(found) else lambda *_: sys.exit(128 + signal.SIGTERM)
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if not address:  # no node will be taken away here, and the watcher would be one more process
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray waits for its dashboard, which takes 10 processes, and nothing here asks the dashboard.
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        options = {"address": address or "local", "logging_level": "error", "log_to_driver": False, **local}
        for is_second in (False, True):
            try:
                if address:
                    check_that_one_listens(address)
                ray.init(**options)
                break
            except (ConnectionError, ValueError) as error:
                if not address:
                    raise
                raise InputError(why_refused(address, error)) from None
            except SystemExit:  # from Ray's own handler of SIGTERM, which would end this process with 15
                on_sigterm(signal.SIGTERM, None)
                raise
            except Exception as error:
                if "AF_UNIX path length" in str(error):
                    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
                    raise InputError(
                        f"{folder}: too long a path for Ray's sockets; set TMPDIR to a shorter one"
                    ) from None
                if STARVED not in str(error):
                    raise
                ray.shutdown()  # Ray waits 30 s for its node; a busy machine may need longer at first
                if is_second:
                    wrong = "Ray has twice not started in 30 s, the machine is too busy; end other programs"
                    raise InputError(wrong) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    nodes, more = nodes_now(), nodes_to_come()
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    kind = f"cluster at {os.environ['RAY_ADDRESS']}" if os.environ.get("RAY_ADDRESS") else "private local cluster"
    here = f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
    growth = f", up to {len(more)} more node{'s' * (len(more) > 1)} from the autoscaler" if more else ""
    return f"{kind}, {here}{growth}"


def check_that_one_listens(address: str) -> None:
    """Raises ConnectionError if nothing listens at the address of a cluster; Ray itself would wait for minutes.

    Raises:
        ValueError: the address has no valid host and port.
    """
    if "://" in address and not address.startswith(OF_CLIENT):
        raise ValueError(f"Ray has no addresses of {address.partition('://')[0]}")
    is_client = address.startswith(OF_CLIENT)
    where = address.removeprefix(OF_CLIENT) if is_client else canonicalize_bootstrap_address(address)
    if where is None:  # Ray starts a private cluster at the address `local`
        return
    host, port = parse_address(where) or ("", "")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError("a host and a port up to 65535 are needed")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(first_line(error)) from None


def why_refused(address: str, error: Exception) -> str:
    """Returns a line that says what is wrong with RAY_ADDRESS and what to do."""
    if address.startswith(("http://", "https://")):
        wrong = "is where `ray job submit` sends jobs"
        return f"RAY_ADDRESS={address}: {wrong}; submit this job, or unset RAY_ADDRESS to run on this machine"
    wrong = "no Ray cluster answers there" if isinstance(error, ConnectionError) else "is no address (host:port)"
    return f"RAY_ADDRESS={address}: {wrong} ({first_line(error)}); unset it to run on this machine"


def has_other_nodes() -> bool:
    """Returns whether work may run on another node than this one, now or later."""
    return len(nodes_now()) > 1 or bool(os.environ.get("RAY_ADDRESS"))
