"""Results come in the caller's order, from every store, whatever the batches and blocks."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_dist.analysis.elbo import elbo, marginal_ll, reconstruction_error
from scvi_dist.analysis.expression import ExpressionOptions, normalized_expression
from scvi_dist.analysis.latent import latent_representation
from scvi_dist.analysis.output import Output, fingerprint, module_digest
from scvi_dist.analysis.parameters import latent_library_size, likelihood_parameters
from scvi_dist.analysis.predictive import PredictiveOptions, posterior_predictive_sample
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import LoaderCells, StoreCells, StreamConfig, collect
from scvi_dist.data import Store, open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.writing.sharded_writer import ShardedWriter
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import BadCounts, ConfigError, OutputExists
from scvi_dist.module import VAE
from tests.unit.analysis.conftest import KINDS, N_CELLS, SETUP, make_adata, make_module

ORDERS = {
    "reversed": list(range(N_CELLS))[::-1],
    "repeated": [50, 2, 50, 50, 7, 2],
    "negative": [-1, 0, -N_CELLS],
    "mask": np.arange(N_CELLS) % 3 == 0,
}

Analysis = Callable[[VAE, StoreCells], np.ndarray]


def _parameters(module: VAE, cells: StoreCells) -> np.ndarray:
    values = likelihood_parameters(module, cells, n_samples=2)
    return np.moveaxis(np.concatenate(list(values.values()), axis=2), 1, 0)


def _samples(module: VAE, cells: StoreCells) -> np.ndarray:
    return posterior_predictive_sample(module, cells, PredictiveOptions(n_samples=2)).todense()


ANALYSES: dict[str, Analysis] = {
    "latent mean": lambda m, c: latent_representation(m, c),
    "latent draw": lambda m, c: latent_representation(m, c, give_mean=False),
    "posterior": lambda m, c: np.hstack(latent_representation(m, c, return_dist=True)),
    "elbo": lambda m, c: elbo(m, c, return_mean=False).numpy(),
    "reconstruction": lambda m, c: reconstruction_error(m, c, return_mean=False)[
        "reconstruction_loss"
    ].numpy(),
    "marginal likelihood": lambda m, c: marginal_ll(
        m, c, n_mc_samples=3, n_mc_samples_per_pass=2, return_mean=False
    ).numpy(),
    "expression": lambda m, c: normalized_expression(
        m, c, ExpressionOptions(n_samples=3, transform_batch=(0, 2), library_size=100.0)
    ),
    "all expression": lambda m, c: np.moveaxis(
        normalized_expression(m, c, ExpressionOptions(n_samples=3, return_mean=False)), 1, 0
    ),
    "parameters": _parameters,
    "library": lambda m, c: latent_library_size(m, c, give_mean=False),
    "predictive": _samples,
}
"""Name -> results ``[n, ...]``."""


def _cells(source: OpenSource, indices: Any = None, **config: Any) -> StoreCells:
    return StoreCells(source, Selection(source.store.n_obs, indices), StreamConfig(**config))


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("order", ORDERS)
def test_rows_come_in_the_order_asked_for(
    module: VAE, source: OpenSource, name: str, order: str
) -> None:
    """A cell's result is the same whoever is asked for beside it; but repeats of noise differ."""
    whole = ANALYSES[name](module, _cells(source))
    indices = ORDERS[order]
    part = ANALYSES[name](module, _cells(source, indices, batch_size=7))
    rows = Selection(N_CELLS, indices).rows()
    assert len(part) == len(rows)
    _, first = np.unique(rows, return_index=True)
    np.testing.assert_allclose(part[first], whole[rows[first]], rtol=2e-4, atol=1e-5)
    if order == "repeated" and name in ("latent draw", "elbo", "predictive", "all expression"):
        assert not np.array_equal(part[0], part[2])
        assert not np.array_equal(part[2], part[3])


