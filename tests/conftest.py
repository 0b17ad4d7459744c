"""What every test may use."""

import os
from pathlib import Path

# One thread, here and in processes that tests start: sums of floats depend on how many take part,
# and runs that must end alike are compared to the last digits. Read when torch is first imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# Examples take as long as the machine lets them; where a change is judged they are always the same.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")

pytest.register_assert_rewrite("scvi_dist.testing")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets and reference fits."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCVI_DIST_TEST_DATA", default))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real data at {folder}; set SCVI_DIST_TEST_DATA to its folder")
    return folder
