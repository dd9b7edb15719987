"""What the workers of running runs tell their driver, and the driver them: progress, notes, a stop."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
class Mailbox:
    """Rank 0 of each run puts progress in, the driver takes it out and may ask for a stop."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}  # by run
        self.notes: list[str] = []
        self.stop = False
        self.groups: dict[str, Any] = {}  # placement group of its workers by run
        self.starts: dict[str, int] = {}  # how often the workers of a run have begun
        self.ranks: dict[str, dict[int, str]] = {}  # where each rank of a run is, in words
        self.waited: dict[str, set[int]] = {}  # ranks that gave up waiting in a collective

    def begin(self, run: str, rank: int, where: str) -> int:
        """A rank begins, `where` in words; returns how often its run has begun."""
        if rank == 0:
            self.starts[run] = self.starts.get(run, 0) + 1
            self.waited[run] = set()
        self.ranks.setdefault(run, {})[rank] = where
        return self.starts.get(run, 0)

    def gave_up(self, run: str, rank: int) -> None:
        """A rank has waited in a collective for as long as it may."""
        self.waited[run].add(rank)

    def missing(self, run: str, world_size: int) -> list[str]:
        """The ranks that others have waited for."""
        waited, ranks = self.waited.get(run, set()), self.ranks.get(run, {})
        late = sorted(set(range(world_size)) - waited) if waited else []
        return [f"rank {rank} ({ranks.get(rank, 'not begun')})" for rank in late]

    def tell_of_rank(self, run: str, rank: int, what: str) -> None:
        """Adds a note about one rank, with where it is."""
        self.notes.append(f"warning: rank {rank} ({self.ranks[run].get(rank)}) {what}")

    def keep_group(self, run: str, group: Any) -> None:
        """Remembers the placement group of a run's workers."""
        self.groups[run] = group

    def take_group(self, run: str) -> Any:
        """The placement group of a run's workers, once, None where it has none."""
        return self.groups.pop(run, None)

    def put(self, run: str, record: dict[str, Any] | None, note: str | None = None) -> None:
        """Keeps the newest record of a run, and a note for its user."""
        if record:
            self.records[run] = record
        if note:
            self.notes.append(note)

    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self.stop

    def take(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The newest record of each run, and the notes since the last call."""
        notes, self.notes = self.notes, []
        return self.records, notes

    def request_stop(self) -> None:
        self.stop = True


def new_mailbox(name: str | None = None) -> Any:
    """A mailbox on the driver's node, so that it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox.options(scheduling_strategy=here, name=name).remote()  # type: ignore[attr-defined]
