"""Small training jobs on cells in memory."""

from collections.abc import Callable, Iterator
from functools import partial

import anndata as ad
import pytest
import torch
import training_jobs

from scvi_dist.train.fit_job import FitJob

MakeJob = Callable[..., FitJob]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by waiting for threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_cells() -> ad.AnnData:
    """Counts of a few cells from two batches."""
    return training_jobs.toy_cells()


@pytest.fixture
def make_job(toy_cells: ad.AnnData) -> MakeJob:
    """Makes a job of 5 steps an epoch: 126 training and 14 validation cells."""
    return partial(training_jobs.toy_job, toy_cells)
