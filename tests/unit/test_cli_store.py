"""``scvi-dist store …``: what is written, what is said of it, what is refused."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

from scvi_dist import cli
from scvi_dist.data import open_store
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.testing import dense_of


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    simulate_atlas(folder, n_cells=300, n_genes=40, n_shards=2)
    return folder


@pytest.fixture(scope="module")
def counts(atlas: Path) -> np.ndarray:
    with open_store(atlas / "atlas.zarr") as store:
        return store.read_rows([(0, 300)]).to_dense()


def run(*arguments: object) -> int:
    return cli.main(["store", *map(str, arguments)])


def test_shards_become_one_store_of_any_kind(
    atlas: Path, counts: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [atlas / "atlas_0.h5ad", atlas / "atlas_1.h5ad"]
    assert run("convert", *shards, tmp_path / "a.zarr", "--layout", "training") == cli.DONE
    told = capsys.readouterr()
    assert "300 x 40" in told.out
    assert "not copied" in told.out
    assert "✓ Copying" in told.err
    assert run("convert", tmp_path / "a.zarr", tmp_path / "b.h5ad") == cli.DONE
    assert run("convert", tmp_path / "b.h5ad", tmp_path / "c.soma") == cli.DONE
    assert run("convert", tmp_path / "c.soma", tmp_path / "d.zarr") == cli.DONE
    for found in (anndata.read_h5ad(tmp_path / "b.h5ad"), anndata.read_zarr(tmp_path / "d.zarr")):
        np.testing.assert_array_equal(dense_of(found), counts)
        assert list(found.layers) == []


def test_shuffle_and_validate(
    atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.zarr"
    shuffle = ("shuffle", atlas / "atlas.zarr", out, "--no-ray", "--seed", "2")
    assert run(*shuffle) == cli.DONE
    assert run(*shuffle) == cli.DONE  # Nothing is left to do.
    assert run(*shuffle[:-1], "3") == cli.USAGE
    assert "Give --overwrite" in capsys.readouterr().err
    found = []
    for path in (atlas / "atlas.zarr", out):
        assert run("validate", path, "--json") == cli.DONE
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["content"] == found[1]["content"]
    assert found[0]["digest"] != found[1]["digest"]
    assert run("validate", out, "--digest", found[1]["digest"]) == cli.DONE
    assert "Valid" in capsys.readouterr().out
    chunk = out / "X" / "data" / "c" / "0"
    raw = chunk.read_bytes()
    chunk.write_bytes(raw[:20] + b"\0\0" + raw[22:])
    assert run("validate", out) == 1
    told = capsys.readouterr().out
    assert "Not valid: 1 problem" in told
    assert "  rows 0 … " in told


def test_subset(atlas: Path, counts: np.ndarray, tmp_path: Path) -> None:
    names = tmp_path / "genes.txt"
    names.write_text("gene_00007\n\ngene_00002\n")
    where = "batch == 'batch_0'"
    out = tmp_path / "some.h5ad"
    arguments = ("subset", atlas / "atlas.zarr", out, "--genes", f"@{names}", "--filter", where)
    assert run(*arguments) == cli.DONE
    with open_store(atlas / "atlas.zarr") as store:
        rows = (store.read_obs(["batch"])["batch"] == "batch_0").to_numpy()
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(dense_of(found), counts[rows][:, [7, 2]])


def test_hvg(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skmisc")
    assert run("hvg", atlas / "atlas.zarr", "-n", "5") == cli.DONE
    names = capsys.readouterr().out.split()
    assert len(names) == 5
    out = tmp_path / "genes.txt"
    assert run("hvg", atlas / "atlas.zarr", "-n", "5", "--out", out) == cli.DONE
    assert out.read_text().split() == names
    assert run("hvg", atlas / "atlas.zarr", "-n", "5", "--out", out) == cli.USAGE


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("convert", "{atlas}/atlas.zar", "{out}/a.zarr"), "did you mean 'atlas.zarr'"),
        (("convert", "{atlas}/atlas.zarr", "{out}/a.txt"), "end it with .h5ad"),
        (("convert", "{atlas}/atlas.zarr", "{atlas}/atlas_0.h5ad"), "Give --overwrite"),
        (("convert", "{atlas}/atlas.zarr", "{out}/a.zarr", "--layer", "x"), "no layer 'x'"),
        (("convert", "{atlas}/atlas.zarr", "{out}/a.zarr", "--option", "anon"), "key=value"),
        (
            ("convert", "{atlas}/atlas.zarr", "{out}/a.zarr", "--option", "scvi_dist.atempts=3"),
            "did you mean 'attempts'",
        ),
        (("subset", "{atlas}/atlas.zarr", "{out}/a.zarr"), "give --genes or --filter"),
        (
            ("subset", "{atlas}/atlas.zarr", "{out}/a.zarr", "--genes", "@{out}/no"),
            "cannot be read",
        ),
        (
            ("subset", "{atlas}/atlas.zarr", "{out}/a.zarr", "--filter", "batc == 'x'"),
            "did you mean 'batch'",
        ),
        (("shuffle", "{atlas}/atlas.zarr", "{out}/a.zarr", "--workers", "0"), "must be positive"),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: tuple[str, ...],
    told: str,
    atlas: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [part.format(atlas=atlas, out=tmp_path) for part in arguments]
    assert run(*given) == cli.USAGE
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "a.zarr").exists()
