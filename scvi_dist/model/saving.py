"""Models on disk: the directory that scvi-tools writes and reads."""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_dist.data.filesystem import (
    exists,
    file_facts,
    filesystem_of,
    is_remote,
    join_url,
    normalise_url,
    open_file,
    redact_url,
)
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema
from scvi_dist.data.writing.writer import write_h5ad
from scvi_dist.errors import ConfigError, OutputExists, SchemaMismatch, StoreNotFound, UnsafeFile
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.pt"
ADATA_FILE = "adata.h5ad"
MDATA_FILE = "mdata.h5mu"
LEGACY_FILE = "model_params.pt"
READ_WHOLE_BYTES = 2 << 30
"""An ``adata.h5ad`` beside a model is read into memory up to this size, else left on disk."""

PathLike = str | os.PathLike[str]


def save_directory(
    dir_path: PathLike,
    saved: SavedModel,
    prefix: str | None = None,
    overwrite: bool = False,
    manager: AnnDataManager | None = None,
    write_arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, and its cells where a manager is given.

    ``write_arguments`` are for ``AnnData.write_h5ad`` or ``MuData.write_h5mu``.

    Raises
    ------
    OutputExists
        The directory is there and ``overwrite`` is False.
    """
    url = normalise_url(dir_path)
    if exists(url) and not overwrite:
        raise OutputExists(
            f"{redact_url(url)} already exists. Give another directory, or overwrite=True to "
            "replace the files in it."
        )
    if not is_remote(url):
        os.makedirs(url, exist_ok=True)
    if manager is not None:
        is_mudata = manager.schema.setup.modalities is not None
        path = join_url(url, f"{prefix or ''}{MDATA_FILE if is_mudata else ADATA_FILE}")
        _save_cells(manager, path, dict(write_arguments or {}))
    write_model_file(join_url(url, f"{prefix or ''}{MODEL_FILE}"), saved)


def _save_cells(manager: AnnDataManager, path: str, write_arguments: dict[str, Any]) -> None:
    """The cells as scvi-tools would find them again, with the counts where the setup says."""
    if is_remote(path):
        raise ConfigError(
            f"save_anndata writes to local paths, seen {redact_url(path)}. Save the model alone: "
            "it can be loaded with the path or URL of its data."
        )
    locator = manager.store.locator
    is_mudata = manager.schema.setup.modalities is not None
    kind = "h5mu" if is_mudata else "h5ad"
    is_whole_file = locator.kind == kind and not is_remote(locator.url)
    # A backed AnnData would move over to the file that it is written to.
    if manager.adata is not None and not manager.adata.isbacked:
        write = manager.adata.write_h5mu if is_mudata else manager.adata.write_h5ad  # type: ignore
        write(path, **write_arguments)
    elif write_arguments:
        raise ConfigError(
            f"save() was given {', '.join(write_arguments)} for AnnData.write_h5ad, but the cells "
            f"are in {locator.redacted_url} and are copied as they are. Leave it out."
        )
    elif is_whole_file:
        if normalise_url(locator.url) != path:
            shutil.copyfile(normalise_url(locator.url), path)
    elif is_mudata:
        raise ConfigError(
            f"save_anndata writes a MuData that is in memory or in an h5mu file; these cells are "
            f"in {locator.redacted_url}. Save the model alone, and load it with that path or URL."
        )
    elif manager.schema.setup.layer is None:
        write_h5ad(manager.store, path, overwrite=True)
    else:
        raise ConfigError(
            f"save_anndata: the counts are in layer {manager.schema.setup.layer!r} of "
            f"{locator.redacted_url}, and a copy would have them in X, where the model would not "
            "look. Save the model alone, and load it with the path or URL of its data."
        )


def read_directory(
    dir_path: PathLike, prefix: str | None = None, backup_url: str | None = None
) -> SavedModel:
    """Read the model in a directory; nothing in it is run.

    Raises
    ------
    StoreNotFound
        There is none.
    UnsafeFile
        It is of scvi-tools before 0.15, or would run code.
    """
    url = join_url(dir_path, f"{prefix or ''}{MODEL_FILE}")
    if not exists(url):
        if backup_url is not None:
            _fetch(backup_url, url)
        elif exists(join_url(dir_path, f"{prefix or ''}{LEGACY_FILE}")):
            raise UnsafeFile(
                f"{redact_url(normalise_url(dir_path))} holds a model of scvi-tools before 0.15, "
                "whose attributes are a bare pickle. Convert it with that release's successor: "
                "scvi.model.SCVI.convert_legacy_save(dir_path, output_dir_path)."
            )
        else:
            raise StoreNotFound(
                f"no {prefix or ''}{MODEL_FILE} in {redact_url(normalise_url(dir_path))}. Give "
                "the directory that save() wrote, and its prefix if it was given one."
            )
    return read_model_file(url)


def read_model(
    dir_path: PathLike, prefix: str | None, backup_url: str | None, allowed: Sequence[str]
) -> tuple[SavedModel, Schema, dict[str, Any]]:
    """A saved model, the schema of its data, and the arguments of its constructor.

    Raises
    ------
    ConfigError
        The model's class is not among the allowed ones.
    """
    where = redact_url(normalise_url(dir_path))
    saved = read_directory(dir_path, prefix, backup_url)
    registry = saved.attributes.get("registry_")
    if registry is None:
        raise SchemaMismatch(f"{where} has no registry_: it is not a model of scvi-tools.")
    written_by = registry.get("model_name", allowed[0])
    if written_by not in allowed:
        raise ConfigError(
            f"{where} holds a {written_by} model, not a {allowed[0]} model. "
            f"Load it with scvi_dist.model.{written_by}.load."
        )
    schema = Schema.from_registry(registry, saved.var_names)
    return saved, schema, init_arguments(saved.attributes, where)


def _fetch(source: str, target: str) -> None:
    if not is_remote(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    partial = f"{target}.{os.getpid()}.partial"
    with open_file(source) as there, open_file(partial, "wb") as here:
        shutil.copyfileobj(there, here)
    fs, path = filesystem_of(target)
    fs.mv(filesystem_of(partial)[1], path)


def saved_cells(dir_path: PathLike, prefix: str | None = None) -> Any:
    """The cells saved beside a model: an AnnData or a MuData, or the path of a large one; None
    without any.

    Warns
    -----
    UserWarning
        There are none.
    """
    urls = [join_url(dir_path, f"{prefix or ''}{name}") for name in (ADATA_FILE, MDATA_FILE)]
    url = next((url for url in urls if exists(url)), None)
    if url is None:
        warnings.warn(
            f"{redact_url(normalise_url(dir_path))} contains no saved anndata and no adata was "
            "passed. The model is loaded without data.",
            UserWarning,
            stacklevel=3,
        )
        return None
    if is_remote(url) or file_facts(url).size > READ_WHOLE_BYTES:
        return url
    if url == urls[1]:
        from mudata import read_h5mu

        return read_h5mu(url)
    from anndata import read_h5ad

    return read_h5ad(url)


def init_arguments(attributes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of the model's constructor besides the data, from any release's layout."""
    if "init_params_" not in attributes:
        raise SchemaMismatch(f"{where} has no init_params_: it is not a model of scvi-tools.")
    params = dict(attributes["init_params_"])
    if "non_kwargs" in params:
        plain, nested = params["non_kwargs"], params["kwargs"]
    else:
        plain = {k: v for k, v in params.items() if not isinstance(v, dict)}
        nested = {k: v for k, v in params.items() if isinstance(v, dict)}
    arguments = dict(plain)
    for extra in nested.values():
        arguments.update(extra)
    for gone in ("use_cuda", "datamodule", "unlabeled_category", "pretrained_model"):
        arguments.pop(gone, None)
    return arguments


def check_weights(module: "nn.Module", saved: SavedModel, where: str) -> None:
    """Raise unless a file's weights have the names and shapes of a module's.

    Raises
    ------
    SchemaMismatch
        Names or shapes differ; says which.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in saved.state_dict.items()}
    if own != there:
        lacking = sorted(set(own) - set(there))
        strays = sorted(set(there) - set(own))
        shapes = [n for n in own if n in there and own[n] != there[n]]
        named = "; ".join(
            f"{what}: {', '.join(names[:3])}"
            for what, names in (("missing", lacking), ("unknown", strays))
            if names
        )
        named += "".join(f"; {n} is {there[n]}, expected {own[n]}" for n in shapes[:3])
        raise SchemaMismatch(
            f"{where}: its weights do not fit the model that its arguments describe "
            f"({named.strip('; ')}). The file was made by another kind of model or release."
        )
