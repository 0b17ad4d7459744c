"""An experiment behind the S3 protocol, read and written by TileDB's own client."""

import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scvi_dist.data import open_store
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.errors import ConfigError, OutputExists, StoreError
from scvi_dist.testing import dense_of, small_atlas

pytestmark = pytest.mark.integration

URL = "s3://cells/atlas.soma"


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    """TileDB options for a server in a process of its own; credentials are in the environment.

    tiledbsoma holds Python's lock while it waits for an answer, so that a server in this process
    could not give one.
    """
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        try:
            _wait_for(server, port)
            client = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1"
            )
            client.create_bucket(Bucket="cells")
            yield {
                "vfs.s3.endpoint_override": f"127.0.0.1:{port}",
                "vfs.s3.scheme": "http",
                "vfs.s3.use_virtual_addressing": "false",
                "vfs.s3.region": "us-east-1",
                "vfs.s3.connect_max_tries": "2",
            }
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Until the server takes connections."""
    limit = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < limit, "the S3 server does not answer"


def test_what_is_written_to_s3_is_read_from_it(options: dict[str, str]) -> None:
    adata = small_atlas()
    write_soma(open_store(adata), URL, layers=("counts",), storage_options=options)
    with pytest.raises(OutputExists, match=r"s3://cells/atlas\.soma"):
        write_soma(open_store(adata), URL, overwrite=True, storage_options=options)
    store = open_store(f"soma://{URL}", storage_options=options)
    locator = pickle.loads(pickle.dumps(store.locator))
    assert "testing" not in repr(locator.fsspec_options())
    with locator.open() as again:
        assert again.digest() == store.digest()
        rows = np.array([50, 3, 4, 5, 31])
        block = again.read_rows_at(rows, np.array([20, 3]))
        np.testing.assert_array_equal(block.to_dense(), dense_of(adata)[rows][:, [20, 3]])
        assert again.read_obs(["batch"])["batch"].tolist() == adata.obs["batch"].tolist()
        np.testing.assert_array_equal(
            again.read_obsm("proteins", [(7, 20)]), adata.obsm["proteins"].to_numpy()[7:20]
        )
        assert again.obs_names(0, 2).tolist() == ["cell-0", "cell-1"]
    assert open_store(store, layer="counts").digest() != store.digest()


def test_what_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"s3://cells/nothing\.soma"):
        open_store("soma://s3://cells/nothing.soma", storage_options=options)
    with pytest.raises(ConfigError, match="looks like a secret"):
        open_store(f"soma://{URL}", storage_options=options | {"vfs.s3.aws_access_key_id": "x"})
