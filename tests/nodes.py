"""Real Ray nodes on this machine, separate from any other cluster here: their own folders, ports and processes."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
# What cluster.yaml and ray_environment.py set, faster: a lost node is noticed within a second.
HEALTH = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "2",
    "RAY_health_check_initial_delay_ms": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",  # a rank that waits for a lost one is waited for no longer
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """A head, and nodes that can be added and lost."""

    def __init__(self, head_cpus: int = 0, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rqa", dir="/tmp"))  # sockets need a short path
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of jobs that are submitted
        own = {"RAY_TMPDIR": str(self.folder), "PATH": path, "PYTHONPATH": str(ROOT), **token, **HEALTH, **environment}
        # By its address Ray's own actors find this cluster, where others run on the machine.
        self.environment = {**os.environ, "RAY_ADDRESS": self.address, **own}
        self.processes: list[subprocess.Popen] = []
        words = ["--head", f"--port={self.port}", f"--num-cpus={head_cpus}", f"--temp-dir={self.folder}"]
        self.head = self._start([*words, "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"])

    def add(self, num_cpus: int = 1, hidden: Path | None = None, **environment: str) -> subprocess.Popen:
        """Starts a node and waits until it has joined. The node sees an empty folder in place of `hidden`."""
        words = [f"--address={self.address}", f"--num-cpus={num_cpus}"]
        return self._start(words, environment, behind_a_mount(hidden) if hidden else [])

    def fill(self, number: int, num_cpus: int = 1) -> None:
        """Adds nodes until `number` nodes are there beside the head."""
        for _ in range(number - sum(node.poll() is None for node in self.processes[1:])):
            self.add(num_cpus)

    def lose(self, node: subprocess.Popen) -> None:
        """Kills the raylet of a node, which ends everything that runs on the node."""
        raylet_of(node).kill()
        node.wait()

    def _start(
        self, words: list[str], environment: dict[str, str] | None = None, prefix: list[str] | None = None
    ) -> subprocess.Popen:
        command = [Path(sys.executable).parent / "ray", "start", "--block", "--disable-usage-stats", *words]
        log = self.folder / f"node-{len(self.processes)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [
                    *(prefix or []),
                    *map(str, command),
                    "--object-store-memory=200000000",
                    "--dashboard-agent-listen-port=0",
                ],
                env={**self.environment, **(environment or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        deadline = time.monotonic() + 300  # a busy machine takes its time
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return process

    def run(self, words: list[str], timeout: float = 300, **options) -> subprocess.CompletedProcess:
        """Runs a Python script of the repository as a driver on the head's node."""
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            **{"cwd": ROOT, **options},
        )

    def left(self) -> list[psutil.Process]:
        """Returns the processes of this cluster that are still alive."""
        found = []
        for process in psutil.process_iter(["environ", "status"]):
            environ = process.info["environ"] or {}
            if environ.get("RAY_TMPDIR") == str(self.folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def stop(self) -> None:
        for process in self.left():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        for started in self.processes:
            started.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def behind_a_mount(folder: Path, size: str = "10m") -> list[str]:
    """Returns words to put before a command, so that it sees an empty file system in a folder."""
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} none {folder} && exec "$@"', "sh"]


def can_mount() -> bool:
    """Returns whether this user may mount."""
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-m", "true"]).returncode == 0


def raylet_of(process: subprocess.Popen) -> psutil.Process:
    """Returns the raylet that a `ray start --block` has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if child.name() == "raylet")
