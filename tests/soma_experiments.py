"""TileDB-SOMA experiments as other programs write them, for tests."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma

CENSUS_X = {
    "tiledb": {
        "create": {
            "capacity": 2**16,
            "dims": {
                "soma_dim_0": {"tile": 2048, "filters": [{"_type": "ZstdFilter", "level": 9}]},
                "soma_dim_1": {
                    "tile": 2048,
                    "filters": ["ByteShuffleFilter", {"_type": "ZstdFilter", "level": 9}],
                },
            },
            "attrs": {
                "soma_data": {"filters": ["ByteShuffleFilter", {"_type": "ZstdFilter", "level": 9}]}
            },
            "cell_order": "row-major",
            "tile_order": "row-major",
            "allows_duplicates": True,
        }
    }
}
"""How the CELLxGENE Census creates its matrices."""


def scatter(source: Path, target: Path, seed: int = 0) -> Path:
    """The same experiment with gaps between identifiers, rows in any order, in several pieces.

    Cell ``i`` gets ``soma_joinid`` ``3 i + 5``, gene ``j`` gets ``2 j + 1``; tables and matrices
    are written in three pieces of shuffled rows.
    """
    rng = np.random.default_rng(seed)
    with tiledbsoma.open(str(source)) as old, tiledbsoma.Experiment.create(str(target)) as new:
        _copy_table(old.obs, f"{target}/obs", 3, 5, rng)
        new.set("obs", tiledbsoma.open(f"{target}/obs"))
        with new.add_new_collection("ms") as measurements:
            for name in old.ms:
                with measurements.add_new_collection(name, tiledbsoma.Measurement) as home:
                    uri = f"{home.uri}/var"
                    _copy_table(old.ms[name].var, uri, 2, 1, rng)
                    home.set("var", tiledbsoma.open(uri))
                    for group in ("X", "obsm"):
                        if group in old.ms[name]:
                            with home.add_new_collection(group) as arrays:
                                _copy_arrays(old.ms[name][group], arrays, group, rng)
    return target


def _copy_table(old: Any, uri: str, step: int, first: int, rng: np.random.Generator) -> None:
    table = old.read().concat()
    n = table.num_rows
    ids = pa.array(np.arange(n) * step + first)
    table = table.set_column(table.schema.get_field_index("soma_joinid"), "soma_joinid", ids)
    table = table.cast(old.schema)
    domain = [(0, n * step + first)]
    with tiledbsoma.DataFrame.create(uri, schema=old.schema, domain=domain) as new:
        for name, value in old.metadata.items():
            if not name.startswith("soma_object") and not name.startswith("soma_encoding"):
                new.metadata[name] = value
        columns = [f.name for f in old.schema if pa.types.is_dictionary(f.type)]
        if columns:
            new.extend_enumeration_values(old.get_enumeration_values(columns))
    for piece in np.array_split(rng.permutation(n), 3):
        with tiledbsoma.open(uri, "w") as new:
            new.write(table.take(piece))


def _copy_arrays(old: Any, new: Any, group: str, rng: np.random.Generator) -> None:
    for name in old:
        array = old[name]
        value_type = array.schema.field("soma_data").type
        if array.soma_type == "SOMADenseNDArray":
            values = array.read().to_numpy()
            rows, columns = (axis.ravel() for axis in np.indices(values.shape))
            data = values.ravel()
        else:
            entries = array.read().tables().concat()
            rows, columns, data = (entries.column(i).to_numpy() for i in range(3))
        is_table = group == "obsm"
        rows, columns = rows * 3 + 5, columns if is_table else columns * 2 + 1
        shape = (int(array.shape[0]) * 3 + 5, int(array.shape[1]) * (1 if is_table else 2) + 1)
        if is_table:
            shape = (shape[0], int(array.shape[1]))
        with new.add_new_sparse_ndarray(name, type=value_type, shape=shape) as made:
            uri = made.uri
        for piece in np.array_split(rng.permutation(len(rows)), 3):
            if len(piece):
                with tiledbsoma.open(uri, "w") as made:
                    made.write(_entries(rows[piece], columns[piece], data[piece]))


def make_census(folder: Path, counts_ng: np.ndarray, obs: pd.DataFrame) -> Path:
    """A release of the Census in small: the path of ``census_data/homo_sapiens``.

    Layers ``raw`` and ``normalized``, cells without names, genes named by ``feature_id``, text
    columns as dictionaries, one fragment for every data set of 20 cells.
    """
    g = counts_ng.shape[1]
    names = [f"ENSG{i:011d}" for i in range(g)]
    var = {"feature_id": pa.array(names, pa.large_string()), "feature_length": np.full(g, 900)}
    shares_ng = counts_ng / np.maximum(counts_ng.sum(axis=1, keepdims=True), 1)
    with ExitStack() as stack:
        census = stack.enter_context(tiledbsoma.Collection.create(str(folder)))
        data = stack.enter_context(census.add_new_collection("census_data"))
        human = stack.enter_context(data.add_new_collection("homo_sapiens", tiledbsoma.Experiment))
        _add_table(human, "obs", {name: pa.array(column) for name, column in obs.items()})
        groups = stack.enter_context(human.add_new_collection("ms"))
        rna = stack.enter_context(groups.add_new_collection("RNA", tiledbsoma.Measurement))
        _add_table(rna, "var", var)
        layers = stack.enter_context(rna.add_new_collection("X"))
        for name, values_ng in (("raw", counts_ng), ("normalized", shares_ng)):
            array = layers.add_new_sparse_ndarray(
                name, type=pa.float32(), shape=counts_ng.shape, platform_config=CENSUS_X
            )
            with array:
                for start in range(0, len(values_ng), 20):
                    rows, genes = np.nonzero(values_ng[start : start + 20])
                    values = values_ng[start + rows, genes].astype(np.float32)
                    array.write(_entries(rows + start, genes, values))
    return folder / "census_data" / "homo_sapiens"


def _add_table(home: Any, name: str, columns: dict[str, Any]) -> None:
    """A table with identifiers from 0 on; text becomes dictionaries, but for names."""
    arrays = {
        column: values.dictionary_encode() if pa.types.is_string(values.type) else values
        for column, values in ((c, pa.array(v)) for c, v in columns.items())
    }
    table = pa.table({"soma_joinid": np.arange(len(next(iter(arrays.values())))), **arrays})
    schema = pa.schema([_wide(field) for field in table.schema])
    domain = [(0, table.num_rows - 1)]
    with home.add_new_dataframe(name, schema=schema, domain=domain) as frame:
        uri = frame.uri
    # Categories become known at the time of writing, which must not be that of creation.
    with tiledbsoma.open(uri, "w") as frame:
        frame.write(table.cast(schema))


def _wide(field: pa.Field) -> pa.Field:
    if pa.types.is_dictionary(field.type):
        return field.with_type(pa.dictionary(pa.int32(), pa.large_string()))
    return field


def _entries(rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "soma_dim_0": np.asarray(rows, np.int64),
            "soma_dim_1": np.asarray(columns, np.int64),
            "soma_data": values,
        }
    )
