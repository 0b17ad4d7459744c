"""The loaders of one run as a Lightning data module."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from scvi_dist.dataloaders.budget import TRAIN_SHARE
from scvi_dist.dataloaders.engine import EngineChoice, choose_engine
from scvi_dist.dataloaders.loader import LoaderConfig, PlanLoader, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import RowSet
from scvi_dist.dataloaders.source import CellSource, OpenSource, opened
from scvi_dist.dataloaders.split import Split


class CellDataModule(pl.LightningDataModule):
    """One rank's training, validation and test minibatches of a run.

    Parameters
    ----------
    source
        The store and the schema.
    split
        Which cells train, validate and test.
    batch_size
        Global batch size.
    seed
        Of the order of the training cells.
    config
        Engine, budget, threads and limits.
    rank, world
        This rank's number, and the number of ranks.
    engine
        What :func:`choose_engine` chose; ``None``: chosen here, for a run without Ray Train.
    train_plan
        The plan settings of a run to be continued, also with another number of ranks; ``None``:
        as the budget suggests.
    """

    def __init__(
        self,
        source: CellSource | OpenSource,
        split: Split,
        batch_size: int,
        seed: int = 0,
        config: LoaderConfig | None = None,
        rank: int = 0,
        world: int = 1,
        engine: EngineChoice | None = None,
        train_plan: PlanConfig | None = None,
    ) -> None:
        super().__init__()
        self._source = opened(source)
        self._config = config or LoaderConfig()
        self._rank, self._world = rank, world
        self._batch_size, self._seed = batch_size, seed
        self.engine = engine or choose_engine(
            self._config,
            self._source.store.locator,
            under_ray=False,
            n_cpus=os.cpu_count() or 1,
            world=world,
        )
        self.train_plan = (
            ReadPlan(split.train, train_plan)
            if train_plan is not None
            else self._plan(split.train, TRAIN_SHARE, shuffle=True)
        )
        self.train_loader = self._loader(self.train_plan, TRAIN_SHARE)
        self.validation_loader = self._in_order(split.validation)
        self.test_loader = self._in_order(split.test)

    def train_dataloader(self) -> PlanLoader:
        return self.train_loader

    def val_dataloader(self) -> PlanLoader | list[PlanLoader]:
        # Lightning takes an empty list for "nothing to validate", and None for a mistake.
        return self.validation_loader or []

    def test_dataloader(self) -> PlanLoader | list[PlanLoader]:
        return self.test_loader or []

    def set_epoch(self, epoch: int) -> None:
        """Let the next training epoch be this one."""
        self.train_loader.set_epoch(epoch)

    def start_at(self, epoch: int, position: int) -> None:
        """Let training go on at a position, in global cells, of an epoch."""
        self.train_loader.start_at(epoch, position)

    def state_dict(self) -> dict[str, Any]:
        return self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_loader.load_state_dict(state_dict)

    def close(self) -> None:
        """Give back what the loaders hold."""
        for loader in (self.train_loader, self.validation_loader, self.test_loader):
            if loader is not None:
                loader.close()

    def _in_order(self, rows: RowSet) -> PlanLoader | None:
        if not rows.n:
            return None
        share = 1 - TRAIN_SHARE
        return self._loader(self._plan(rows, share, shuffle=False), share)

    def _plan(self, rows: RowSet, share: float, shuffle: bool) -> ReadPlan:
        return make_plan(
            rows,
            self._source.store,
            self._part(share),
            batch_size=self._batch_size,
            world=self._world,
            shuffle=shuffle,
            seed=self._seed,
        )

    def _loader(self, plan: ReadPlan, share: float) -> PlanLoader:
        make = LOADERS[self.engine.engine]
        return make(plan, self._source, self._part(share), self._rank, self._world)

    def _part(self, share: float) -> LoaderConfig:
        return replace(self._config, budget_bytes=max(1, int(self._config.budget_bytes * share)))


def _ray_loader(
    plan: ReadPlan, source: OpenSource, config: LoaderConfig, rank: int, world: int
) -> PlanLoader:
    from scvi_dist.dataloaders.ray_loader import RayLoader

    return RayLoader(plan, source, config, rank, world)


LOADERS: dict[str, Callable[[ReadPlan, OpenSource, LoaderConfig, int, int], PlanLoader]] = {
    "local": LocalLoader,
    "ray": _ray_loader,
}
"""Engine -> its loader."""
