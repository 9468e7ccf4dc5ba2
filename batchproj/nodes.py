"""Whether every node of a cluster can do its share, looked at before any work is given out.

A node without the package, or without a model that is not fetched, would end the run in the middle with an error of
Ray's that names neither. Nodes that join later are not looked at; what they lack is said by the worker that misses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import batchproj
from batchproj.errors import TryLater, WeightsError
from batchproj.weights import is_local

LOOK_S = 120.0


def name_of(node: dict[str, Any]) -> str:
    """A node as its own administrator knows it, and as `ray status` calls it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def check_nodes(models: Iterable[str]) -> None:
    """Raises WeightsError naming a node of several that lacks this batchproj or a model, and the cure."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if len(nodes) < 2:
        return
    wanted = sorted({model for model in models if is_local(model)})
    looking = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        look = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_portable(node["NodeID"]))
        looking[look.remote(batchproj.__version__, wanted)] = node
    ready, _ = ray.wait(list(looking), num_returns=len(looking), timeout=LOOK_S)
    for answer in ready:
        try:
            lack = ray.get(answer)
        except ray.exceptions.RayError:  # the node went away: the run itself goes on without it
            continue
        if lack is not None:
            raise WeightsError(
                f"node {name_of(looking[answer])} {lack}; nothing was embedded; use one image for all nodes "
                "(cluster/Dockerfile), or bring this one up to the others"
            )


def try_process() -> str:
    """What this Ray offers, once a process of it has imported batchproj and answered.

    Raises TryLater if none does within LOOK_S, and what was raised there.
    """
    import ray

    answer = ray.remote(num_cpus=0, max_retries=0)(_version).remote()
    if not ray.wait([answer], timeout=LOOK_S)[0]:
        raise TryLater(f"no process of Ray has answered in {LOOK_S:.0f} s; look whether its nodes have work")
    version, offered = ray.get(answer), ray.cluster_resources()
    there = ", ".join(f"{offered[name]:g} {name}" for name in ("CPU", "GPU") if name in offered)
    return f"{there}, a process of it has batchproj {version}"


def _version() -> str:
    return batchproj.__version__


def _portable(node_id: str) -> Any:
    """A function that Ray takes along whole: a node without batchproj could not even load one by its name."""

    def look(version: str, models: list[str]) -> str | None:
        import ray

        if ray.get_runtime_context().get_node_id() != node_id:  # it ran elsewhere, as its node went away
            return None
        try:
            import batchproj
        except ImportError as error:
            return f"has no batchproj ({error}): pip install batchproj=={version} there"
        if batchproj.__version__ != version:
            return f"has batchproj {batchproj.__version__}, and {version} runs here"
        from batchproj.errors import WeightsError
        from batchproj.weights import locate

        for model in models:
            try:
                locate(model, None)
            except (WeightsError, ImportError) as error:
                return f"lacks the model {model}: {error}"
        return None

    return look
