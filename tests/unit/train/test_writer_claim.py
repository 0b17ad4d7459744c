"""Who was given up writes nothing any more."""

from pathlib import Path

import pytest

from scvi_dist.errors import CheckpointError
from scvi_dist.train.writer_claim import WriterClaim


def test_the_last_claim_counts(tmp_path: Path) -> None:
    first = WriterClaim(tmp_path)
    first.verify()
    second = WriterClaim(tmp_path)
    second.verify()
    with pytest.raises(CheckpointError, match="Another process trains in"):
        first.verify()
    second.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["writer"]


def test_a_folder_that_went_away_is_told(tmp_path: Path) -> None:
    claim = WriterClaim(tmp_path / "run")
    (tmp_path / "run" / "writer").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read.*removed"):
        claim.verify()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        WriterClaim(tmp_path / "file" / "run")
