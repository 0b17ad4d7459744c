"""What we add to Ray Train's controller: it sees nodes come and go, gives up in time, loses little.

Ray Train looks at the cluster through a view that is up to 20 s old, asks for workers on nodes that
are gone, and starts all workers anew after an error that would come again.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import TrainControllerStateType as Is

from scvi_dist.errors import WaitTimeout
from scvi_dist.train.configs import RayConfig

ANSWER_S = 60.0
"""Longest wait for an answer of an actor that does nothing that takes time."""
LOOK_S = 1.0
"""Between two looks at the nodes."""
SETTLE_S = 30.0
"""Longest wait for Ray to notice that a node that does not answer is gone."""
SAVE_S = 60.0
"""Longest wait for the checkpoint before the number of workers changes."""
PROBE_S = 1.0
"""A node that does not answer for so long is suspected to be gone."""


class Hopeless(Exception):
    """A worker failed in a way that would repeat itself."""


class KeepRunning(ControllerCallback):
    """Follows a run in its controller.

    Parameters
    ----------
    collector
        The :class:`~scvi_dist.train.collector.Collector` actor.
    config
        How many workers, and how long to wait for them.
    """

    def __init__(self, collector: Any, config: RayConfig) -> None:
        self._collector, self._config = collector, config
        self._waiting_since: float | None = None
        self._looked_s = 0.0
        self._nodes: frozenset[str] = frozenset()
        self._n_workers = 0

    def after_controller_start(self, train_run_context: Any) -> None:
        self._waiting_since = time.monotonic()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        kind = current_state._state_type
        if kind is Is.RUNNING:
            self._waiting_since = None
            self._follow_nodes()
        elif kind is Is.RESIZING:
            # Where there are fewer nodes, workers are gone that it would take.
            if current_state.scaling_decision.num_workers > self._n_workers:
                self._save_first()
            ask(self._collector.lost)
            self._waiting_since = time.monotonic()
        elif kind is Is.PREEMPTING and previous_state._state_type is not kind:
            self._save_first()
        elif kind in (Is.RESTARTING, Is.RESCHEDULING, Is.SCHEDULING, Is.INITIALIZING):
            self._wait(kind)
            self._follow_nodes()

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        self._n_workers = resize_decision.num_workers

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        if ask(self._collector.is_hopeless):
            raise Hopeless
        ask(self._collector.lost)
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        self._settle()
        self._refresh()

    def _wait(self, kind: Is) -> None:
        """Give up when the workers that the run needs cannot be had."""
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since > self._config.start_timeout_s:
            raise WaitTimeout(self._in_vain(now - self._waiting_since))
        if kind is not Is.SCHEDULING:
            # Ray Train asks again and again without a pause while there are too few nodes.
            time.sleep(0.1)

    def _in_vain(self, waited_s: float) -> str:
        config = self._config
        nodes = ", ".join(
            f"{node['NodeManagerAddress']} with {_amounts(node['Resources'])}{_labels_of(node)}"
            for node in _alive_nodes()
        )
        return (
            f"The run waited {waited_s:.0f} s for {config.min_workers} worker(s) with "
            f"{_amounts(config.resources_per_worker or {'CPU': 1})} each{_on(config)}; the cluster "
            f"has {nodes or 'no nodes'}. Add nodes, ask for fewer workers or for less in "
            "ray.resources_per_worker, or set ray.start_timeout_s; the same call goes on from the "
            "last checkpoint."
        )

    def _save_first(self) -> None:
        """A checkpoint before workers are ended that nothing ails."""
        before = ask(self._collector.n_saved)
        ask(self._collector.ask_save)
        _until(lambda: ask(self._collector.n_saved) > before, SAVE_S)

    def _follow_nodes(self) -> None:
        """Let Ray Train know at once when a node has come or gone."""
        if not self._config.is_elastic or time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        nodes = frozenset(node["NodeID"] for node in _alive_nodes())
        if nodes != self._nodes:
            self._nodes = nodes
            self._refresh()

    def _settle(self) -> None:
        """Wait until Ray no longer counts on nodes that are gone."""
        _until(lambda: all(map(_answers, _alive_nodes())), SETTLE_S)

    def _refresh(self) -> None:
        """Let the view be that of now."""
        if self._config.is_elastic:
            coordinator = get_or_create_autoscaling_coordinator()
            looked = coordinator.get_reserved_resources.remote("scvi_dist", recompute=True)
            ray.get(looked, timeout=ANSWER_S)


def ask(method: Any) -> Any:
    """The answer of an actor's method."""
    return ray.get(method.remote(), timeout=ANSWER_S)


def _until(condition: Callable[[], bool], limit_s: float) -> None:
    """Wait for a condition, at most so long."""
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _answers(node: dict[str, Any]) -> bool:
    """Whether something listens where a node's Ray does."""
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(address, timeout=PROBE_S).close()
    except OSError:
        return False
    return True


def _on(config: RayConfig) -> str:
    """Which nodes workers are for."""
    labels = ", ".join(f"{name}={value}" for name, value in config.worker_labels.items())
    return f" on nodes labelled {labels}" if labels else ""


def _labels_of(node: dict[str, Any]) -> str:
    """Labels that people gave a node; those of Ray's own are left out."""
    own = {k: v for k, v in node.get("Labels", {}).items() if not k.startswith("ray.io/")}
    return f" ({', '.join(f'{k}={v}' for k, v in own.items())})" if own else ""


def _amounts(resources: Any) -> str:
    """``2 CPU, 1 GPU, 4 disk``; what Ray counts for itself is left out."""
    names = [name for name in resources if "memory" not in name and ":" not in name]
    names.sort(key=lambda name: (name not in ("CPU", "GPU"), name))
    return ", ".join(f"{resources[name]:g} {name}" for name in names) or "nothing"
