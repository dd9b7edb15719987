"""Carries messages between the workers of running runs and their driver: progress, notes, a stop."""

from __future__ import annotations

import time
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
class Mailbox:
    """An actor. Rank 0 of each run puts in its progress. The driver takes it out, and may ask for a stop."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}  # progress records by run
        self.notes: list[str] = []
        self.stop = False
        self.groups: dict[str, Any] = {}  # placement group of the workers, by run
        self.starts: dict[str, int] = {}  # how often the workers of a run have started
        self.ranks: dict[str, dict[int, str]] = {}  # where each rank of a run is, in words
        self.waited: dict[str, set[int]] = {}  # ranks that gave up waiting in a collective
        self._created = time.monotonic()
        self._signs: dict[str, float] = {}  # time of the last progress record, by run
        self._loaded: set[str] = set()  # runs whose rank 0 has begun, and has not put in a progress record since
        self._starting: dict[str, float] = {}  # seconds of the last start, by run

    def begin(self, run: str, rank: int, where: str) -> int:
        """Notes that a rank has started, and where (in words); returns how often its run has started."""
        if rank == 0:
            self.starts[run] = self.starts.get(run, 0) + 1
            self.waited[run] = set()
            self._loaded.add(run)
        self.ranks.setdefault(run, {})[rank] = where
        return self.starts.get(run, 0)

    def gave_up(self, run: str, rank: int) -> None:
        """Notes that a rank has waited in a collective until the time limit."""
        self.waited.setdefault(run, set()).add(rank)

    def missing(self, run: str, world_size: int, hanging: list[int]) -> list[str]:
        """Returns the ranks that hang, as Ray says, or else those for which others have waited."""
        waited, ranks = self.waited.get(run, set()), self.ranks.get(run, {})
        late = sorted(hanging or (set(range(world_size)) - waited if waited else []))
        return [f"rank {rank} ({ranks.get(rank, 'not begun')})" for rank in late]

    def tell_of_rank(self, run: str, rank: int, what: str) -> None:
        """Adds a note about one rank, with its place."""
        self.notes.append(f"warning: rank {rank} ({self.ranks[run].get(rank)}) {what}")

    def keep_group(self, run: str, group: Any) -> None:
        """Remembers the placement group of a run's workers."""
        self.groups[run] = group

    def take_group(self, run: str) -> Any:
        """Returns the placement group of a run's workers once, and forgets it; None if there is none."""
        return self.groups.pop(run, None)

    def put(self, run: str, record: dict[str, Any] | None, note: str | None = None) -> None:
        """Keeps the newest progress record of a run, and a note for its user."""
        if record:
            now = time.monotonic()
            if run in self._loaded:
                self._loaded.remove(run)
                self._starting[run] = now - self._signs.get(run, self._created)
            self.records[run], self._signs[run] = record, now
        if note:
            self.notes.append(note)

    def starting(self, run: str) -> float:
        """Returns how long the last start of a run took (seconds); 0 if the run has not reported progress since.

        The first start begins with this mailbox, a restart with the last sign of life of the workers before.
        """
        return self._starting.get(run, 0.0)

    def is_stopping(self) -> bool:
        """Returns whether a stop was asked for."""
        return self.stop

    def take(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Returns the newest record of each run, and the notes since the last call."""
        notes, self.notes = self.notes, []
        return self.records, notes

    def request_stop(self) -> None:
        self.stop = True


def new_mailbox(name: str | None = None) -> Any:
    """Starts a mailbox on the driver's node, so that it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox.options(scheduling_strategy=here, name=name).remote()  # type: ignore[attr-defined]


def free_workers(mailbox: Any, run: str) -> None:
    """Removes the placement group of a run that has ended, and so the workers that its controller has left."""
    group = ray.get(mailbox.take_group.remote(run))
    if group:
        ray.util.remove_placement_group(group)