@pytest.mark.parametrize("name", ANALYSES)
def test_batches_and_blocks_change_nothing(module: VAE, source: OpenSource, name: str) -> None:
    order = np.random.default_rng(1).permutation(N_CELLS)
    results = [
        ANALYSES[name](module, _cells(source, order, batch_size=size, budget_bytes=budget))
        for size, budget in ((128, 1 << 20), (7, 900), (N_CELLS - 1, 1))
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_store_gives_the_same(
    module: VAE, source: OpenSource, stores: dict[str, Store], kind: str
) -> None:
    there = OpenSource(stores[kind], fit_schema(stores[kind], SETUP))
    indices = [40, 3, 3, N_CELLS - 1, 0, 17]
    for name in ("latent mean", "predictive"):
        expected = ANALYSES[name](module, _cells(source, indices))
        np.testing.assert_allclose(
            ANALYSES[name](module, _cells(there, indices, batch_size=4)), expected, rtol=1e-5
        )


def test_genes_in_another_order_are_put_in_the_schema_s_order(
    module: VAE, source: OpenSource, adata: anndata.AnnData
) -> None:
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    there = OpenSource(open_store(shuffled), source.schema)
    np.testing.assert_allclose(
        latent_representation(module, _cells(there)),
        latent_representation(module, _cells(source)),
        rtol=1e-5,
        atol=1e-7,
    )


def test_noise_follows_the_seed_and_leaves_torch_alone(module: VAE, source: OpenSource) -> None:
    for name in ("latent draw", "predictive"):
        before = torch.random.get_rng_state()
        first = ANALYSES[name](module, _cells(source, seed=1))
        assert torch.equal(torch.random.get_rng_state(), before)
        np.testing.assert_array_equal(ANALYSES[name](module, _cells(source, seed=1)), first)
        assert not np.array_equal(ANALYSES[name](module, _cells(source, seed=2)), first)


def test_the_module_is_left_as_it_was(source: OpenSource) -> None:
    module = make_module().train()
    noise = module.noise
    before = {k: v.clone() for k, v in module.state_dict().items()}
    elbo(module, _cells(source))
    assert module.training
    assert module.noise is noise
    assert module.z_encoder.noise is noise
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not torch.is_inference_mode_enabled()


def test_an_error_on_the_way_is_raised_and_leaves_the_module_as_it_was(
    source: OpenSource,
) -> None:
    module = make_module().train()

    def fail(group: Any) -> Any:
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        collect(module, _cells(source), fail)
    assert module.training
    assert not torch.is_inference_mode_enabled()


def test_a_users_loader_gives_what_the_store_gives(module: VAE, source: OpenSource) -> None:
    groups = list(_cells(source, batch_size=20).groups())
    loader = [{key: g.tensors[key] for key in g.tensors} for g in groups]
    np.testing.assert_allclose(
        latent_representation(module, LoaderCells(loader)),
        latent_representation(module, _cells(source)),
        rtol=1e-5,
        atol=1e-7,
    )
    assert elbo(module, LoaderCells(loader)).shape == ()
    assert elbo(module, LoaderCells(loader), return_mean=False).shape == (N_CELLS,)
    with pytest.raises(ConfigError, match="in a store"):
        latent_representation(module, LoaderCells(loader), out=Output(url="memory://x"))


def test_means_are_over_cells(module: VAE, source: OpenSource) -> None:
    cells = _cells(source, batch_size=7)
    assert elbo(module, cells).item() == pytest.approx(
        elbo(module, cells, return_mean=False).mean().item(), rel=1e-5
    )
    error = reconstruction_error(module, cells)
    each = reconstruction_error(module, cells, return_mean=False)
    assert set(error) == set(each)
    for name, value in error.items():
        assert value.item() == pytest.approx(each[name].mean().item(), rel=1e-5)
    mean = marginal_ll(module, cells, n_mc_samples=3)
    assert isinstance(mean, float)
    each_ll = marginal_ll(module, cells, n_mc_samples=3, return_mean=False)
    assert mean == pytest.approx(each_ll.mean().item(), rel=1e-5)


# Results that go to a store


def _to_store(name: str) -> Callable[[VAE, StoreCells, Output], str]:
    return {
        "latent": lambda m, c, o: latent_representation(m, c, out=o),
        "posterior": lambda m, c, o: latent_representation(m, c, return_dist=True, out=o),
        "expression": lambda m, c, o: normalized_expression(
            m, c, ExpressionOptions(genes=np.array([7, 2])), out=o
        ),
        "predictive": lambda m, c, o: posterior_predictive_sample(
            m, c, PredictiveOptions(genes=np.array([7, 2])), out=o
        ),
        "library": lambda m, c, o: latent_library_size(m, c, give_mean=False, out=o),
    }[name]


IN_MEMORY: dict[str, Callable[[VAE, StoreCells], dict[str, np.ndarray]]] = {
    "latent": lambda m, c: {"X_latent": latent_representation(m, c)},
    "posterior": lambda m, c: dict(
        zip(
            ("X_latent_qzm", "X_latent_qzv"),
            latent_representation(m, c, return_dist=True),
            strict=True,
        )
    ),
    "expression": lambda m, c: {
        "X": normalized_expression(m, c, ExpressionOptions(genes=np.array([7, 2])))
    },
    "predictive": lambda m, c: {
        "X": posterior_predictive_sample(m, c, PredictiveOptions(genes=np.array([7, 2]))).todense()
    },
    "library": lambda m, c: {"library_size": latent_library_size(m, c, give_mean=False)},
}


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if hasattr(x, "toarray") else np.asarray(x)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_store_holds_what_memory_would_and_goes_on_after_a_crash(
    module: VAE,
    source: OpenSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    order = np.random.default_rng(3).permutation(N_CELLS)[:55]
    cells = _cells(source, order, batch_size=8)
    width = {"latent": 4, "posterior": 8, "expression": 2, "predictive": 2, "library": 1}[name]
    output = Output(url=tmp_path / "out.zarr", budget_bytes=4 * width * 20)
    written: list[tuple[int, int]] = []
    write = ShardedWriter.write

    def write_or_die(self: ShardedWriter, start: int, stop: int, **results: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append((start, stop))
        write(self, start, stop, **results)

    with monkeypatch.context() as patch:
        patch.setattr(ShardedWriter, "write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            _to_store(name)(module, cells, output)
    done = list(written)

    def write_again(self: ShardedWriter, start: int, stop: int, **results: Any) -> None:
        written.append((start, stop))
        write(self, start, stop, **results)

    with monkeypatch.context() as patch:
        patch.setattr(ShardedWriter, "write", write_again)
        url = _to_store(name)(module, cells, output)
        again = _to_store(name)(module, cells, output)
    assert again == url
    assert not set(done) & set(written[len(done) :])
    assert sorted(written)[-1][1] == len(order)
    assert len(written) == len(set(written))

    result = anndata.read_zarr(url)
    assert result.obs_names.tolist() == [f"cell{i}" for i in order]
    for key, expected in IN_MEMORY[name](module, cells).items():
        if key == "X":
            assert result.var_names.tolist() == ["gene7", "gene2"]
            np.testing.assert_allclose(_dense(result.X), expected, rtol=1e-4)
        else:
            np.testing.assert_allclose(result.obsm[key], expected, rtol=1e-4, atol=1e-6)


def test_another_computation_does_not_continue_an_output(
    source: OpenSource, tmp_path: Path
) -> None:
    module, output = make_module(), Output(url=tmp_path / "out.zarr")
    latent_representation(module, _cells(source), out=output)
    changed = make_module(n_layers=2)
    for other, cells in (
        (changed, _cells(source)),
        (module, _cells(source, [3, 2, 1])),
        (module, _cells(source, seed=5)),
    ):
        with pytest.raises(OutputExists, match="fingerprint"):
            latent_representation(other, cells, out=output)
    with pytest.raises(OutputExists, match="fingerprint"):
        latent_representation(module, _cells(source), give_mean=False, out=output)
    replaced = Output(url=output.url, overwrite=True)
    url = latent_representation(module, _cells(source, [3, 2, 1]), out=replaced)
    assert anndata.read_zarr(url).obs_names.tolist() == ["cell3", "cell2", "cell1"]


def test_a_fingerprint_does_not_depend_on_how_cells_are_fed(source: OpenSource) -> None:
    module = make_module()
    a = fingerprint(module, _cells(source, batch_size=3), {"w": 1})
    assert a == fingerprint(module, _cells(source, batch_size=50, budget_bytes=9), {"w": 1})
    assert a != fingerprint(module, _cells(source), {"w": 2})
    digest = module_digest(module)
    with torch.no_grad():
        next(module.parameters())[0] += 1e-6
    assert module_digest(module) != digest


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """Peak memory of writing results is that of a block and a shard."""
    module = make_module()
    peaks = []
    for n in (1_000, 8_000):
        make_adata(n).write_h5ad(tmp_path / f"{n}.h5ad")
        store = open_store(tmp_path / f"{n}.h5ad")
        there = OpenSource(store, fit_schema(store, SETUP))
        cells = _cells(there, batch_size=250, budget_bytes=100_000)
        output = Output(url=tmp_path / f"{n}.zarr", budget_bytes=4 * 12 * 500)
        _ = there.coded_obs
        tracemalloc.start()
        normalized_expression(module, cells, ExpressionOptions(), out=output)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        store.close()
    # The names of the cells are the one thing that is held for all: about 100 bytes a cell.
    assert peaks[1] - peaks[0] < 7_000 * 250
    assert 7_000 * 4 * 12 * 4 > 7_000 * 250 or peaks[1] < 2 * peaks[0] + 7_000 * 250


def test_a_matrix_in_memory_is_seen_and_not_copied(adata: anndata.AnnData) -> None:
    held = anndata.AnnData(sp.csr_matrix(adata.X), obs=adata.obs.copy(), var=adata.var.copy())
    there = OpenSource(open_store(held), fit_schema(open_store(held), SETUP))
    # As long as the stretch from the first row to the last, but no stretch.
    repeated = np.r_[0, 0, np.arange(2, N_CELLS)]
    for indices in (None, np.arange(5, N_CELLS), repeated):
        cells = _cells(there, indices)
        for block in cells.blocks():
            np.testing.assert_array_equal(block.counts.to_dense(), held.X[block.rows].toarray())
            assert np.shares_memory(block.counts.data, held.X.data) == (indices is not repeated)


def test_counts_that_are_none_are_refused(module: VAE, source: OpenSource) -> None:
    broken = make_adata().to_memory()
    broken.X = broken.X.toarray()
    for value in (np.nan, -0.5):
        broken.X[33, 4] = value
        there = OpenSource(open_store(broken), source.schema)
        with pytest.raises(BadCounts, match=r"row 33.*gene4"):
            latent_representation(module, _cells(there))
    unchecked = OpenSource(open_store(broken), source.schema, check_counts=False)
    assert np.isfinite(latent_representation(module, _cells(unchecked))).all()
