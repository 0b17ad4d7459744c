"""annbatch, in a Python of its own: writes its collection once, then makes a pass when asked.

    PYTHON annbatch_peer.py H5AD COLLECTION BATCH_SIZE

It needs Python 3.12 with ``annbatch`` and ``zarrs``. Each line on standard input is one pass over
all cells (512-row chunks, 32 of them at once), ``sparse`` with the batch as scipy CSR, ``dense``
with its float32 array; the answer is a line of JSON with cells, seconds and CPU seconds.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import zarr


def main() -> None:
    warnings.simplefilter("ignore")
    from annbatch import DatasetCollection, Loader

    source, target, batch_size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    if not target.exists():
        DatasetCollection(zarr.open_group(target, mode="w")).add_adatas([source], shuffle=True)
    collection = DatasetCollection(zarr.open_group(target, mode="r"), mode="r")
    print(json.dumps({"ready": True}), flush=True)
    for number, line in enumerate(sys.stdin):
        dense = line.strip() == "dense"
        loader = Loader(
            batch_size=batch_size,
            chunk_size=512,
            preload_nchunks=32,
            shuffle=True,
            rng=np.random.default_rng(number),
        )
        loader.use_collection(collection)
        start, cpu = time.perf_counter(), time.process_time()
        if dense:
            n = sum(len(batch["X"].toarray()) for batch in loader)
        else:
            n = sum(batch["X"].shape[0] for batch in loader)
        took = {"cells": n, "s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
