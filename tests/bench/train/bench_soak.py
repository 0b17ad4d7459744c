"""A long run whose workers are killed at random: memory and open files stay what they were.

    python tests/bench/train/bench_soak.py [--minutes 10] [--kill-every-s 30]

Two workers train a small model under a local Ray until the time is up. Told at the end: kills,
time until training went on after each, how far the weights are from those of an undisturbed run of
as many steps, and for every kind of process that lives through the whole run its resident memory
and open files in the first and the last third of it. Fails if one of them grew by more than a
tenth, if weights or history are not those of the undisturbed run, or if a cell was not trained on
exactly once an epoch.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import training_jobs
from training_jobs import assert_each_cell_once, toy_cells, toy_job

from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitResult
from scvi_dist.train.local_ray import start_local_ray
from scvi_dist.train.progress import TrainProgress

SETTINGS = {
    "batch_size": 26,
    "max_epochs": 1_000_000,
    "checkpoint_every_n_steps": 50,
    "checkpoint_every_s": 5,
    "log_every_n_steps": 10,
}
KINDS = {
    "driver": "bench_soak",
    "GCS": "gcs_server",
    "raylet": "raylet/raylet",
    "controller": "ray::TrainController",
    "collector": "ray::Collector",
}
"""What lives through the run -> part of its program or title."""
STEPS_PER_EPOCH = 5
PACE_S = 0.03
"""A step of two workers takes at least so long: minutes are to be spent on losses, not on steps."""
GROWTH = 1.1
SAMPLE_S = 5.0


@dataclass
class Soak:
    """A run under way."""

    folder: Path
    minutes: float
    kill_every_s: float
    random: random.Random
    over: threading.Event = field(default_factory=threading.Event)
    n_kills: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    samples: dict[str, list[tuple[float, int]]] = field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    """Kind -> resident MB and open files, in order of time."""

    def note(self, progress: TrainProgress) -> None:
        if progress.recovery_s is not None:
            self.recoveries_s.append(progress.recovery_s)

    def kill(self) -> None:
        """Kill a worker that trains, now and then; at the end ask the run to stop."""
        end_s = time.monotonic() + 60 * self.minutes
        while time.monotonic() < end_s and not self.over.wait(
            self.kill_every_s * self.random.uniform(0.5, 1.5)
        ):
            # Training has gone on after the last one.
            if (workers := self.workers()) and len(self.recoveries_s) == self.n_kills:
                self.random.choice(workers).kill()
                self.n_kills += 1
        os.kill(os.getpid(), signal.SIGTERM)

    def workers(self) -> list[psutil.Process]:
        """Processes that have begun to train and live."""
        told = {int(path.name) for path in self.folder.iterdir()}
        return [p for p in psutil.Process().children(recursive=True) if p.pid in told]

    def watch(self) -> None:
        """Sample processes."""
        while not self.over.wait(SAMPLE_S):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    # What follows names other processes, which the raylet starts.
                    command = " ".join(process.cmdline()[:2])
                    seen = process.memory_info().rss / 1e6, process.num_fds()
                except psutil.Error:
                    continue
                for kind, part in KINDS.items():
                    if part in command:
                        self.samples[kind].append(seen)
                        break


def thirds(samples: list[tuple[float, int]], column: int) -> tuple[float, float]:
    """Medians of the first and the last third; the very first minute is warm-up."""
    values = [sample[column] for sample in samples[int(60 / SAMPLE_S) :]] or [0.0]
    n = max(1, len(values) // 3)
    return statistics.median(values[:n]), statistics.median(values[-n:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kill-every-s", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from ray import cloudpickle

    from scvi_dist.train import ray_train

    cloudpickle.register_pickle_by_value(training_jobs)
    start_local_ray(3, object_store_memory=200_000_000)
    with tempfile.TemporaryDirectory() as home:
        cells, told = Path(home, "cells.h5ad"), Path(home, "told")
        toy_cells().write_h5ad(cells)
        told.mkdir()
        soak = Soak(told, args.minutes, args.kill_every_s, random.Random(args.seed))
        job = toy_job(cells, job={"run_dir": f"{home}/run"}, **SETTINGS)
        job.module.folder, job.module.pace_s = str(told), {"2": PACE_S}
        threads = [threading.Thread(target=t, daemon=True) for t in (soak.kill, soak.watch)]
        for thread in threads:
            thread.start()
        workers = RayConfig(num_workers=2, resources_per_worker={"CPU": 1}, max_failures=1_000_000)
        result = ray_train.run(job, workers, soak.note)
        soak.over.set()
        tell_training(soak, result)
        compare(result, cells)
        assert_each_cell_once(told, job, result.steps // STEPS_PER_EPOCH * STEPS_PER_EPOCH)
        print("each cell was trained on once an epoch")
    return 0 if tell_processes(soak) else 1


def tell_training(soak: Soak, result: FitResult) -> None:
    print(f"{soak.minutes:g} minutes, {result.epochs} epochs, {result.steps} steps")
    waits = sorted(soak.recoveries_s) or [0.0]
    print(
        f"{soak.n_kills} kills; training went on after {statistics.median(waits):.1f} s (median), "
        f"{waits[0]:.1f} to {waits[-1]:.1f} s"
    )


def compare(result: FitResult, cells: Path) -> None:
    """With a run of as many steps that nothing happens to."""
    alone = fit(toy_job(cells, **{**SETTINGS, "max_epochs": None, "max_steps": result.steps}))
    torch.testing.assert_close(result.state_dict, alone.state_dict, rtol=1e-3, atol=1e-4)
    far = max(float((alone.state_dict[k] - v).abs().max()) for k, v in result.state_dict.items())
    large = max(float(v.abs().max()) for v in alone.state_dict.values())
    print(f"weights differ by {far:.1e} at most from those of an undisturbed run ({large:.1e})")
    for name, points in alone.history.items():
        # The run was stopped within an epoch, of which it tells nothing.
        both = [dict(points[: result.epochs]), dict(result.history[name][: result.epochs])]
        assert both[0].keys() == both[1].keys(), name
        np.testing.assert_allclose(*(list(p.values()) for p in both), rtol=1e-3, err_msg=name)
    print(f"history: {result.epochs} epochs of {', '.join(alone.history)}, none missing")


def tell_processes(soak: Soak) -> bool:
    """Whether those that lived through the run are as large as they were."""
    flat = True
    for kind, samples in soak.samples.items():
        assert samples, f"no {kind} was seen"
        memory, files = thirds(samples, 0), thirds(samples, 1)
        flat &= memory[1] <= GROWTH * memory[0] + 5 and files[1] <= GROWTH * files[0] + 5
        print(
            f"{kind:12s} {memory[0]:7.0f} -> {memory[1]:7.0f} MB resident, "
            f"{files[0]:5.0f} -> {files[1]:5.0f} open files"
        )
    print("flat" if flat else "NOT flat")
    return flat


if __name__ == "__main__":
    sys.exit(main())
