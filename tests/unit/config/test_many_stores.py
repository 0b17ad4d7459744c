"""A run file may name many stores, or one modality of a store."""

import warnings
from pathlib import Path

import pytest

from scvi_dist.config import open_run_store, parse_run
from scvi_dist.errors import ConfigError, SchemaMismatch
from scvi_dist.testing import small_atlas, write_atlas

RUN = """
data:
  store: {store}
  batch_key: batch
  {more}
output: {{dir: out}}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of 20 genes each, of which 17 are in both."""
    folder = tmp_path_factory.mktemp("shards")
    adata = small_atlas(n=12)
    write_atlas(adata[:, :20].copy(), folder / "a.h5ad")
    write_atlas(adata[:, 3:].copy(), folder / "b.zarr")
    return folder


@pytest.mark.parametrize("pattern", ["{}", "{}/*.*", "[{}/a.h5ad, {}/b.zarr]"])
@pytest.mark.parametrize(("join", "n_genes"), [("inner", 17), ("outer", 23)])
def test_many_stores(shards: Path, pattern: str, join: str, n_genes: int) -> None:
    config = parse_run(RUN.format(store=pattern.format(shards, shards), more=f"join: {join}"))
    with open_run_store(config) as store:
        assert store.shape == (24, n_genes)


def test_differing_genes_without_a_join_are_refused(shards: Path) -> None:
    config = parse_run(RUN.format(store=shards, more="split: {train_size: 0.5}"))
    with pytest.raises(SchemaMismatch, match="join='inner' keeps the 17"):
        open_run_store(config)
    with pytest.raises(ConfigError, match=r"data\.join: expected one of 'inner', 'outer'"):
        parse_run(RUN.format(store=shards, more="join: outr"))


def test_a_modality(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mudata

        one, two = small_atlas(n=9, g=9), small_atlas(n=7)
        path = tmp_path / "multi.h5mu"
        mudata.MuData({"gex": two, "more": one}).write(path)
    for more, shape in (
        ("kind: h5mu", (7, 23)),
        ("modality: more", (9, 9)),
        ("unpaired: drop\n  modality: more", (7, 9)),
    ):
        key = "more" if "more" in more else "gex"
        text = RUN.format(store=path, more=more).replace(
            "batch_key: batch", f"batch_key: {key}:batch"
        )
        with open_run_store(parse_run(text)) as store:
            assert store.shape == shape
