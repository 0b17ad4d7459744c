"""The folder of one analysis: claimed once, continued by the same command, never replaced."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scvi_dist.errors import OutputExists

VERSION = 1
STATE = "analysis.json"
PARTIAL = ".partial"


class AnalysisFolder:
    """What an analysis has made so far, and of which stages it knows that they are done.

    Raises
    ------
    OutputExists
        The folder holds something else: other files, or the results of another analysis.
    """

    def __init__(self, path: str, facts: Mapping[str, Any]) -> None:
        self.path = Path(path).absolute()
        self._facts = json.loads(json.dumps(dict(facts), default=str))
        self._stages: dict[str, Any] = self._known()
        self.path.mkdir(parents=True, exist_ok=True)
        self._save()

    def _known(self) -> dict[str, Any]:
        if self.path.is_file():
            raise OutputExists(f"--out {self.path} is a file; give a folder that is empty or new.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return {}
        try:
            known = json.loads((self.path / STATE).read_text(encoding="utf-8"))
            facts, stages = known["facts"], known["stages"]
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputExists(
                f"--out {self.path} holds something else than an analysis of scvi-dist. Give a "
                "folder that is empty or new."
            ) from None
        names = [*dict.fromkeys([*facts, *self._facts])]
        other = [name for name in names if facts.get(name) != self._facts.get(name)]
        if known.get("version") != VERSION or other:
            was = ", ".join(f"{name} {facts.get(name)!r}" for name in other[:3]) or "another format"
            now = ", ".join(f"{name} {self._facts.get(name)!r}" for name in other[:3])
            raise OutputExists(
                f"--out {self.path} holds another analysis: it has {was}; now {now}. Give another "
                "folder, or delete that one."
            )
        return dict(stages)

    @property
    def sums(self) -> Path:
        """Where partial sums are kept while they are needed."""
        return self.path / PARTIAL

    def remembered(self, stage: str) -> Any:
        """What was noted of a stage that is done; None if it is not."""
        return self._stages.get(stage)

    def done(self, stage: str, notes: Any) -> None:
        """Note that a stage is done."""
        self._stages[stage] = notes
        self._save()

    def forget_sums(self) -> None:
        """Delete partial sums, which nobody needs any more."""
        shutil.rmtree(self.sums, ignore_errors=True)

    def _save(self) -> None:
        content = {"version": VERSION, "facts": self._facts, "stages": self._stages}
        part = self.path / f".{STATE}.part"
        part.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        part.replace(self.path / STATE)
