"""What of a TileDB-SOMA experiment is opened, and the names by which one is found.

``soma://path``, ``soma://s3://bucket/experiment``, ``tiledb://account/experiment``, a path or an
``s3://`` URI of an experiment, and ``census:homo_sapiens`` for the CELLxGENE Census.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from scvi_dist.data.filesystem import normalise_url
from scvi_dist.data.soma.census import CENSUS_OPTIONS, census_uri, is_census
from scvi_dist.data.soma.context import refuse_secret_config
from scvi_dist.data.store import StoreLocator, freeze
from scvi_dist.errors import ConfigError, did_you_mean

_SCHEME = "soma://"
_GROUP_FILE = "__tiledb_group.tdb"
_ARRAY_FOLDER = "__schema"

MARKS = (_GROUP_FILE, _ARRAY_FOLDER)
"""What tells a TileDB group and a TileDB array from other folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SomaOptions:
    """Which cells, genes and counts of an experiment; all travel with the store's locator."""

    measurement: str | None = None
    """Measurement that holds the counts; ``None``: ``RNA``, or the only one."""
    obs_value_filter: str | None = None
    """TileDB expression over obs; TileDB itself leaves the other cells out (as ``AxisQuery``)."""
    var_value_filter: str | None = None
    """TileDB expression over var."""
    timestamp: int | str | None = None
    """The experiment as it was then: milliseconds since 1970, or an ISO date and time."""
    obs_names: str | None = None
    """Column with the cells' names; ``None``: ``obs_id``, or else the soma_joinid."""
    var_names: str | None = None
    """Column with the genes' names; ``None``: ``var_id``, ``feature_id``, or the soma_joinid."""
    census_version: str = "stable"
    """Release of the Census: a date, ``stable`` or ``latest``; kept in the locator as a date."""

    @classmethod
    def of(cls, options: "SomaOptions | Mapping[str, Any] | None") -> "SomaOptions":
        """Options from a mapping. Raises :class:`ConfigError` with the nearest name."""
        if isinstance(options, SomaOptions):
            return options
        known = [field.name for field in fields(cls)]
        given = {} if options is None else dict(options)
        for name in given:
            if name not in known:
                raise ConfigError(f"soma has no option {name!r}; {did_you_mean(name, known)}")
        return cls(**given)

    @property
    def timestamp_ms(self) -> int | None:
        """Milliseconds since 1970. Raises :class:`ConfigError` for what is no time."""
        if self.timestamp is None or isinstance(self.timestamp, int):
            return self.timestamp
        try:
            moment = datetime.fromisoformat(self.timestamp)
        except ValueError as error:
            raise ConfigError(
                f"timestamp {self.timestamp!r} is no ISO date such as 2024-07-01T12:00:00."
            ) from error
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)

    def pairs(self) -> tuple[tuple[str, Any], ...]:
        """What differs from the defaults, for a locator."""
        values = {
            "measurement": self.measurement,
            "obs_value_filter": self.obs_value_filter,
            "var_value_filter": self.var_value_filter,
            "timestamp": self.timestamp_ms,
            "obs_names": self.obs_names,
            "var_names": self.var_names,
        }
        return tuple((name, value) for name, value in values.items() if value is not None)


def is_soma_url(url: str | os.PathLike[str]) -> bool:
    """Whether the name alone says that this is an experiment."""
    text = os.fspath(url)
    return text.startswith((_SCHEME, "tiledb://")) or is_census(text)


def soma_locator(
    url: str | os.PathLike[str],
    layer: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    options: SomaOptions | Mapping[str, Any] | None = None,
) -> StoreLocator:
    """The locator of an experiment; nothing is opened but the Census' list of releases.

    Parameters
    ----------
    url
        A path or URI, with or without ``soma://`` before it, or ``census:organism``, optionally
        with a release: ``census:homo_sapiens@2024-07-01``.
    storage_options
        TileDB's configuration, without secrets.

    Raises
    ------
    ConfigError
        A secret, an unknown option or an unknown release.
    """
    chosen = SomaOptions.of(options)
    config = dict(storage_options or {})
    text = os.fspath(url)
    refuse_secret_config(text, config)
    if is_census(text):
        text = census_uri(text, chosen.census_version)
        config = {**CENSUS_OPTIONS, **config}
    target = normalise_url(text.removeprefix(_SCHEME))
    return StoreLocator(
        kind="soma",
        url=target,
        layer=layer,
        storage_options=tuple(freeze(config)),
        options=chosen.pairs(),
    )
