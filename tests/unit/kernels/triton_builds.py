"""Builds Triton's kernels for some GPUs, of which none is needed for that.

    python tests/unit/kernels/triton_builds.py [--all] 80 90

Those that train the usual models in float32; with ``--all`` also in float64, and all in float32.
Prints a line of JSON for each: the kernel, the variant, and how many registers, spilled bytes and
bytes of shared memory it takes.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scvi_dist.kernels import count_loss_triton, products_triton
from scvi_dist.kernels.count_rows_triton import put_together, take_counts
from scvi_dist.kernels.problem import LAWS
from scvi_dist.kernels.triton_math import OPTIONS

Variant = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
"""A kernel, types of its arguments, its constants, and options of the compiler."""


def count_variants(real: str) -> Iterator[Variant]:
    logits = dict.fromkeys(("logits_rg", "dropout_rg", "theta_tg"), f"*{real}")
    slopes = {"theta_slope_rg": f"*{real}"}
    rows = {"indptr_r": "*i64", "genes": "*i32", "counts": "*fp32", "size_r": "*fp64"}
    kept = {"kind_r": "*i64", "cells": "*fp64", "entries": f"*{real}"}
    results = {"loss_r": "*fp64", "size_slope_r": "*fp64"}
    numbers = {"n_genes": "i32", "n_entries": "i32"}
    taken = {**logits, **rows, **kept, **numbers}
    put = {**logits, **slopes, **rows, "weight_r": "*fp64", **kept, **results, **numbers}
    sizes = {"BLOCK_G": count_loss_triton.BLOCK_G, "BLOCK_M": count_loss_triton.BLOCK_M}
    # Dispersions that are trained, of each cell, or frozen; and losses alone.
    trained = {"BY_CELL": False, "WANTS": True, "WANTS_THETA": True}
    by_cell = {**trained, "BY_CELL": True}
    frozen = {**trained, "WANTS_THETA": False}
    alone = {**frozen, "WANTS": False}
    for law in LAWS:
        kinds = [frozen, alone]
        kinds = (
            kinds if law == "poisson" else [trained, by_cell, *kinds, {**alone, "BY_CELL": True}]
        )
        for scale, kind in product((True, False), kinds):
            flags = {"IS_SOFTMAX": scale, "LAW": law, **kind}
            options = {"num_warps": count_loss_triton.N_WARPS}
            yield put_together, put, {**flags, **sizes}, options
            if flags["WANTS_THETA"] or law == "poisson" or not flags["WANTS"]:
                del flags["WANTS_THETA"]
                yield take_counts, taken, {**flags, **sizes}, options


def product_variants(real: str) -> Iterator[Variant]:
    sparse = {"indptr_n": "*i64", "genes_m": "*i32", "values_m": "*fp32"}
    multiplied = {**sparse, "weight_gh": f"*{real}", "out_nh": f"*{real}", "n_units": "i32"}
    sorted_m = {"first_g": "*i64", "order_m": "*i64", "rows_m": "*i64", "values_m": "*fp32"}
    added = {**sorted_m, "slope_nh": f"*{real}", "gradient_gh": f"*{real}", "n_units": "i32"}
    for block_h in (16, products_triton.MOST_UNITS):
        sizes = {"N_ROWS": products_triton.N_ROWS, "BLOCK_H": block_h}
        yield products_triton._multiply_rows, multiplied, sizes, {}
        yield products_triton._add_columns, added, sizes, {}
    summed = {"indptr_n": "*i64", "values_m": f"*{real}", "sums_n": f"*{real}"}
    yield products_triton._row_sums, summed, {"BLOCK_M": products_triton.BLOCK_M}, {}


def is_usual(variant: Variant) -> bool:
    """Whether it is of what trains most models."""
    constants = variant[2]
    return (
        constants.get("IS_SOFTMAX", True)
        and constants.get("WANTS", True)
        and not constants.get("BY_CELL", False)
        and (constants.get("LAW") == "poisson" or constants.get("WANTS_THETA", True))
    )


def attributes(types: dict[str, str]) -> dict[tuple[int], list[list[Any]]]:
    """What a launch finds where all sizes and addresses are multiples of 16: wide loads."""
    places = [place for place, name in enumerate(types) if name != "n_entries"]
    return {(place,): [["tt.divisibility", 16]] for place in places}


def built(variant: Variant, capability: int) -> dict[str, Any]:
    """What comes of one variant."""
    kernel, types, constants, options = variant
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature, constants, attributes(types))
    target = GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options={**OPTIONS, **options})
    return {
        "kernel": kernel.__name__,
        "gpu": f"sm_{capability}",
        "variant": {**types, **constants},
        "shared_bytes": code.metadata.shared,
        **resources(code.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes that it puts into memory for want of them."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernel.cubin"
        code.write_bytes(cubin)
        command = [cuobjdump, "--dump-resource-usage", code]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": used["REG"], "spilled_bytes": used["STACK"] + used["LOCAL"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, nargs="+")
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    variants = [*count_variants("fp32"), *product_variants("fp32")]
    exact = [*count_variants("fp64"), *product_variants("fp64")]
    usual = [variant for variant in variants if is_usual(variant)]
    for variant in [*variants, *filter(is_usual, exact)] if args.all else usual:
        for capability in args.capability:
            print(json.dumps(built(variant, capability)), flush=True)


if __name__ == "__main__":
    main()
