"""The loaders of one run as a Lightning data module."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from scvi_dist.dataloaders.budget import LABELLED_SHARE, TRAIN_SHARE, cells_budget
from scvi_dist.dataloaders.engine import EngineChoice, choose_engine
from scvi_dist.dataloaders.epoch_plan import EpochPlan
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.dataloaders.labelled_plan import make_labelled_plan
from scvi_dist.dataloaders.loader import LoaderConfig, PlanLoader, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import RowSet
from scvi_dist.dataloaders.sampling import sample_rows
from scvi_dist.dataloaders.sampling_config import SamplingConfig
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
    labelled
        Have a second stream, of minibatches of labelled cells, beside training and validation
        cells; ``None``: none.
    sampling
        Which training cells an epoch draws, and how often; ``None``: each once.
    plan_world
        Number of ranks that the windows are made for, where it may change during a run: the
        fewest. ``None``: all there are.

    Attributes
    ----------
    labelled_loader, labelled_validation_loader
        A minibatch of labelled cells for each step of training and validation; ``None`` where
        there are no such cells.
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
        labelled: LabelledConfig | None = None,
        sampling: SamplingConfig | None = None,
        plan_world: int | None = None,
    ) -> None:
        super().__init__()
        self._source = opened(source)
        self._config = config or LoaderConfig()
        self._rank, self._world = rank, world
        self._plan_world = plan_world or world
        self._batch_size, self._seed = batch_size, seed
        self._labelled = labelled
        self.engine = engine or choose_engine(
            self._config,
            self._source.store.locator,
            under_ray=False,
            n_cpus=os.cpu_count() or 1,
            world=world,
        )
        train = split.train
        if sampling is not None:
            train = sample_rows(train, self._source.store, sampling, seed)
        self.train_plan = (
            ReadPlan(train, train_plan)
            if train_plan is not None
            else self._plan(train, TRAIN_SHARE, shuffle=True)
        )
        self.train_loader = self._loader(self.train_plan, self._main_part(TRAIN_SHARE))
        self.labelled_loader = self._labels_of(self.train_plan, TRAIN_SHARE)
        self.validation_loader = self._in_order(split.validation)
        self.labelled_validation_loader = (
            self._labels_of(self._plan(split.validation, 1 - TRAIN_SHARE, False), 1 - TRAIN_SHARE)
            if split.validation.n
            else None
        )
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
        loaders = (
            self.train_loader,
            self.labelled_loader,
            self.validation_loader,
            self.labelled_validation_loader,
            self.test_loader,
        )
        for loader in loaders:
            if loader is not None:
                loader.close()

    @property
    def labelled_facts(self) -> dict[str, Any]:
        """What the second stream depends on; JSON values, empty without one."""
        loader = self.labelled_loader
        return {} if loader is None else {"labelled": loader.plan.facts()}

    @property
    def wait_s(self) -> float:
        """Seconds that training has spent waiting for minibatches."""
        both = (self.train_loader, self.labelled_loader)
        return sum(loader.wait_s for loader in both if loader is not None)

    def _in_order(self, rows: RowSet) -> PlanLoader | None:
        if not rows.n:
            return None
        share = 1 - TRAIN_SHARE
        return self._loader(self._plan(rows, share, shuffle=False), self._main_part(share))

    def _labels_of(self, plan: ReadPlan, share: float) -> PlanLoader | None:
        """The labelled cells among a plan's, as many steps as it has."""
        if self._labelled is None:
            return None
        config = replace(self._part(share * LABELLED_SHARE), readers=1)
        labelled = make_labelled_plan(plan, self._source, self._labelled, config, self._plan_world)
        if labelled is None:
            return None
        # Its cells are looked at when the first stream reads them.
        source = self._source.unchecked()
        return self._loader(labelled, config, source)

    def _plan(self, rows: RowSet, share: float, shuffle: bool) -> ReadPlan:
        return make_plan(
            rows,
            self._source.store,
            self._main_part(share),
            batch_size=self._batch_size,
            world=self._plan_world,
            shuffle=shuffle,
            seed=self._seed,
            dense_bytes=self._source.schema.dense_bytes_per_cell,
        )

    def _loader(
        self, plan: EpochPlan, config: LoaderConfig, source: OpenSource | None = None
    ) -> PlanLoader:
        make = LOADERS[self.engine.engine]
        return make(plan, source or self._source, config, self._rank, self._world)

    def _main_part(self, share: float) -> LoaderConfig:
        """The share of the budget without what labelled cells take of it."""
        return self._part(share if self._labelled is None else share * (1 - LABELLED_SHARE))

    def _part(self, share: float) -> LoaderConfig:
        budget = cells_budget(self._config.budget_bytes, self._source.store.n_obs)
        return replace(self._config, budget_bytes=max(1, int(budget * share)))


def _ray_loader(
    plan: EpochPlan, source: OpenSource, config: LoaderConfig, rank: int, world: int
) -> PlanLoader:
    from scvi_dist.dataloaders.ray_loader import RayLoader

    return RayLoader(plan, source, config, rank, world)


LOADERS: dict[str, Callable[[EpochPlan, OpenSource, LoaderConfig, int, int], PlanLoader]] = {
    "local": LocalLoader,
    "ray": _ray_loader,
}
"""Engine -> its loader."""
