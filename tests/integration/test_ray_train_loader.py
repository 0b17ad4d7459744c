"""The Ray engine inside Ray Train's workers, where its readers need CPUs that the workers leave."""

import warnings

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import CellSource

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WORLD, EPOCHS = 2, 2


@pytest.fixture
def source(tmp_path) -> CellSource:
    x_ng = np.random.default_rng(0).poisson(1, (700, 30)).astype(np.float32)
    x_ng[:, 0] += 1
    ad.AnnData(sparse.csr_matrix(x_ng)).write_h5ad(tmp_path / "cells.h5ad")
    store = open_store(tmp_path / "cells.h5ad")
    return CellSource(store.locator, fit_schema(store, SetupArgs()))


def test_each_worker_gets_what_the_local_engine_gives(source, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

    plan = ReadPlan(AllRows(700), PlanConfig(batch_size=40, window_cells=200))
    config = LoaderConfig(readers=1, wait_limit_s=120)

    def train_loop() -> None:
        import ray.train

        from scvi_dist.dataloaders.ray_loader import RayLoader

        context = ray.train.get_context()
        rank = context.get_world_rank()
        loader = RayLoader(plan, source, config, rank, context.get_world_size())
        cells, starts = [], []
        for _ in range(EPOCHS):
            cells += [(batch.rows.tolist(), batch.x.data.tolist()) for batch in loader]
            starts.append(loader.start_s)
        np.save(tmp_path / f"rows-{rank}.npy", np.concatenate([rows for rows, _ in cells]))
        np.save(tmp_path / f"data-{rank}.npy", np.concatenate([data for _, data in cells]))
        np.save(tmp_path / f"starts-{rank}.npy", starts)

    trainer = TorchTrainer(
        train_loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=WORLD, resources_per_worker={"CPU": 1.5}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray"), name="loaders"),
    )
    result = trainer.fit()
    assert result.error is None
    for rank in range(WORLD):
        local = LocalLoader(plan, source, config, rank, WORLD)
        batches = [batch for _ in range(EPOCHS) for batch in local]
        rows = np.concatenate([batch.rows for batch in batches])
        data = np.concatenate([batch.x.data.numpy() for batch in batches])
        np.testing.assert_array_equal(np.load(tmp_path / f"rows-{rank}.npy"), rows)
        np.testing.assert_array_equal(np.load(tmp_path / f"data-{rank}.npy"), data)
        # The first epoch waits for reader processes to start; the next ones find them there.
        first, second = np.load(tmp_path / f"starts-{rank}.npy")
        print(f"rank {rank}: first minibatch after {first:.2f} s, of epoch 1 after {second:.2f} s")
        assert second < first < config.wait_limit_s
