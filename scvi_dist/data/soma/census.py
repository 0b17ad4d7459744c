"""Where the CELLxGENE Census is: releases, their URIs, and how they are read without an account.

Source: https://chanzuckerberg.github.io/cellxgene-census/cellxgene_census_aws_open_data.html
"""

import json
import re
from typing import Any

from scvi_dist.data.filesystem import open_file
from scvi_dist.errors import ConfigError, did_you_mean

CENSUS_RELEASES = "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json"
"""Every release by date, and the aliases ``stable``, ``latest``, ``V1``, ``V2``, ..."""

CENSUS_OPTIONS = {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true"}
"""The bucket is public; requests must not be signed."""

CENSUS_ORGANISMS = (
    "homo_sapiens",
    "mus_musculus",
    "callithrix_jacchus",
    "macaca_mulatta",
    "pan_troglodytes",
)
"""Experiments of a release (the last three since 2025-11-08)."""

_PREFIX = "census:"
_BUCKET = "s3://cellxgene-census-public-us-west-2/cell-census"
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def is_census(url: str) -> bool:
    """Whether this is the short name of an experiment of the Census."""
    return url.startswith(_PREFIX)


def census_uri(name: str, version: str = "stable", releases_url: str = CENSUS_RELEASES) -> str:
    """The URI of an organism's experiment.

    Parameters
    ----------
    name
        ``census:organism`` or ``census:organism@release``.
    version
        Release where the name has none: a date, which is used as it is, or an alias, for which
        the list of releases is read.
    releases_url
        Where that list is.

    Raises
    ------
    ConfigError
        An unknown organism or alias.
    """
    organism, _, release = name.removeprefix(_PREFIX).partition("@")
    organism = organism.strip().lower().replace(" ", "_")
    if organism not in CENSUS_ORGANISMS:
        raise ConfigError(
            f"{name}: the Census has no organism {organism!r}; "
            f"{did_you_mean(organism, CENSUS_ORGANISMS)}"
        )
    release = release or version
    soma = f"{_BUCKET}/{release}/soma" if _DATE.match(release) else _alias(release, releases_url)
    return f"{soma}/census_data/{organism}"


def _alias(alias: str, releases_url: str) -> str:
    """URI of the release that an alias stands for now."""
    with open_file(releases_url) as file:
        releases: dict[str, Any] = json.loads(file.read())
    found, seen = releases.get(alias), {alias}
    while isinstance(found, str) and found not in seen:
        seen.add(found)
        found = releases.get(found)
    if not isinstance(found, dict):
        raise ConfigError(
            f"the Census has no release {alias!r}; {did_you_mean(alias, releases)} The list is at "
            f"{releases_url}."
        )
    return str(found["soma"]["uri"]).rstrip("/")
