"""What ``import scvi_dist`` adds to ``import torch``, in seconds of a fresh process.

python tests/bench/bench_import.py [--repeats 7]
"""

import argparse
import statistics
import subprocess
import sys

CODE = {
    "torch": "import torch",
    "scvi_dist": "import torch, scvi_dist",
    "scvi_dist.model.SCVI": "import torch; from scvi_dist.model import SCVI",
    "scvi (scvi-tools)": "import torch, scvi",
}
TIMER = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def seconds(code: str) -> float:
    command = [sys.executable, "-W", "ignore", "-c", TIMER.format(code)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(repeats + 1):  # interleaved; the first round warms the page cache
        for name, code in CODE.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:24s} {median:6.2f} s   torch + {median - medians['torch']:5.2f} s")


if __name__ == "__main__":
    main()
