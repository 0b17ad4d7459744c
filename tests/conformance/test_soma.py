"""TileDB-SOMA experiments pass the suite, however they were written and however they are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from soma_experiments import scatter

from scvi_dist.data import Range, Store, open_store
from scvi_dist.data.soma import matrix as soma_matrix
from scvi_dist.data.soma import soma_writer
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.data.soma.tiledb_metadata import NotPlain
from scvi_dist.testing import StoreConformance

LAYERS = ("counts", "spliced", "raw")


class TestSoma(StoreConformance):
    """Written by us, in pieces of 20 cells; entries come straight from the files."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _small_pieces(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(soma_writer, "_BLOCK_BYTES", 1000)
            yield

    def make_store(self, adata: Any, folder: Path) -> Store:
        write_soma(open_store(adata), folder / "atlas.soma", layers=LAYERS)
        store = open_store(folder / "atlas.soma")
        assert store._matrix.tiles is not None  # type: ignore[attr-defined]
        return store

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        tiles = store._matrix.tiles  # type: ignore[attr-defined]
        spoilt = 0
        for fragment in tiles._fragments:
            if fragment.bounds[:, 1].max() < keep[0] or fragment.bounds[:, 0].min() >= keep[1]:
                (Path(fragment.folder) / "d1.tdb").write_bytes(b"\xff" * 30)
                spoilt += 1
        return spoilt > 10


class TestSomaByTiledb(StoreConformance):
    """The same, read by TileDB itself."""

    starts_process = False

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _not_plain(cls) -> Iterator[None]:
        def refuse(*_: object) -> None:
            raise NotPlain("for this test")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(soma_matrix, "read_fragments", refuse)
            yield

    def make_store(self, adata: Any, folder: Path) -> Store:
        write_soma(open_store(adata), folder / "atlas.soma", layers=LAYERS)
        return open_store(folder / "atlas.soma")


class TestSomaScattered(StoreConformance):
    """Identifiers with gaps, rows in any order, pieces that overlap; another name for soma://."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        write_soma(open_store(adata), folder / "whole.soma", layers=LAYERS)
        scatter(folder / "whole.soma", folder / "atlas.soma")
        return open_store(f"soma://{folder}/atlas.soma")
