"""Outages are waited for as long as that can help, and no longer."""

import pytest

from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.patience import LONGEST_WAIT_S, patiently
from scvi_dist.errors import ConfigError, StoreCorrupt, StoreError, StoreUnreachable

REFUSED = StoreUnreachable("forbidden")
REFUSED.may_pass = False


class Outage:
    """A store that fails until a time, on a clock that only waiting moves."""

    def __init__(self, until_s: float, error: StoreError | None = None) -> None:
        self.now_s, self.until_s, self.n = 0.0, until_s, 0
        self.error = error or StoreUnreachable("no answer")
        self.waits: list[float] = []

    def read(self) -> str:
        self.n += 1
        if self.now_s < self.until_s:
            raise self.error
        return "cells"

    def pause(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        self.now_s += wait_s

    def patiently(self, limit_s: float) -> str:
        return patiently(self.read, limit_s, lambda: self.now_s, self.pause)


@pytest.mark.parametrize("until_s", [0, 1, 30, 299])
def test_an_outage_within_the_limit_costs_time_only(until_s: float) -> None:
    outage = Outage(until_s)
    assert outage.patiently(LoaderConfig().outage_limit_s) == "cells"
    assert until_s <= outage.now_s <= until_s + LONGEST_WAIT_S


@pytest.mark.parametrize("limit_s", [0, 5, 300])
def test_a_longer_outage_is_an_error_that_says_how_long(limit_s: float) -> None:
    outage = Outage(limit_s + LONGEST_WAIT_S + 1)
    with pytest.raises(StoreUnreachable, match="no answer") as raised:
        outage.patiently(limit_s)
    assert outage.now_s <= limit_s
    assert raised.value.__notes__[-1].endswith(f"of at most {limit_s} s for the store")


@pytest.mark.parametrize("error", [StoreCorrupt("damaged"), REFUSED], ids=repr)
def test_what_does_not_pass_is_told_at_once(error: StoreError) -> None:
    outage = Outage(1.0, error)
    with pytest.raises(type(error)):
        outage.patiently(300)
    assert outage.n == 1


@pytest.mark.parametrize("bad", [{"outage_limit_s": -1}, {"object_store_bytes": 0}])
def test_limits_that_are_none_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LoaderConfig(**bad)
