"""What Dask costs, and what a second worker gives.

    python tests/bench/bench_dask_scaling.py [--cells 20000] [--genes 4000] [--rounds 3]

One pass over a simulated atlas (draws from the posterior predictive law of an untrained SCVI, and
their moments) in this process and with ``dask="local:1"`` and ``dask="local:2"``, interleaved.
Told are the median wall time, the CPU time of all processes for the pass, and the ratios: two
workers against one (wall), Dask against this process (CPU). The wall ratio means something only
while two cores are free, which the benchmark says as far as it can see.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=4_000)
    parser.add_argument("--part-cells", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _measure(options: argparse.Namespace, folder: Path) -> None:
    from scvi_dist.analysis.passes.cell_pass import Parts, run_here
    from scvi_dist.analysis.passes.engines import resolve_executor
    from scvi_dist.analysis.predictive_pass import PredictivePass, PredictiveStatistics

    module, cells = _model(options, folder)
    cell_pass = PredictivePass(PredictiveStatistics(n_samples=2, moments=True, raw=False))
    parts = Parts(part_cells=options.part_cells)
    times: dict[str, list[tuple[float, float]]] = {"here": [], "1 worker": [], "2 workers": []}
    results: dict[str, Any] = {}

    def here() -> Any:
        return run_here(cell_pass, module, cells, parts)

    here()  # Compiles what is compiled.
    idle = _idle_cores()
    with resolve_executor("local:1") as one, resolve_executor("local:2") as two:
        engines = {"1 worker": one, "2 workers": two}
        for executor in engines.values():
            executor(cell_pass, module, cells, parts)  # Workers import what they need.
        for _ in range(options.rounds):
            times["here"].append(_timed(here, results, "here"))
            for name, executor in engines.items():
                times[name].append(
                    _timed(lambda run=executor: run(cell_pass, module, cells, parts), results, name)
                )
    _check(results)
    _tell(times, options, idle)


def _model(options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    from scvi_dist.analysis.streaming import StoreCells, StreamConfig
    from scvi_dist.data.simulated.simulate import simulate_atlas
    from scvi_dist.model import SCVI

    simulate_atlas(folder, n_cells=options.cells, n_genes=options.genes, n_shards=1)
    SCVI.setup_anndata(folder / "atlas.zarr", batch_key="batch")
    model = SCVI(folder / "atlas.zarr")
    return model.module, StoreCells(model.source, None, StreamConfig(seed=1))


def _timed(work: Callable[[], Any], results: dict[str, Any], name: str) -> tuple[float, float]:
    """Wall and CPU seconds, of this process and the workers'."""
    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    results[name] = work()
    return time.perf_counter() - wall_s, _cpu_s() - cpu_s


def _cpu_s() -> float:
    import psutil

    children = psutil.Process().children(recursive=True)
    times = [process.cpu_times() for process in children]
    return time.process_time() + sum(each.user + each.system for each in times)


def _check(results: dict[str, Any]) -> None:
    for name, result in results.items():
        for key, value in results["here"].items():
            assert (value == result[key]).all(), (name, key)


def _idle_cores() -> float:
    """Cores that nobody used in the last second."""
    import psutil

    psutil.cpu_percent()
    return (1 - psutil.cpu_percent(interval=1.0) / 100) * (psutil.cpu_count() or 1)


def _tell(
    times: dict[str, list[tuple[float, float]]], options: argparse.Namespace, idle: float
) -> None:
    wall_s = {name: statistics.median(wall for wall, _ in of) for name, of in times.items()}
    cpu_s = {name: statistics.median(cpu for _, cpu in of) for name, of in times.items()}
    print(f"{options.cells:,} cells x {options.genes:,} genes, parts of {options.part_cells:,}")
    print(f"{idle:.1f} cores were idle before; results are equal to the last bit")
    print(f"{'':<12}{'wall s':>9}{'CPU s':>9}")
    for name in times:
        print(f"{name:<12}{wall_s[name]:>9.2f}{cpu_s[name]:>9.2f}")
    print(f"two workers against one, wall: {wall_s['1 worker'] / wall_s['2 workers']:.2f}x")
    overhead = cpu_s["1 worker"] / cpu_s["here"] - 1
    print(f"Dask against this process, CPU: {100 * overhead:+.1f} % (one worker)")
    overhead = cpu_s["2 workers"] / cpu_s["here"] - 1
    print(f"Dask against this process, CPU: {100 * overhead:+.1f} % (two workers)")


if __name__ == "__main__":
    main()
