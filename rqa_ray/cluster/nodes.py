"""Lists the nodes of the cluster: those that are up, and those that its autoscaler may still start.

The autoscaler does not publish its limits, so this file reads the autoscaler's own configuration on the head node.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import psutil
import ray
import yaml
from ray.exceptions import GetTimeoutError, RayError

MANY_NODES = 64  # assumed for a type of node without a limit
TIMEOUT_SECONDS = 30.0


def nodes_now() -> list[dict[str, float]]:
    """Returns the resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_to_come() -> list[dict[str, float]]:
    """Returns the resources of each node that the autoscaler may still start; empty where there is no autoscaler."""
    if not os.environ.get("RAY_ADDRESS"):  # a private cluster has no autoscaler
        return []
    more: list[dict[str, float]] = []
    for kind in _node_types(ray.get_runtime_context().gcs_address):
        resources = kind["resources"]
        there = sum(_is_of(node["Resources"], resources) for node in ray.nodes() if node["Alive"])
        most = MANY_NODES if kind["max_count"] < 0 else kind["max_count"]
        more += [resources] * max(0, most - there)
    return more


@lru_cache
def _node_types(gcs_address: str) -> list[dict[str, Any]]:
    """Returns the resources and the largest number of each type of node."""
    reported = ray._private.state.state.get_cluster_config()
    if reported and reported.node_group_configs:
        return [
            {"resources": dict(group.resources), "max_count": group.max_count} for group in reported.node_group_configs
        ]
    on_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_retries=0)
    try:
        config = ray.get(on_head(_autoscaling_config).remote(), timeout=TIMEOUT_SECONDS)
    except (RayError, GetTimeoutError):
        return []
    total = config["max_workers"] if config else 0  # the limit for all types together
    return [
        {
            "resources": {name: float(amount) for name, amount in kind.get("resources", {}).items()},
            "max_count": 1 if name == config["head_node_type"] else min(kind.get("max_workers", total), total),
        }
        for name, kind in (config or {}).get("available_node_types", {}).items()
    ]


def _autoscaling_config() -> dict[str, Any] | None:
    """Reads, on the head, the file that the autoscaler was started with, or KubeRay's resource."""
    # because another cluster may run on the same machine
    address = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if address in words and any(word.endswith("monitor.py") for word in words):
            for word in words:
                path = word.partition("--autoscaling-config=")[2]
                if path:
                    with open(os.path.expanduser(path)) as file:
                        return yaml.safe_load(file)
    if "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_CLUSTER_NAME" in os.environ:
        from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
            return AutoscalingConfigProducer(os.environ["RAY_CLUSTER_NAME"], file.read().strip())()
    return None


def _is_of(node: dict[str, float], resources: dict[str, float]) -> bool:
    return all(node.get(name, 0) == amount for name, amount in resources.items())
