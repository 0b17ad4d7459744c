"""Which cells an epoch draws, and how often: settings that need no store to be checked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from scvi_dist.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Which training cells an epoch draws; without any setting, each cell once.

    Sizes of groups (categories, stores) are exact in every epoch, each cell's expectation is its
    share, and the draw of an epoch follows from seed and epoch alone.
    """

    balance_by: str | None = None
    """Column of obs: every category is drawn equally often, cells of rare ones repeatedly."""
    cap_by: str | None = None
    """Column of obs: at most ``cap`` cells of each category an epoch, others in other epochs."""
    cap: int | None = None
    """Cells of a category, for ``cap_by``."""
    weight_by: str | None = None
    """Column of obs with numbers from 0 on: cells are drawn in proportion to it."""
    store_shares: tuple[float, ...] | None = None
    """For a list of stores: part of an epoch's cells that comes of each, in their order."""
    epoch_cells: int | None = None
    """Cells of an epoch; ``None``: as many as train, or as the cap leaves."""

    def __post_init__(self) -> None:
        if (self.cap_by is None) != (self.cap is None):
            raise ConfigError("cap_by (a column of obs) and cap (cells) belong together.")
        if self.cap is not None and self.cap < 1:
            raise ConfigError(f"cap must be at least 1, seen {self.cap}.")
        if self.epoch_cells is not None and self.epoch_cells < 1:
            raise ConfigError(f"epoch_cells must be at least 1, seen {self.epoch_cells}.")
        if self.balance_by and self.cap_by and self.balance_by != self.cap_by:
            raise ConfigError(
                f"balance_by ({self.balance_by!r}) and cap_by ({self.cap_by!r}) must name the same "
                "column where both are given."
            )
        shares = self.store_shares
        if shares is not None and (not shares or min(shares) < 0 or sum(shares) <= 0):
            raise ConfigError(
                f"store_shares must be numbers from 0 on, not all 0; seen {list(shares)}."
            )

    @property
    def is_plain(self) -> bool:
        """Whether an epoch is simply each cell once."""
        return self == SamplingConfig()

    @property
    def category_key(self) -> str | None:
        """The column whose categories are counted."""
        return self.balance_by or self.cap_by

    @staticmethod
    def of(given: "SamplingConfig | Mapping[str, Any] | None") -> "SamplingConfig":
        """From a config or a mapping of its fields.

        Raises
        ------
        ConfigError
            For a field that does not exist, with the nearest one.
        """
        if isinstance(given, SamplingConfig):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"sampling must be a SamplingConfig or a mapping, got {type(given).__name__}."
            )
        values = dict(given or {})
        names = [field.name for field in fields(SamplingConfig)]
        for name in values:
            if name not in names:
                raise ConfigError(f"sampling has no {name!r}; {did_you_mean(name, names)}")
        if values.get("store_shares") is not None:
            values["store_shares"] = tuple(values["store_shares"])
        return SamplingConfig(**values)
