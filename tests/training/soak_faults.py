"""The faults of the soak: each strikes a running job once, and returns a proof that it did."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from tests.nodes import raylet_of

if TYPE_CHECKING:
    from tests.training.soak import Soak

Proof = dict[str, Any]
FAULTS: dict[str, Callable[[Soak], Proof]] = {}
ENDS_THE_JOB = {"driver killed", "driver stopped", "head lost", "storage full", "checkpoint damaged"}


class Missed(Exception):
    """The job ended, or there was nothing to strike."""


def fault(name: str) -> Callable:
    def keep(strike: Callable[[Soak], Proof]) -> Callable:
        FAULTS[name] = strike
        return strike

    return keep


def until(is_there: Callable[[], object], seconds: float, job: Any = None) -> bool:
    """Returns whether something came in time, and before the end of the job."""
    deadline = time.monotonic() + seconds
    while not (found := is_there()) and time.monotonic() < deadline and (job is None or job.poll() is None):
        time.sleep(0.1)
    return bool(found)


def kill(process: psutil.Process) -> Proof:
    process.kill()
    assert until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10)
    return {"gone": process.pid}


@fault("worker killed")
def kill_worker(soak: Soak) -> Proof:
    return kill(soak.a_worker())


@fault("raylet killed")
def kill_raylet(soak: Soak) -> Proof:
    proof = kill(raylet_of(soak.a_node()))
    soak.refill()
    return proof


@fault("raylet frozen")
def freeze_raylet(soak: Soak) -> Proof:
    """The node counts as dead while its workers live; its raylet learns that when it wakes up."""
    node = soak.a_node()
    raylet = raylet_of(node)
    raylet.suspend()
    time.sleep(30)
    state = raylet.status()
    raylet.resume()
    assert state == psutil.STATUS_STOPPED
    ended = until(lambda: node.poll() is not None, 60)
    soak.refill()
    return {"state": state, "node ended": ended}


@fault("worker frozen")
def freeze_worker(soak: Soak) -> Proof:
    worker, seconds = soak.a_worker(), soak.random.uniform(5, 20)
    worker.suspend()
    time.sleep(2)
    before = len(soak.steps())
    time.sleep(seconds)
    state, others = worker.status(), len(soak.steps()) - before
    worker.resume()
    assert state == psutil.STATUS_STOPPED
    return {"state": state, "seconds": round(seconds, 1), "steps of all meanwhile": others}


@fault("driver killed")
def kill_driver(soak: Soak) -> Proof:
    soak.job.kill()
    return {"code": soak.job.wait()}


@fault("driver stopped")
def stop_driver(soak: Soak) -> Proof:
    soak.job.terminate()
    return {"code": soak.job.wait(timeout=120)}


@fault("head lost")
def lose_head(soak: Soak) -> Proof:
    """The driver runs on the head, so it is lost too. The other nodes have to end by themselves."""
    cluster = soak.nodes
    head = psutil.Process(cluster.head.pid)
    gone = [*head.children(recursive=True), head, psutil.Process(soak.job.pid)]
    for process in gone:
        process.kill()
    soak.job.wait()
    began = time.monotonic()
    until(lambda: not cluster.left(), 150)
    left = [" ".join(process.cmdline())[:100] for process in cluster.left()]
    soak.leaks += [f"after the head was lost: {name}" for name in left]
    soak.new_cluster()
    return {"gone": len(gone), "others ended after": round(time.monotonic() - began), "left": left}


@fault("storage away")
def take_storage_away(soak: Soak) -> Proof:
    away = soak.storage.with_name("away")
    soak.storage.rename(away)
    soak.storage.touch()  # so that nobody makes a new folder there
    said = soak.said()
    noticed = until(lambda: "cannot be written" in soak.said()[len(said) :], 45, soak.job)
    time.sleep(soak.random.uniform(1, 10))
    soak.storage.unlink()
    away.rename(soak.storage)
    return {"noticed": noticed}


@fault("storage full")
def fill_storage(soak: Soak) -> Proof:
    ballast, said = soak.storage / "ballast", soak.said()
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            found = error.errno
    ended = until(lambda: soak.job.poll() is not None, 90)
    ballast.unlink()
    if not ended:
        raise Missed("nothing was stored meanwhile")
    return {"errno": found, "code": soak.job.returncode, "said": "no space left" in soak.said()[len(said) :]}


@fault("storage slow")
def slow_storage(soak: Soak) -> Proof:
    flag, log = soak.folder / "slow", soak.folder / "slowed"
    log.unlink(missing_ok=True)
    flag.touch()
    until(log.exists, 40, soak.job)
    time.sleep(10)
    flag.unlink()
    if not log.exists():
        raise Missed("nothing was stored meanwhile")
    return {"uploads": len(log.read_text().splitlines())}


@fault("clock jumps")
def jump(soak: Soak) -> Proof:
    """The clock of Python jumps by an hour and back; that of the machine belongs to others too."""
    seconds, flag = soak.random.choice([-3600, 3600]), soak.folder / "jump"
    before = len(soak.steps())
    flag.write_text(str(seconds))
    time.sleep(15)
    flag.unlink()
    return {"seconds": seconds, "steps meanwhile": len(soak.steps()) - before}


@fault("checkpoint damaged")
def damage_checkpoint(soak: Soak) -> Proof:
    """Bytes of the newest checkpoint are changed, or its end is lost. A worker or the driver is killed for it."""
    victim = soak.random.choice(["driver", "worker"])
    if victim == "driver":
        soak.job.kill()
        soak.job.wait()
        if not until(lambda: not soak.workers(), 60):
            soak.leaks.append(f"workers 60 s after their driver was killed: {soak.workers()}")
    found = soak.checkpoints()
    if not found:
        raise Missed("no checkpoint yet")
    step, folder = found[-1]
    file = soak.random.choice(["model/model.safetensors", "optimizer.pt", "trainer_state.json"])
    path, how = folder / file, soak.random.choice(["changed", "cut short"])
    content = bytearray(path.read_bytes())
    before = hashlib.sha256(content).hexdigest()
    if how == "changed":
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(byte ^ 0x55 for byte in content[middle : middle + 64])
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    assert before != after
    if victim == "worker":
        kill(soak.a_worker())
    return {"step": step, "file": file, "how": how, "hash": [before[:8], after[:8]], "killed": victim}
