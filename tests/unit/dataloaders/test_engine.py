"""Which engine reads, and that the reason is a sentence that names the numbers."""

import pytest

from scvi_dist.data.store import StoreLocator
from scvi_dist.dataloaders.engine import choose_engine
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.errors import ConfigError

LOCAL = StoreLocator(kind="h5ad", url="/data/atlas.h5ad")
REMOTE = StoreLocator(kind="zarr", url="s3://bucket/atlas.zarr")
MEMORY = StoreLocator(kind="memory", url="ram://1")
VIEW_OF_MEMORY = StoreLocator(kind="subset", url="ram://1", parts=(MEMORY,))
SHARDS = StoreLocator(kind="collection", url="s3://bucket", parts=(REMOTE, REMOTE))

CASES = [
    # engine asked for, store, under Ray, CPUs, ranks -> engine, words of the reason
    ("auto", LOCAL, False, 64, 1, "local", "one process"),
    ("auto", LOCAL, True, 8, 2, "ray", "8 CPUs and streams to 2 ranks"),
    ("auto", LOCAL, True, 3, 2, "ray", "3 CPUs"),
    ("auto", LOCAL, True, 2, 2, "local", "of 2 CPUs 2 train, which leaves 0"),
    ("auto", LOCAL, True, 1, 2, "local", "leaves 0"),
    ("auto", REMOTE, True, 2, 2, "ray", "2 CPUs"),
    ("auto", SHARDS, True, 2, 2, "ray", "2 CPUs"),
    ("auto", MEMORY, True, 64, 2, "local", "memory"),
    ("auto", VIEW_OF_MEMORY, True, 64, 2, "local", "memory"),
    ("local", REMOTE, True, 64, 2, "local", "configuration"),
    ("ray", LOCAL, False, 1, 1, "ray", "configuration"),
]


@pytest.mark.parametrize(("asked", "store", "under_ray", "n_cpus", "world", "got", "words"), CASES)
def test_the_choice_and_its_reason(asked, store, under_ray, n_cpus, world, got, words):
    config = LoaderConfig(engine=asked)
    choice = choose_engine(config, store, under_ray=under_ray, n_cpus=n_cpus, world=world)
    assert choice.engine == got
    assert words in choice.reason
    assert choice.reason.endswith(".")


def test_a_reader_that_needs_more_cpus_is_counted():
    config = LoaderConfig(reader_cpus=2)
    choices = [
        choose_engine(config, LOCAL, under_ray=True, n_cpus=n, world=2).engine for n in (3, 4)
    ]
    assert choices == ["local", "ray"]


@pytest.mark.parametrize("store", [MEMORY, VIEW_OF_MEMORY])
def test_ray_cannot_read_this_processs_memory(store):
    with pytest.raises(ConfigError, match="write_zarr"):
        choose_engine(LoaderConfig(engine="ray"), store, under_ray=True, n_cpus=8, world=1)
