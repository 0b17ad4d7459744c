"""A long run whose workers are killed at random: memory and open files stay what they were.

    python tests/bench/train/bench_soak.py [--minutes 10] [--kill-every-s 30]

Two workers train a small model under a local Ray until the time is up. Told at the end: kills,
time until training went on after each, how far the weights are from those of an undisturbed run of
as many steps, and for every kind of process that lives through the whole run its resident memory
and open files in the first and the last third of it. Exits with 1 if one of them grew by more than
a tenth, or if a cell was not trained on exactly once an epoch.
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

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
import training_jobs
from training_jobs import assert_each_cell_once, toy_cells, toy_job

from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
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
"""What lives through the run -> part of its command line."""
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
            pids = [int(p.name) for p in self.folder.iterdir() if psutil.pid_exists(int(p.name))]
            if pids and len(self.recoveries_s) == self.n_kills:
                os.kill(self.random.choice(pids), signal.SIGKILL)
                self.n_kills += 1
        os.kill(os.getpid(), signal.SIGTERM)

    def watch(self) -> None:
        """Sample processes."""
        while not self.over.wait(SAMPLE_S):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    command = " ".join(process.cmdline())
                    seen = process.memory_info().rss / 1e6, process.num_fds()
                except psutil.Error:
                    continue
                for kind, part in KINDS.items():
                    if part in command and "dashboard" not in command:
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
        job.module.folder = str(told)
        threads = [threading.Thread(target=t, daemon=True) for t in (soak.kill, soak.watch)]
        for thread in threads:
            thread.start()
        workers = RayConfig(num_workers=2, resources_per_worker={"CPU": 1}, max_failures=1_000_000)
        result = ray_train.run(job, workers, soak.note)
        soak.over.set()
        n_steps = result.steps // 5 * 5
        print(f"{args.minutes:g} minutes, {result.epochs} epochs, {result.steps} steps")
        waits = sorted(soak.recoveries_s) or [0.0]
        print(
            f"{soak.n_kills} kills; training went on after {statistics.median(waits):.1f} s "
            f"(median), {waits[-1]:.1f} s at most"
        )
        undisturbed = toy_job(cells, **{**SETTINGS, "max_epochs": None, "max_steps": result.steps})
        alone = fit(undisturbed).state_dict
        far = max(float((alone[k] - v).abs().max()) for k, v in result.state_dict.items())
        large = max(float(v.abs().max()) for v in alone.values())
        print(f"weights differ by {far:.1e} at most from those of an undisturbed run")
        print(f"(the largest is {large:.1e})")
        assert_each_cell_once(told, job, n_steps)
        print("each cell was trained on once an epoch")
    flat = True
    for kind, samples in soak.samples.items():
        memory, files = thirds(samples, 0), thirds(samples, 1)
        flat &= memory[1] <= GROWTH * memory[0] + 5 and files[1] <= GROWTH * files[0] + 5
        print(
            f"{kind:12s} {memory[0]:7.0f} -> {memory[1]:7.0f} MB resident, "
            f"{files[0]:5.0f} -> {files[1]:5.0f} open files"
        )
    print("flat" if flat else "NOT flat")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
