"""What is known of an MLflow run, in a small file that outlives every process of the run."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class RunState:
    """Identity of a run; shared by the driver and rank 0 through ``run.json``."""

    folder: Path
    uri: str = ""
    """Redacted; tells whether the file belongs to the server in use."""
    run_id: str = ""
    experiment_id: str = ""
    started_s: float = 0.0
    """Seconds since the epoch."""
    restarts: int = 0
    finished: bool = False
    models: dict[str, str] = field(default_factory=dict)
    """Token of a model that was logged -> its id in MLflow."""

    @property
    def path(self) -> Path:
        return self.folder / "run.json"

    @staticmethod
    def load(folder: str | os.PathLike[str], redacted_uri: str) -> "RunState":
        """The state in ``folder``; a fresh one if there is none or it is of another server."""
        state = RunState(Path(folder), uri=redacted_uri)
        if state.path.exists():
            known = json.loads(state.path.read_text())
            if known["uri"] == redacted_uri:
                return RunState(Path(folder), **known)
        return state

    def save(self) -> None:
        """Replace the file in one step."""
        content = asdict(self)
        del content["folder"]
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1))
        part.replace(self.path)
