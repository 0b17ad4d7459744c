"""scvi-tools' ``model.pt``, both ways.

The file is a zip archive as ``torch.save`` writes it: ``<name>/data.pkl`` is a pickle, and
``<name>/data/<key>`` holds the raw bytes of a tensor storage that the pickle refers to. The pickle
is a dict of three: the module's state dict, the names of the genes, and the model's attributes.
"""

import math
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scvi_dist.data.filesystem import is_remote, normalise_url, open_file, redact_url
from scvi_dist.errors import StoreCorrupt, UnsafeFile, did_you_mean
from scvi_dist.model.pickle_values import ALLOWED, STORAGE_DTYPES
from scvi_dist.model.safe_pickle import Constructor, read_pickle

STATE_DICT_KEY = "model_state_dict"
VAR_NAMES_KEY = "var_names"
ATTRIBUTES_KEY = "attr_dict"
_PYRO_KEY = "pyro_param_store"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """What a ``model.pt`` holds."""

    state_dict: Mapping[str, Tensor]
    """The module's parameters and buffers, on the CPU, under scvi-tools' names."""
    var_names: np.ndarray | Mapping[str, np.ndarray]
    """Gene names, object ``[n_vars]`` of str; of a MuData those of each modality."""
    attributes: Mapping[str, Any]
    """The model's attributes whose names end in ``_``, such as ``registry_``."""


def write_model_file(url: str | os.PathLike[str], saved: SavedModel) -> None:
    """Write a ``model.pt`` that ``scvi.model.SCVI.load`` opens.

    A local file appears whole or not at all. An existing file is replaced.
    """
    state_dict: OrderedDict[str, Any] = OrderedDict(
        (name, tensor.detach().cpu()) for name, tensor in saved.state_dict.items()
    )
    state_dict[_PYRO_KEY] = {"params": {}, "constraints": {}}
    content = {
        STATE_DICT_KEY: state_dict,
        VAR_NAMES_KEY: _names(saved.var_names),
        ATTRIBUTES_KEY: dict(saved.attributes),
    }
    if is_remote(url):
        with open_file(url, "wb") as file:
            torch.save(content, file)
        return
    path = normalise_url(url)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(partial)


def read_model_file(url: str | os.PathLike[str]) -> SavedModel:
    """Read a ``model.pt`` of scvi-tools or scvi_dist; nothing that it contains is run.

    Raises
    ------
    UnsafeFile
        If the file is not a plain archive of values and arrays.
    StoreCorrupt
        If it is cut short or contradicts itself.
    StoreNotFound
        If nothing is there.
    """
    where = redact_url(normalise_url(url))
    content = read_torch_file(url)
    keys = {STATE_DICT_KEY, VAR_NAMES_KEY, ATTRIBUTES_KEY}
    if not isinstance(content, dict) or not keys <= set(content):
        seen = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise StoreCorrupt(
            f"{where} is not a saved model: expected the keys {sorted(keys)}, found {seen}."
        )
    state_dict = dict(content[STATE_DICT_KEY])
    state_dict.pop(_PYRO_KEY, None)
    strays = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strays:
        raise StoreCorrupt(f"{where}: the state dict's entry {strays[0]!r} is not a tensor.")
    return SavedModel(
        state_dict=state_dict,
        var_names=_names(content[VAR_NAMES_KEY]),
        attributes=content[ATTRIBUTES_KEY],
    )


def _names(names: Any) -> Any:
    if isinstance(names, Mapping):
        return {str(name): _names(of_modality) for name, of_modality in names.items()}
    return np.asarray(names, dtype=object)


def read_torch_file(url: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote to a file, if it is made of harmless values only."""
    where = redact_url(normalise_url(url))
    with open_file(url) as file:
        archive = _Archive(file, where)
        return read_pickle(archive.record("data.pkl"), ALLOWED, where, archive.storage)


class _Archive:
    """The records of a torch zip file, whose sizes are known to be true before any is read."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._where = where
        self._storages: dict[str, Tensor] = {}
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise self._not_an_archive(file) from error
        self._records = self._checked(size)
        if self._records.get("byteorder") and self.record("byteorder") != b"little":
            raise UnsafeFile(f"{where} was written on a big-endian machine; save it on another.")

    def _checked(self, size: int) -> dict[str, zipfile.ZipInfo]:
        """Record -> entry, for an archive without compression, repetition or overlap."""
        entries = self._zip.infolist()
        names = [entry.filename.partition("/")[2] for entry in entries]
        roots = {entry.filename.partition("/")[0] for entry in entries}
        packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
        total = sum(entry.file_size for entry in entries)
        if packed or total > size or len(roots) > 1 or len(set(names)) < len(names):
            raise UnsafeFile(
                f"{self._where} is not an archive as torch.save writes it: expected one folder of "
                f"uncompressed records that fit into its {size} bytes, found {len(entries)} "
                f"records of {total} bytes in {len(roots)} folders, {len(packed)} of them "
                "compressed. It was not read; get it from where it was made."
            )
        return dict(zip(names, entries, strict=True))

    def _not_an_archive(self, file: BinaryIO) -> Exception:
        file.seek(0)
        if file.read(2) == b"PK":
            return StoreCorrupt(f"{self._where} is cut short; copy or save it again.")
        return UnsafeFile(
            f"{self._where} is not a zip archive. Files of torch before 1.6 and legacy saves of "
            "scvi-tools are bare pickles, which are not read because they can run code; open the "
            "model with the scvi-tools that wrote it and save it with version 0.15 or newer."
        )

    def record(self, name: str) -> bytes:
        if name not in self._records:
            raise StoreCorrupt(
                f"{self._where} has no record {name!r}; {did_you_mean(name, self._records)}"
            )
        try:
            return self._zip.read(self._records[name])
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise StoreCorrupt(f"{self._where}: record {name!r} is damaged: {error}.") from error

    def storage(self, key: Any) -> Tensor:
        """``[numel]`` for ``("storage", type, key, device, numel)``; the same one each time."""
        tag, kind, name, _, numel = key
        if tag != "storage" or not isinstance(kind, Constructor):
            raise ValueError(f"unknown persistent id {tag!r}")
        dtype = STORAGE_DTYPES[kind.name.removeprefix("torch.")]
        if str(name) not in self._storages:
            content = self.record(f"data/{name}")
            if len(content) != math.prod((int(numel), dtype.itemsize)):
                raise ValueError(f"storage {name} has {len(content)} bytes, not {numel} {dtype}")
            self._storages[str(name)] = (
                torch.frombuffer(bytearray(content), dtype=dtype)
                if content
                else torch.empty(0, dtype=dtype)
            )
        stored = self._storages[str(name)]
        if stored.dtype != dtype:
            raise ValueError(f"storage {name} is used as {stored.dtype} and as {dtype}")
        return stored
