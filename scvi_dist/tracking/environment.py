"""What ran: versions, git commit, host. Read when a run starts."""

import getpass
import json
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

NAMED_PACKAGES = ("scvi-dist", "torch", "lightning", "ray", "anndata", "zarr", "numpy")
"""Their versions become tags, which runs can be searched by; the rest goes to a file."""


def run_tags(cwd: Path) -> dict[str, str]:
    """Tags of a new run; MLflow's own names where it has one."""
    tags = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "host": platform.node(),
        "version.python": platform.python_version(),
    }
    with suppress(KeyError, OSError):  # a container may run under a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    for name in NAMED_PACKAGES:
        try:
            tags[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    return tags | git_tags(cwd)


def git_tags(folder: Path) -> dict[str, str]:
    """Commit that is checked out in ``folder``, and whether files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changed))}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment_json() -> str:
    """Python, platform, where this package is, and every installed distribution's version."""
    installed = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    content = {
        "python": sys.version,
        "platform": platform.platform(),
        "scvi_dist": str(Path(__file__).parents[1]),
        "packages": dict(sorted(installed.items(), key=lambda item: item[0].lower())),
    }
    return json.dumps(content, indent=1)
