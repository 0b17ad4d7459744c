"""Library noise goes to a run's files, and nothing of it stays behind in this process."""

import logging
import warnings
from pathlib import Path

import pytest

from scvi_dist.tracking.log_files import library_log, only_in_files, rank_log


@pytest.fixture
def chatty() -> logging.Logger:
    logger = logging.getLogger("chatty.library")
    logger.setLevel(logging.WARNING)
    return logger


def test_lines_and_warnings_are_kept(
    tmp_path: Path, chatty: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    path = tmp_path / "logs" / "rank-0.log"
    with library_log(path):
        chatty.warning("a line")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("careful", UserWarning, stacklevel=1)
    chatty.warning("too late")
    text = path.read_text()
    assert "WARNING chatty.library: a line" in text
    assert "UserWarning: careful" in text
    assert shown == ["careful"]
    assert "too late" not in text


def test_a_quiet_library_is_heard_in_the_file_only(
    tmp_path: Path, chatty: logging.Logger, capsys
) -> None:
    screen = logging.StreamHandler()
    chatty.addHandler(screen)
    before = (list(chatty.handlers), chatty.level, chatty.propagate)
    path = tmp_path / "rank-1.log"
    with library_log(path), only_in_files("chatty.library"):
        chatty.info("GPU available: no")
    assert (chatty.handlers, chatty.level, chatty.propagate) == before
    chatty.removeHandler(screen)
    assert "INFO chatty.library: GPU available: no" in path.read_text()
    assert "GPU" not in capsys.readouterr().err


def test_without_a_file_a_quiet_library_is_silent(chatty: logging.Logger, capsys) -> None:
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    for handler in files:
        logging.getLogger().removeHandler(handler)
    try:
        with library_log(None), only_in_files("chatty.library"):
            assert not chatty.isEnabledFor(logging.WARNING)
    finally:
        for handler in files:
            logging.getLogger().addHandler(handler)


def test_a_folder_that_this_host_does_not_see_is_not_made(tmp_path: Path) -> None:
    assert rank_log(None, 0) is None
    assert rank_log(tmp_path / "elsewhere", 1) is None
    assert rank_log(tmp_path, 2) == tmp_path / "logs" / "rank-2.log"


def test_nothing_stays_behind(tmp_path: Path) -> None:
    shown, handlers = warnings.showwarning, list(logging.getLogger().handlers)
    with pytest.raises(RuntimeError), library_log(tmp_path / "x.log"):
        raise RuntimeError
    assert warnings.showwarning is shown
    assert logging.getLogger().handlers == handlers
