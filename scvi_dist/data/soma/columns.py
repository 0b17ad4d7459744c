"""Columns of SOMA's tables: from Arrow to what a store gives, and back."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

JOINID = "soma_joinid"
"""Column that identifies a cell or a gene in every array of an experiment."""

IDS = {"obs": "obs_id", "var": "var_id"}
"""Where tiledbsoma's own ingestion puts the names of cells and genes."""

WRITER_MARK = "scvi_dist_columns"
"""Metadata of tables whose columns are nullable only where missing values are meant."""


def kind_of_type(dtype: pa.DataType) -> str | None:
    """``category``, ``string``, ``number`` or ``bool``; ``None`` for types that are not read."""
    if pa.types.is_dictionary(dtype):
        return "category"
    if pa.types.is_boolean(dtype):
        return "bool"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    return "string" if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) else None


def empty_column(field: pa.Field, categories: pa.Array | None, is_masked: bool) -> Any:
    """No values of a column, with all its categories."""
    if categories is not None:
        return pd.Categorical.from_codes([], _labels(categories), ordered=field.type.ordered)
    return pandas_column(pa.chunked_array([], field.type), is_masked)


def pandas_column(values: pa.ChunkedArray, is_masked: bool) -> Any:
    """Values as pandas takes them: (extension) arrays; text is objects, missing text ``None``.

    ``is_masked`` makes numbers and booleans nullable also where nothing is missing.
    """
    dtype = values.type
    if pa.types.is_dictionary(dtype):
        whole = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
        if isinstance(whole, pa.ChunkedArray):
            whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else None
        if whole is None:
            return pd.Categorical.from_codes([], [], ordered=dtype.ordered)
        codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return pd.Categorical.from_codes(codes, _labels(whole.dictionary), ordered=dtype.ordered)
    if kind_of_type(dtype) == "string":
        return np.array(values.to_pylist(), dtype=object)
    if values.null_count == 0 and not is_masked:
        return values.to_numpy().copy()
    if pa.types.is_floating(dtype) and not is_masked:
        return values.to_numpy(zero_copy_only=False).copy()
    missing = values.is_null().to_numpy()
    plain = values.fill_null(False if pa.types.is_boolean(dtype) else 0).to_numpy().copy()
    if pa.types.is_boolean(dtype):
        return pd.arrays.BooleanArray(plain, missing)
    if pa.types.is_floating(dtype):
        return pd.arrays.FloatingArray(plain, missing)
    return pd.arrays.IntegerArray(plain, missing)


def _labels(categories: pa.Array) -> pd.Index:
    text = kind_of_type(categories.type) == "string"
    return pd.Index(categories.to_pylist(), dtype=object if text else None)


def arrow_field(name: str, column: pd.Series) -> pa.Field:
    """The Arrow field that holds a column of obs; nullable where values may be missing."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes = pa.from_numpy_dtype(_code_dtype(len(dtype.categories)))
        labels = pa.array(list(dtype.categories)).type if len(dtype.categories) else pa.string()
        labels = pa.large_string() if pa.types.is_string(labels) else labels
        return pa.field(name, pa.dictionary(codes, labels, ordered=bool(dtype.ordered)))
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        wide = np.dtype(np.float32) if dtype == np.float16 else dtype
        return pa.field(name, pa.from_numpy_dtype(wide), nullable=False)
    if pd.api.types.is_bool_dtype(dtype):
        return pa.field(name, pa.bool_())
    if pd.api.types.is_numeric_dtype(dtype):
        return pa.field(name, pa.from_numpy_dtype(dtype.numpy_dtype))
    return pa.field(name, pa.large_string())


def arrow_column(column: pd.Series, field: pa.Field) -> pa.Array:
    """The values of a column for a field that :func:`arrow_field` made."""
    if pa.types.is_dictionary(field.type):
        codes = column.cat.codes.to_numpy()
        indices = pa.array(codes.astype(field.type.index_type.to_pandas_dtype()), mask=codes < 0)
        labels = pa.array(list(column.cat.categories), field.type.value_type)
        return pa.DictionaryArray.from_arrays(indices, labels, ordered=field.type.ordered)
    return pa.array(column, field.type, from_pandas=field.nullable)


def _code_dtype(n_categories: int) -> Any:
    """The smallest integer type for codes and one more, which TileDB keeps for itself."""
    for dtype in (np.int8, np.int16):
        if n_categories < np.iinfo(dtype).max:
            return dtype
    return np.int32
