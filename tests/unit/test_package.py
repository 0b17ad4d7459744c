"""The public surface, and what importing it costs."""

import json
import subprocess
import sys

import pytest

import scvi_dist

HEAVY = ("ray", "mlflow", "lightning", "dask", "tiledbsoma", "anndata", "zarr", "h5py", "sklearn")

PACKAGES = (
    "criticism",
    "data",
    "dataloaders",
    "distributions",
    "external",
    "model",
    "module",
    "nn",
    "train",
)

LIGHT_MODULES = (
    "scvi_dist",
    "scvi_dist.batch",
    "scvi_dist.cli",
    "scvi_dist.config",
    "scvi_dist.criticism",
    "scvi_dist.data",
    "scvi_dist.dataloaders",
    "scvi_dist.external",
    "scvi_dist.global_settings",
    "scvi_dist.dataloaders.read_plan",
    "scvi_dist.model",
    "scvi_dist.tracking",
)


def test_public_names_are_pinned():
    values = ["REGISTRY_KEYS", "__version__", "open_store", "settings"]
    models = ["SCANVI", "SCVI", "TOTALVI", "CellAssign"]
    assert sorted(scvi_dist.__all__) == sorted([*values, *models, *PACKAGES])
    assert dir(scvi_dist) == sorted(scvi_dist.__all__)


def test_every_public_name_loads():
    for name in scvi_dist.__all__:
        assert getattr(scvi_dist, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'SCVY'"):
        scvi_dist.SCVY  # noqa: B018


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_loads_nothing_heavy(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(json.loads(out.stdout))
    assert module in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_package_loads(package):
    found = getattr(scvi_dist, package)
    needs_more = {"read_10x_h5", "read_10x_mtx"}
    for name in set(found.__all__) - needs_more:
        assert getattr(found, name) is not None
    assert set(found.__all__) <= set(dir(found))
    with pytest.raises(AttributeError, match="'nothing_of_that_name'"):
        found.nothing_of_that_name  # noqa: B018


def test_packages_are_attributes_after_the_import_alone():
    code = "import scvi_dist; scvi_dist.model.SCVI; scvi_dist.data.open_store; print('there')"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout == "there\n"
