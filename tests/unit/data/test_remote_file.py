"""A remote file is read by HDF5 under HDF5's one lock, whatever else goes on in the process."""

import gc
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from scvi_dist.data.on_disk.chunks import Piece
from scvi_dist.data.remote.objects import RemoteFile

h5py = pytest.importorskip("h5py")


class Network:
    """An object whose bytes come from another thread, which makes much garbage on the way.

    Before each answer an open file of h5py is left to the collector.
    """

    batch_bytes = 1 << 20

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, path.read_bytes()

    def fetch(self, pieces: Sequence[Piece]) -> list[memoryview]:
        loop: list[object] = [h5py.File(self.path, "r")]
        loop.append(loop)
        del loop
        thread = threading.Thread(target=lambda: [[i] for i in range(20_000)], daemon=True)
        thread.start()
        thread.join(timeout=20)
        if thread.is_alive():
            raise TimeoutError("the network's thread waits for HDF5's lock")
        return [memoryview(self.content)[p.start : p.stop] for p in pieces]


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """The collector at work every few objects."""
    usual = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    yield
    gc.set_threshold(*usual)


@pytest.mark.usefixtures("eager_collector")
def test_garbage_of_hdf5_never_stops_the_network(tmp_path: Path) -> None:
    values = np.arange(400_000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values
    network = Network(tmp_path / "a.h5")
    with h5py.File(RemoteFile(network, len(network.content)), "r") as file:
        assert np.array_equal(file["x"][:], values)
    assert gc.isenabled()
    gc.collect()
