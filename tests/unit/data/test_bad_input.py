"""Bad input of every kind: refused with what is wrong, where, and what to do; or read as it is.

One table: what is spoiled, what is done with it, and what the error says.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec

from scvi_dist.data import open_store
from scvi_dist.data.highly_variable import highly_variable_genes
from scvi_dist.data.names import check_unique_cells
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.errors import (
    BadCounts,
    FieldNotFound,
    SchemaMismatch,
    ScviDistError,
    StoreCorrupt,
    StoreNotFound,
    UnsupportedStore,
)
from scvi_dist.testing import small_atlas, write_atlas


def atlas() -> Any:
    """57 cells x 23 genes; rows are 3 and more."""
    return small_atlas()


def quietly_written(adata: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_atlas(adata, path)


def changed(change: Callable[[Any], None], kind: str = "h5ad") -> Callable[[Path], Any]:
    """A store of the atlas after a change."""

    def make(folder: Path) -> Any:
        adata = atlas()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(adata)
        return adata if kind == "memory" else quietly_written(adata, folder / f"bad.{kind}")

    return make


def read_all(source: Any) -> None:
    with open_store(source) as store:
        store.read_rows([(0, store.n_obs)])


def set_up(source: Any, **setup: Any) -> None:
    with open_store(source) as store:
        fit_schema(store, SetupArgs(**setup))


# what is spoiled


def truncated(folder: Path) -> Path:
    path = write_atlas(atlas(), folder / "cut.h5ad")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def with_codecs(folder: Path, *, sharded: bool) -> Path:
    """A Zarr atlas whose counts are checked by CRC; returns its path."""
    path = write_atlas(atlas(), folder / "crc.zarr")
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    values = root["X/data"][:]
    del root["X/data"]
    array = root["X"].create_array(
        "data",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(32,),
        shards=(64,) if sharded else None,
        compressors=[BloscCodec(cname="lz4"), Crc32cCodec()],
    )
    array[:] = values
    root.update_attributes({})
    return path


def flipped(path: Path, byte: int) -> Path:
    """One byte of the third chunk of the counts is another."""
    chunk = path / "X" / "data" / "c" / "2"
    raw = bytearray(chunk.read_bytes())
    raw[byte] ^= 0x10
    chunk.write_bytes(bytes(raw))
    return path


def without_shard(folder: Path) -> Path:
    path = with_codecs(folder, sharded=True)
    (path / "X" / "data" / "c" / "1").unlink()
    return path


def without_store(folder: Path) -> list[Path]:
    paths = [write_atlas(atlas(), folder / f"part{i}.h5ad") for i in (1, 2)]
    paths[1].unlink()
    return paths


def edited(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write_atlas(atlas(), folder / "bad.h5ad")
        with h5py.File(path, "r+") as file:
            values = change(file[name][:])
            del file[name]
            file[name] = values
        return path

    return make


def put(place: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


def overflown(values: np.ndarray) -> np.ndarray:
    """Row pointers that went on counting past 2**31 in 32 bits."""
    return np.where(np.arange(58) < 40, values, values.astype(np.int64) - 2**31).astype(np.int32)


def by_columns(adata: Any) -> None:
    adata.X = adata.X.tocsc()


def genes_twice(adata: Any) -> None:
    adata.var_names = [*adata.var_names[:-1], adata.var_names[3]]


def cells_twice(adata: Any) -> None:
    adata.obs_names = [*adata.obs_names[:-1], "cell-7"]


def count(value: float) -> Callable[[Any], None]:
    def change(adata: Any) -> None:
        x = adata.X.toarray()
        x[13, 4] = value
        adata.X = sparse.csr_matrix(x)

    return change


def mixed_column(adata: Any) -> None:
    adata.obs["mixed"] = [1, "two", *range(55)]


@dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    name: str
    make: Callable[[Path], Any]
    use: Callable[[Any], Any]
    error: type[ScviDistError]
    says: tuple[str, ...]
    """Patterns that the message has to have: store, field, rows, remedy."""


def unique_cells(source: Any) -> None:
    with open_store(source) as store:
        check_unique_cells(store)


NAMES = atlas().var_names

CASES = (
    Case("truncated", truncated, read_all, StoreCorrupt, (r"cut\.h5ad cannot be opened", "bytes")),
    Case(
        "crc-of-chunk",
        lambda folder: flipped(with_codecs(folder, sharded=False), 20),
        read_all,
        StoreCorrupt,
        (r"crc\.zarr: X/data \(entries \d+ to \d+\)", "damaged"),
    ),
    Case(
        "crc-in-shard",
        lambda folder: flipped(with_codecs(folder, sharded=True), 20),
        read_all,
        StoreCorrupt,
        (r"crc\.zarr: X/data \(entries \d+ to \d+\)", "damaged"),
    ),
    Case(
        "crc-of-shard-index",
        lambda folder: flipped(with_codecs(folder, sharded=True), -9),
        read_all,
        StoreCorrupt,
        (r"crc\.zarr: X/data",),
    ),
    Case(
        "missing-shard",
        without_shard,
        read_all,
        StoreCorrupt,
        (r"crc\.zarr", r"of X/data \(entries 64 to", "not there", "not copied completely"),
    ),
    Case("missing-store", without_store, read_all, StoreNotFound, (r"part2\.h5ad", "part1")),
    *(
        Case(
            f"csc-{kind}",
            changed(by_columns, kind),
            read_all,
            UnsupportedStore,
            (rf"bad\.{kind}: X is stored by columns", r"adata\.X\.tocsr\(\)"),
        )
        for kind in ("h5ad", "zarr")
    ),
    Case(
        "falling-pointers",
        edited("X/indptr", lambda v: np.concatenate([v[:3], v[4:2:-1], v[5:]])),
        read_all,
        StoreCorrupt,
        (r"bad\.h5ad: X", r"row pointers fall from \d+ to \d+ at row 3"),
    ),
    Case(
        "pointers-of-32-bits",
        edited("X/indptr", overflown),
        read_all,
        StoreCorrupt,
        (r"bad\.h5ad: X", "at row 39", "32 bits were too few", "int64"),
    ),
    Case(
        "gene-out-of-range",
        edited("X/indices", put(0, 23)),
        read_all,
        StoreCorrupt,
        (r"bad\.h5ad: X", "row 0 has a value for gene 23; there are 23 genes"),
    ),
    Case(
        "category-out-of-range",
        edited("obs/batch/codes", put(9, 7)),
        lambda source: set_up(source, batch_key="batch"),
        StoreCorrupt,
        (r"bad\.h5ad: obs/batch has code 7 in row 9, but only 4 categories",),
    ),
    *(
        Case(
            f"repeated-genes-{kind}",
            changed(genes_twice, kind),
            set_up,
            SchemaMismatch,
            (f"'{NAMES[3]}' .*columns 3 and 22", r"var_names_make_unique"),
        )
        for kind in ("memory", "h5ad", "zarr")
    ),
    *(
        Case(
            f"repeated-cells-{kind}",
            changed(cells_twice, kind),
            unique_cells,
            SchemaMismatch,
            (r"'cell-7' \(rows 7 and 56\)", "obs_names_make_unique"),
        )
        for kind in ("memory", "h5ad")
    ),
    *(
        Case(
            f"count-{value}",
            changed(count(value)),
            highly_variable_genes,
            BadCounts,
            (
                r"bad\.h5ad",
                f"{what}, first row 13, gene 4 \\({re.escape(NAMES[4])}\\)",
                "raw counts",
            ),
        )
        for value, what in (
            (np.nan, "NaN or infinite"),
            (np.inf, "NaN or infinite"),
            (-3.0, "negative"),
        )
    ),
    *(
        Case(
            f"empty-{kind}-{n}-{g}",
            changed(lambda adata: None, kind)
            if n and g
            else (
                lambda folder, kind=kind, n=n, g=g: (
                    atlas()[:n, :g].copy()
                    if kind == "memory"
                    else quietly_written(atlas()[:n, :g].copy(), folder / f"bad.{kind}")
                )
            ),
            set_up,
            SchemaMismatch,
            (f"has {n} cells and {g} genes",),
        )
        for kind in ("memory", "h5ad", "zarr")
        for n, g in ((0, 23), (57, 0))
    ),
    Case(
        "object-column",
        changed(mixed_column, "memory"),
        lambda source: set_up(source, batch_key="mixed"),
        SchemaMismatch,
        ("column 'mixed' of obs", "int, str", "row 1: 'two'", "astype"),
    ),
    Case(
        "text-for-a-number",
        changed(lambda adata: None),
        lambda source: set_up(source, size_factor_key="barcode"),
        SchemaMismatch,
        ("size_factor needs a column of numbers", r"obs\['barcode'\] of .*bad\.h5ad", "'string'"),
    ),
    Case(
        "missing-category",
        changed(lambda adata: None),
        lambda source: set_up(source, batch_key="donor"),
        SchemaMismatch,
        (r"obs\['donor'\] of .*bad\.h5ad", "every cell needs a category", r"row \d+"),
    ),
    Case(
        "no-such-column",
        changed(lambda adata: None),
        lambda source: set_up(source, batch_key="bacth"),
        FieldNotFound,
        (r"bad\.h5ad", "did you mean 'batch'"),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_by_name(case: Case, tmp_path: Path) -> None:
    source = case.make(tmp_path)
    with pytest.raises(case.error) as raised:
        case.use(source)
    message = str(raised.value)
    for pattern in case.says:
        assert re.search(pattern, message, re.S), (pattern, message)


def test_a_column_that_one_of_many_stores_lacks_is_told_with_the_store(tmp_path: Path) -> None:
    one, two = atlas(), atlas()
    del two.obs["batch"]
    paths = [write_atlas(a, tmp_path / f"{i}.h5ad") for i, a in enumerate((one, two))]
    for use in (
        lambda: set_up(paths, batch_key="batch"),
        lambda: open_store(paths, obs_filter="batch == 'mid'"),
        lambda: highly_variable_genes(paths, batch_key="batch"),
    ):
        with pytest.raises(SchemaMismatch, match=r"column 'batch'.*1\.h5ad does not have it"):
            use()


def test_repeated_cells_are_found_across_chunks() -> None:
    obs = pd.DataFrame(index=[*(f"c{i}" for i in range(50)), "c3", "c49"])
    with pytest.warns(UserWarning, match="not unique"):
        adata = anndata.AnnData(sparse.csr_matrix((52, 3), dtype=np.float32), obs=obs)
    with pytest.raises(SchemaMismatch, match=r"2 cells .*'c3' \(rows 3 and 50\), 'c49'"):
        check_unique_cells(open_store(adata), chunk_rows=7)
    check_unique_cells(open_store(adata[:50].copy()), chunk_rows=7)
