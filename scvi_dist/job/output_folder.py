"""The folder that a run writes to: claimed once, continued, never replaced unasked."""

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from scvi_dist.config import RunConfig, dump_run, run_tree
from scvi_dist.errors import OutputExists

VERSION = 1

LOCK = "job.lock"

STAGES = ("model", "evaluation", "registration", "latent", "predictions", "figures")
"""What a run makes, in order."""

OWN_ENTRIES = (
    "run.yaml",
    "plan.json",
    "environment.json",
    "logs",
    "job.json",
    "summary.json",
    "model",
    "checkpoints",
    "writer",
    "ray",
    "tracking",
    "latent.zarr",
    "predictions.zarr",
    "figures",
    "data",
)
"""What a run may put into its folder, and ``overwrite`` may remove."""

FREE_KEYS = (
    "train.workers",
    "train.ray",
    "train.accelerator",
    "train.devices",
    "train.checkpoint_every_n_steps",
    "train.checkpoint_every_s",
    "train.checkpoint_within_s",
    "train.keep_checkpoints",
    "train.log_every_n_steps",
    "train.loader.engine",
    "train.loader.n_threads",
    "train.loader.readers",
    "train.loader.reader_cpus",
    "train.loader.reader_resources",
    "train.loader.reader_labels",
    "train.loader.object_store_bytes",
    "train.loader.outage_limit_s",
    "train.loader.wait_limit_s",
    "tracking",
    "output",
)
"""Keys (and sections) that a run may be continued with other values of: they change neither which
cells are trained on nor in which order."""


@dataclass(slots=True)
class JobState:
    """How far a run is; kept as ``job.json``."""

    facts: dict[str, Any]
    """Dotted key -> value, of all that decides the result."""
    store_digest: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage that is done -> what is to be remembered of it."""
    version: int = VERSION


class OutputFolder:
    """The claimed folder of one run; claim it with :meth:`claim`, give it back with ``close``."""

    def __init__(self, path: Path, state: JobState, lock: BinaryIO, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        """Whether nothing of this run was there before."""
        self._state = state
        self._lock = lock

    @classmethod
    def claim(cls, config: RunConfig, store_digest: str) -> "OutputFolder":
        """The folder ``output.dir`` for this run, and for this process alone.

        Raises
        ------
        OutputExists
            Another run, or something else, is in the folder; or a process works in it.
        """
        path = Path(config.output.dir).absolute()
        facts = run_facts(config)
        found = read_state(path)
        problem = clash(path, found, facts, store_digest)
        if problem is not None and not (config.output.overwrite and found is not None):
            raise OutputExists(problem)
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        # A run that is to be replaced is replaced once: what continues is left.
        is_done = found is not None and set(wanted_stages(config)) <= set(found.stages)
        if problem is not None or (is_done and config.output.overwrite):
            _remove_own(path)
            found = None
        folder = cls(path, found or JobState(facts, store_digest), lock, is_new=found is None)
        if found is None:
            (path / "run.yaml").write_text(dump_run(config), encoding="utf-8")
            folder._save()
        return folder

    @property
    def checkpoints_exist(self) -> bool:
        """Whether training began."""
        return (self.path / "checkpoints").is_dir()

    @property
    def has_undelivered(self) -> bool:
        """Whether something waits for MLflow to be reached."""
        return any((self.path / "tracking").glob("undelivered-*.jsonl"))

    def is_complete(self, config: RunConfig) -> bool:
        """Whether every stage that the config wants is done."""
        return set(wanted_stages(config)) <= set(self._state.stages)

    def remembered(self, stage: str) -> dict[str, Any] | None:
        """What was noted of a stage that is done; None if it is not."""
        return self._state.stages.get(stage)

    def done(self, stage: str, notes: Mapping[str, Any] | None = None) -> None:
        """Note that a stage is done; on disk on return."""
        assert stage in STAGES, stage
        self._state.stages[stage] = dict(notes or {})
        self._save()

    def write_facts(self, plan_json: str, environment_json: str) -> None:
        """Write ``plan.json`` and ``environment.json``: what goes on now, and with what."""
        _replace(self.path / "plan.json", plan_json)
        _replace(self.path / "environment.json", environment_json)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``."""
        target = self.path / "summary.json"
        _replace(target, json.dumps(summary, indent=1, default=str))
        return target

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.close()

    def _save(self) -> None:
        _replace(self.path / "job.json", json.dumps(asdict(self._state), indent=1, default=str))


def wanted_stages(config: RunConfig) -> list[str]:
    """The stages that a run goes through."""
    optional = {"registration": config.tracking.enabled, **config.makes}
    return [stage for stage in STAGES if optional.get(stage, True)]


def run_facts(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, of every key that the result depends on."""
    facts: dict[str, Any] = {}

    def walk(tree: Any, path: str) -> None:
        if path in FREE_KEYS:
            return
        if isinstance(tree, Mapping) and tree:
            for key, value in tree.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            # As JSON gives it back.
            facts[path] = json.loads(json.dumps(tree, default=str))

    walk(run_tree(config), "")
    return facts


def read_state(path: Path) -> JobState | None:
    """How far the run in a folder is; None if there is no run in it."""
    try:
        content = json.loads((path / "job.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if content.get("version") != VERSION:
        raise OutputExists(
            f"{path} holds a run of another release (version {content.get('version')}, expected "
            f"{VERSION}). Choose another output.dir."
        )
    return JobState(**content)


def clash(
    path: Path, found: JobState | None, facts: Mapping[str, Any], store_digest: str
) -> str | None:
    """Why this run may not use a folder; None if it may."""
    choices = "Choose another output.dir, or replace it with output.overwrite=true."
    if found is None:
        if not path.exists() or (path.is_dir() and {p.name for p in path.iterdir()} <= {LOCK}):
            return None
        return f"{path} exists and holds no run of scvi-dist. Choose another output.dir."
    differ = sorted(k for k in {*facts, *found.facts} if facts.get(k) != found.facts.get(k))
    if differ:
        listed = "; ".join(f"{k}: {found.facts.get(k)!r}, now {facts.get(k)!r}" for k in differ[:4])
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        return f"{path} holds another run ({listed}{more}). {choices}"
    if store_digest != found.store_digest:
        return f"{path} holds a run on the same store before it was changed. {choices}"
    return None


def _lock(path: Path) -> BinaryIO:
    handle = (path / LOCK).open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise OutputExists(
            f"another process is running in {path}. Wait for it, or choose another output.dir."
        ) from None
    return handle


def _remove_own(path: Path) -> None:
    for name in OWN_ENTRIES:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _replace(target: Path, text: str) -> None:
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
