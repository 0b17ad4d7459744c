"""What an open TileDB-SOMA experiment holds: its measurements, their layers and tables."""

import os
from collections.abc import Mapping
from typing import Any

import tiledbsoma

from scvi_dist.data.filesystem import is_remote, normalise_url, not_found
from scvi_dist.data.soma.context import context_of
from scvi_dist.data.soma.table import damage_of
from scvi_dist.data.store import StoreLocator
from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore, did_you_mean

_DEFAULT_MEASUREMENT = "RNA"
_DEFAULT_LAYERS = ("data", "raw", "counts")
_RAW = "raw"


def open_experiment(locator: StoreLocator) -> Any:
    """The open experiment. Raises :class:`StoreNotFound` and :class:`UnsupportedStore`."""
    url, where = locator.url, locator.redacted_url
    timestamp = dict(locator.options).get("timestamp")
    if not is_remote(url) and not os.path.exists(normalise_url(url)):
        raise not_found(url)
    try:
        opened = _opened(url, where, locator.fsspec_options(), timestamp)
    except tiledbsoma.DoesNotExistError:
        raise UnsupportedStore(
            f"{where} is not a TileDB-SOMA experiment (or these credentials may not see it). "
            "Give the path or URI of an experiment; write_soma and tiledbsoma.io.from_anndata "
            "make one."
        ) from None
    if opened.soma_type == "SOMAExperiment":
        return opened
    inside = ", ".join(sorted(opened)) if isinstance(opened, Mapping) else ""
    opened.close()
    raise UnsupportedStore(
        f"{where} is a {opened.soma_type}, expected a SOMAExperiment."
        + (f" It holds {inside}: open one of those, or what they hold." if inside else "")
    )


def _opened(url: str, where: str, options: Mapping[str, Any], timestamp: int | None) -> Any:
    with damage_of(url, where, "the experiment", passes=tiledbsoma.DoesNotExistError):
        return tiledbsoma.open(url, context=context_of(options), tiledb_timestamp=timestamp)


class Measurements:
    """The measurements of an open experiment, and the one that holds the counts.

    Parameters
    ----------
    experiment
        The open experiment.
    asked
        Name of the measurement; ``None``: ``RNA``, or the only one beside ``raw``.
    where
        Name of the store, for messages.
    """

    def __init__(self, experiment: Any, asked: str | None, where: str) -> None:
        self._all, self._where = experiment.ms, where
        self.name = self._choose(asked)

    def _choose(self, asked: str | None) -> str:
        have = sorted(self._all)
        wanted = asked or _DEFAULT_MEASUREMENT
        if wanted in have:
            return wanted
        alone = [name for name in have if name != _RAW]
        if asked is None and len(alone) == 1:
            return alone[0]
        raise FieldNotFound(
            f"{self._where} has no measurement {wanted!r}; {did_you_mean(wanted, have)}"
        )

    def member(self, measurement: str, name: str) -> Any:
        """``var``, ``X`` or another member that every measurement needs."""
        if name not in self._all[measurement]:
            raise StoreCorrupt(
                f"{self._where}: measurement {measurement!r} has no {name}. It was probably not "
                "written to its end."
            )
        return self._all[measurement][name]

    def layer(self, measurement: str, name: str) -> Any:
        """The open array of a layer."""
        return self.member(measurement, "X")[name]

    def _layers_of(self, measurement: str) -> list[str]:
        return sorted(self.member(measurement, "X"))

    def _default_layer(self, measurement: str) -> str | None:
        have = self._layers_of(measurement)
        usual = (name for name in _DEFAULT_LAYERS if name in have)
        return next(usual, have[0] if len(have) == 1 else None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that can be opened; ``raw`` also where it is a measurement of its own."""
        names = self._layers_of(self.name)
        has_raw = _RAW in self._all and self.name != _RAW and _RAW not in names
        return (*names, _RAW) if has_raw else tuple(names)

    def find_layer(self, asked: str | None) -> tuple[str, str]:
        """The measurement that a layer is in, and its name there.

        ``None`` is ``data``, ``raw`` or ``counts``, or the only layer; ``raw`` is the layer of
        that name (as in the Census) or else the measurement (as tiledbsoma ingests ``.raw``).
        """
        have = self._layers_of(self.name)
        if asked is None:
            found = self._default_layer(self.name)
            if found is None:
                raise FieldNotFound(
                    f"{self._where}: measurement {self.name!r} has the layers "
                    f"{', '.join(have) or '-'}; say which one to open (layer=...)."
                )
            return self.name, found
        if asked in have:
            return self.name, asked
        raw = self._default_layer(_RAW) if asked == _RAW and _RAW in self._all else None
        if raw is None:
            raise FieldNotFound(
                f"{self._where}: measurement {self.name!r} has no layer {asked!r}; "
                f"{did_you_mean(asked, self.layers)}"
            )
        return _RAW, raw

    def obsm(self) -> dict[str, Any]:
        """Key -> open matrix in the measurement's obsm."""
        home = self._all[self.name]
        found = {key: home.obsm[key] for key in sorted(home.obsm)} if "obsm" in home else {}
        return {
            key: array
            for key, array in found.items()
            if array.soma_type.endswith("NDArray") and array.ndim == 2
        }

    def others(self, opened: str) -> dict[str, Any]:
        """Name -> open matrix of every measurement but this, ``raw`` and the one opened."""
        names = (name for name in sorted(self._all) if name not in (self.name, _RAW, opened))
        layers = {name: self._default_layer(name) for name in names}
        return {name: self.layer(name, layer) for name, layer in layers.items() if layer}
