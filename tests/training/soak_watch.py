"""What the soak looks at after a job: processes, memory, open files, shared memory, and the state of the cluster."""

import os
from collections import Counter

import psutil
import torch

from tests.nodes import Nodes

# Prints how many placement groups and actors a cluster has.
COUNTS = """
import ray
from ray.util.state import list_actors, list_placement_groups
ray.init(logging_level="error", log_to_driver=False)
groups = [group for group in list_placement_groups() if group.state != "REMOVED"]
of_ray_data = {"_AutoscalingCoordinatorActor", "_StatsActor"}  # one of each stays, for all jobs of the cluster
actors = [actor.class_name for actor in list_actors() if actor.state != "DEAD"]
print(len(groups), len([name for name in actors if name not in of_ray_data]))
"""


def count(cluster: Nodes) -> Counter:
    """Counts what there is in the namespaces of this process and in a cluster."""
    counted: Counter = Counter()
    for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
        name = " ".join(process.info["cmdline"] or [])
        if name and process.pid not in (1, os.getpid()):
            counted["processes"] += 1
            counted["MB of memory"] += round(process.info["memory_info"].rss / 1e6)
            if process.info["name"] in ("raylet", "gcs_server"):
                counted["open files of raylets and GCS"] += process.num_fds()
    asked = cluster.run(["-c", COUNTS])
    counted["placement groups"], counted["actors"] = map(int, asked.stdout.split()[-2:])
    counted["MB of /dev/shm"] = round(used("/dev/shm") / 1e6)
    return counted


def used(folder: str) -> int:
    """Returns the bytes that are used in a file system."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def equal(one: object, other: object) -> bool:
    """Returns whether two results are equal, weights to the bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
