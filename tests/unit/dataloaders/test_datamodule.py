"""The loaders of a run, as Lightning gets them."""

import os
import subprocess
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.engine import EngineChoice
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig
from scvi_dist.dataloaders.rows import all_members
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.dataloaders.split import SplitConfig, split_rows
from scvi_dist.errors import CheckpointError

SPLIT = split_rows(613, SplitConfig(train_size=0.7, validation_size=0.2), 50)


def rows_of(loader) -> np.ndarray:
    return np.concatenate([batch.rows for batch in loader])


def test_each_loader_hands_out_its_part_of_the_split(cells):
    data = CellDataModule(cells.source, SPLIT, 50, seed=3)
    train = rows_of(data.train_dataloader())
    assert set(train) == set(all_members(SPLIT.train))
    assert (np.diff(train) < 0).any()
    np.testing.assert_array_equal(rows_of(data.val_dataloader()), all_members(SPLIT.validation))
    np.testing.assert_array_equal(rows_of(data.test_dataloader()), all_members(SPLIT.test))
    assert data.train_plan.config.seed == 3
    assert data.engine.engine == "local"
    data.close()


def test_no_validation_cells_is_no_validation_loader(cells):
    data = CellDataModule(cells.source, split_rows(613, SplitConfig(train_size=1.0), 50), 50)
    assert data.validation_loader is data.test_loader is None
    assert data.val_dataloader() == data.test_dataloader() == []


def test_sampled_cells_train_and_only_training_is_sampled(cells):
    sampling = SamplingConfig(balance_by="kind", epoch_cells=400)
    kinds = cells.adata.obs["kind"].to_numpy()
    data = CellDataModule(cells.source, SPLIT, 50, sampling=sampling)
    epochs = [rows_of(data.train_loader) for _ in range(2)]
    for train in epochs:
        assert np.unique(kinds[train], return_counts=True)[1].tolist() == [200, 200]
        assert set(train) <= set(all_members(SPLIT.train))
    assert sorted(epochs[0]) != sorted(epochs[1])
    np.testing.assert_array_equal(rows_of(data.validation_loader), all_members(SPLIT.validation))
    # The same cells on two ranks, and after a restart in the middle of an epoch.
    ranks = [
        CellDataModule(cells.source, SPLIT, 50, sampling=sampling, rank=rank, world=2)
        for rank in range(2)
    ]
    both = np.concatenate([rows_of(rank.train_loader) for rank in ranks])
    np.testing.assert_array_equal(np.sort(both), np.sort(epochs[0]))
    again = CellDataModule(cells.source, SPLIT, 50, sampling=sampling)
    again.start_at(1, 150)
    np.testing.assert_array_equal(rows_of(again.train_loader), epochs[1][150:])
    state = data.state_dict()
    with pytest.raises(CheckpointError, match="rows"):
        CellDataModule(cells.source, SPLIT, 50).load_state_dict(state)


def test_the_budget_is_shared(cells):
    config = LoaderConfig(budget_bytes=10**6)
    data = CellDataModule(cells.source, SPLIT, 50, config=config)
    budgets = [data.train_loader.config.budget_bytes, data.validation_loader.config.budget_bytes]
    assert sum(budgets) <= 10**6
    needed = sum(
        loader.plan.memory_bytes(cells.source.store.bytes_per_cell, 1)
        for loader in (data.train_loader, data.validation_loader)
    )
    assert needed <= 10**6 + 4 * (613 // 64 + 1)


def test_epoch_position_and_state_are_the_training_loaders(cells):
    data = CellDataModule(cells.source, SPLIT, 50)
    data.set_epoch(2)
    whole = rows_of(data.train_loader)
    position = data.train_plan.position_of(3)
    data.start_at(2, position)
    state = data.state_dict()
    np.testing.assert_array_equal(rows_of(data.train_loader), whole[position:])
    other = CellDataModule(cells.source, SPLIT, 50, rank=0, world=1)
    other.load_state_dict(state)
    np.testing.assert_array_equal(rows_of(other.train_loader), whole[position:])


def test_a_plan_is_taken_over_from_another_run(cells):
    plan = PlanConfig(batch_size=50, window_cells=100, block_rows=7, seed=1)
    data = CellDataModule(cells.source, SPLIT, 50, train_plan=plan)
    assert data.train_plan.config == plan


def test_the_engine_is_what_was_chosen(cells):
    choice = EngineChoice("local", "the caller says so.")
    assert CellDataModule(cells.source, SPLIT, 50, engine=choice).engine is choice
    assert isinstance(CellDataModule(cells.source, SPLIT, 50).train_loader, LocalLoader)


class Seen(pl.LightningModule):
    """Notes the rows of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_rows: dict[int, list[np.ndarray]] = {}
        self.validation_rows: list[np.ndarray] = []

    def training_step(self, batch, index):
        assert batch["X"].device == self.device
        self.train_rows.setdefault(self.current_epoch, []).append(batch.rows)
        return self.weight * batch["X"].sum()

    def validation_step(self, batch, index):
        self.validation_rows.append(batch.rows)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used")
def test_lightning_trains_on_it(cells):
    data, seen = CellDataModule(cells.source, SPLIT, 50), Seen()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(seen, datamodule=data)
    epochs = [np.concatenate(rows) for rows in seen.train_rows.values()]
    assert len(epochs) == 2
    for rows in epochs:
        np.testing.assert_array_equal(np.sort(rows), all_members(SPLIT.train))
    assert (epochs[0] != epochs[1]).any()
    validated = np.concatenate(seen.validation_rows)
    np.testing.assert_array_equal(validated, np.tile(all_members(SPLIT.validation), 2))


def test_only_the_data_module_needs_lightning_and_only_the_ray_engine_ray():
    code = (
        "import sys\n"
        "import scvi_dist.dataloaders.read_plan\n"
        "assert 'torch' not in sys.modules, 'the plan is pure'\n"
        "import scvi_dist.dataloaders.local_loader, scvi_dist.dataloaders.ann_dataloader\n"
        "import scvi_dist.dataloaders.engine, scvi_dist.dataloaders.split\n"
        "heavy = {'ray', 'mlflow', 'lightning', 'dask', 'tiledbsoma', 'numba', 'h5py', 'zarr',"
        " 'anndata', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
