"""A Zarr group and an HDF5 file as one thing: groups and growing arrays with AnnData's marks."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from scvi_dist.data.remote.remote_config import split_options


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """How the numbers of an array are compressed, where the format leaves a choice."""

    name: str = "lz4"
    """``lz4`` (decodes faster than a disk delivers) or ``zstd`` (smaller)."""
    checksum: bool = False
    """Keep a CRC32C with every chunk: damage is found when the chunk is read."""


PLAIN = Codec()


class Container(ABC):
    """An open Zarr group or HDF5 file: the few operations that both have."""

    root: Any

    @abstractmethod
    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...],
        shards: tuple[int, ...] | None = None,
        codec: Codec = PLAIN,
    ) -> Any:
        """A new array whose first axis can grow; ``dtype=str`` holds text of any length.

        ``shards`` (multiples of ``chunks``) are files that hold many chunks, and ``codec`` is how
        they are compressed, where the format has such things.
        """

    @abstractmethod
    def group(self, path: str, encoding: str, version: str, **attributes: Any) -> None:
        """A new group of the given AnnData encoding."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is buffered."""

    def element(self, path: str, value: Any) -> None:
        """Anything that anndata knows how to write, as a whole."""
        from anndata.io import write_elem

        if path in self.root:
            del self.root[path]
        with warnings.catch_warnings():
            # About a default of a later anndata; these elements are small.
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            write_elem(self.root, path, value)

    def text(self, path: str, n: int, chunks: tuple[int, ...]) -> Any:
        """A new array of ``n`` strings."""
        array = self.array(path, (n,), str, chunks)
        array.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        return array

    def numbers(
        self, path: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]
    ) -> Any:
        """A new array of numbers or bools."""
        array = self.array(path, shape, dtype, chunks)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return array

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ZarrContainer(Container):
    """A Zarr v3 group. ``url`` is a local path or any fsspec URL."""

    def __init__(self, url: str, mode: str, storage_options: Mapping[str, Any] | None) -> None:
        import zarr

        options = split_options(storage_options)[1] or None
        self.root = zarr.open_group(url, mode=mode, zarr_format=3, storage_options=options)

    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...],
        shards: tuple[int, ...] | None = None,
        codec: Codec = PLAIN,
    ) -> Any:
        import zarr

        is_text = dtype is str
        return self.root.create_array(
            path,
            shape=shape,
            dtype=zarr.dtype.VariableLengthUTF8() if is_text else dtype,
            chunks=chunks,
            shards=shards,
            compressors=_compressors(is_text, codec),
            overwrite=True,
        )

    def group(self, path: str, encoding: str, version: str, **attributes: Any) -> None:
        group = self.root.create_group(path, overwrite=True) if path else self.root
        group.attrs.update({"encoding-type": encoding, "encoding-version": version, **attributes})

    def close(self) -> None:
        """Nothing is buffered."""


def _compressors(is_text: bool, codec: Codec) -> list[Any]:
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if is_text:
        return [ZstdCodec()]
    # Counts are small: grouping equal bytes makes them several times smaller.
    blosc = BloscCodec(cname=codec.name, shuffle="shuffle")
    return [blosc, Crc32cCodec()] if codec.checksum else [blosc]


class H5Container(Container):
    """An HDF5 file at a local path; gzip."""

    def __init__(self, path: str, mode: str) -> None:
        import h5py

        self.root = h5py.File(path, mode)

    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...],
        shards: tuple[int, ...] | None = None,
        codec: Codec = PLAIN,
    ) -> Any:
        import h5py

        return self.root.create_dataset(
            path,
            shape=shape,
            dtype=h5py.string_dtype() if dtype is str else dtype,
            chunks=chunks,
            maxshape=(None, *shape[1:]),
            compression="gzip",
            compression_opts=1,
            shuffle=dtype is not str,
        )

    def group(self, path: str, encoding: str, version: str, **attributes: Any) -> None:
        import h5py

        group = self.root.create_group(path) if path else self.root
        group.attrs.update({"encoding-type": encoding, "encoding-version": version})
        for name, value in attributes.items():
            # An empty list has no type of its own in HDF5.
            is_names = isinstance(value, list) and all(isinstance(v, str) for v in value)
            group.attrs[name] = np.array(value, h5py.string_dtype()) if is_names else value

    def close(self) -> None:
        self.root.close()
