"""Wall time of SCVI's training with one thread beside two: needs two cores that nobody else uses.

    python tests/bench/train/bench_threads.py [--genes 4000] [--likelihood zinb] [--batch 128]

One process trains new models in turns with one and with two threads, as ``torch.set_num_threads``
sets them; medians over the rounds, of which the first warms everything up.
"""

import os

# Before torch is loaded: its threads are set below, those of other libraries stay out of the way.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_vae import atlas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=4_000)
    parser.add_argument("--cells", type=int, default=4_000)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from scvi_dist.model import SCVI

    cells = atlas(args.cells, args.genes)
    SCVI.setup_anndata(cells, batch_key="batch")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.repeats + 1):
        for n_threads, values in seconds.items():
            torch.set_num_threads(n_threads)
            torch.manual_seed(0)
            model = SCVI(cells, gene_likelihood=args.likelihood)
            start = time.perf_counter()
            model.train(
                max_epochs=args.epochs,
                batch_size=args.batch,
                accelerator="cpu",
                train_size=0.9,
                enable_progress_bar=False,
            )
            values.append(time.perf_counter() - start)
    one, two = (statistics.median(values[1:]) for values in seconds.values())
    print(f"{args.genes} genes, {args.likelihood}, batch {args.batch}")
    print(f"1 thread {one:.3f} s, 2 threads {two:.3f} s: {one / two:.2f} x as fast")


if __name__ == "__main__":
    main()
