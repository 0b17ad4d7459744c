"""Short names of the Census lead to the URIs of its releases."""

import json
from pathlib import Path
from typing import Any

import pytest

from scvi_dist.data.open import locate
from scvi_dist.data.soma import census
from scvi_dist.data.soma.census import census_uri
from scvi_dist.errors import ConfigError, StoreNotFound

BUCKET = "s3://cellxgene-census-public-us-west-2/cell-census"


@pytest.fixture
def releases(tmp_path: Path) -> str:
    """A list of releases of the form that is published."""

    def release(date: str) -> dict[str, Any]:
        soma = {"uri": f"{BUCKET}/{date}/soma/", "s3_region": "us-west-2"}
        return {"release_build": date, "soma": soma, "flags": {"lts": True}}

    content = {
        "stable": "V2",
        "latest": "2024-07-15",
        "V2": "2024-07-01",
        "lost": "lost",
        "2024-07-01": release("2024-07-01"),
        "2024-07-15": release("2024-07-15"),
    }
    (tmp_path / "release.json").write_text(json.dumps(content))
    return str(tmp_path / "release.json")


def test_aliases_are_followed_to_a_dated_release(releases: str) -> None:
    human = f"{BUCKET}/2024-07-01/soma/census_data/homo_sapiens"
    assert census_uri("census:homo_sapiens", releases_url=releases) == human
    assert census_uri("census:Homo sapiens", "V2", releases) == human
    mouse = f"{BUCKET}/2024-07-15/soma/census_data/mus_musculus"
    assert census_uri("census:mus_musculus@latest", releases_url=releases) == mouse


def test_a_date_is_used_as_it_is() -> None:
    """Nothing is asked of the network."""
    located = locate("census:homo_sapiens", soma={"census_version": "2025-11-08"})
    assert located.kind == "soma"
    assert located.url == f"{BUCKET}/2025-11-08/soma/census_data/homo_sapiens"
    assert located.fsspec_options() == {
        "vfs.s3.region": "us-west-2",
        "vfs.s3.no_sign_request": "true",
    }
    assert located == locate("census:homo_sapiens@2025-11-08")
    private = locate("census:homo_sapiens@2025-11-08", storage_options={"vfs.s3.region": "x"})
    assert private.fsspec_options()["vfs.s3.region"] == "x"


def test_what_does_not_exist(releases: str, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'homo_sapiens'"):
        census_uri("census:homo_sapien@2025-11-08")
    with pytest.raises(ConfigError, match="did you mean 'stable'"):
        census_uri("census:homo_sapiens", "stabl", releases)
    with pytest.raises(ConfigError, match="no release 'lost'"):
        census_uri("census:homo_sapiens", "lost", releases)
    with pytest.raises(StoreNotFound):
        census_uri("census:homo_sapiens", releases_url=f"{releases}.not")
    assert census.CENSUS_RELEASES.endswith("cellxgene-census/v1/release.json")
