"""Says why workers failed or were lost: one line where the reason is known, taken from Ray's reports."""

from __future__ import annotations

from ray.exceptions import RayError
from ray.train import WorkerGroupError

from rqa_ray.errors import first_line


def wrong_input(error: WorkerGroupError) -> str | None:
    """Returns what a worker found wrong with the model, as only a worker can; None if the workers failed otherwise."""
    lines = [line for _, failure in sorted(error.worker_failures.items()) for line in str(failure).splitlines()]
    return next((line.rpartition("InputError: ")[2] for line in lines if "InputError: " in line), None)


def reason_of(error: WorkerGroupError, late: list[str] | None = None) -> str:
    """Returns why the workers failed: one line where the reason is known, else Ray's report.

    `late` are the ranks for which others waited in a collective.
    """
    failures = {rank: str(failure) for rank, failure in sorted(error.worker_failures.items())}
    for failure in failures.values():
        killed = memory_problem(failure)
        if killed:
            return killed
        for line in failure.splitlines():
            if any(words in line for words in ("StorageError: ", ": no space left", ": could not be written for")):
                return line.rpartition("StorageError: ")[2]
    if late and any("imed out" in failure or is_hanging(failure) for failure in failures.values()):
        return f"{', '.join(late)} did not answer, the other ranks waited for --ddp_timeout"
    rank, failure = next(iter(failures.items()))
    return f"training failed on rank {rank}: {failure}"


def reason_of_loss(error: RayError) -> str:
    """Returns the line of Ray's report that says why one of its processes is gone."""
    lines = str(error).splitlines()
    return next((line for line in lines if "is dead because" in line), first_line(error))


def is_hanging(failure: object) -> bool:
    """Returns whether a worker failed because it did not tell Ray's controller its state."""
    return "health check has been hanging" in str(failure)


def memory_problem(failure: str) -> str | None:
    """Returns a line about a process that Ray killed because a node had too little memory; None for other failures."""
    killed = next((line for line in failure.splitlines() if "running low on memory" in line), None)
    return killed and f"{killed}; free memory, or lower --max_tokens_per_chunk with --gradient_cache true"
