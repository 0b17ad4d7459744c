"""Machine code of compiled loops, kept on disk so that many processes may write it at once.

numba's own cache has one index for all signatures of a function. Two processes that compile
different signatures at the same time can leave an index that names the other's code, and the next
process then reads arrays of one type as another: wrong numbers, or a crash. Workers of a training
run start together and do just that. Here each signature has a file of its own, named by what it
is, and nothing is shared. Code also goes stale with every source file that it may have been
compiled from, not only with the one that holds the function.
"""

import hashlib
import os
import pickle
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

_DIGEST = hashlib.sha256
_DIGEST_BYTES = _DIGEST().digest_size


def cached_njit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator as ``numba.njit(cache=True, **options)`` is, whose files processes can share.

    Code goes beside the source or into the user's cache folder. Where neither can be written, each
    process compiles for itself. A function may call compiled functions of its own folder and of
    ``scvi_dist/kernels``: a change elsewhere would not be noticed.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher = njit(**options)(function)
        try:
            kept = FunctionCache(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return dispatcher
        kept._cache_file = CodeFiles(
            Path(kept.cache_path), kept._impl.filename_base, _sources_digest(function)
        )
        dispatcher._cache = kept
        return dispatcher

    return decorate


class CodeFiles:
    """One file per signature, processor and options; never changed, only replaced as a whole.

    Parameters
    ----------
    folder
        Where the files are.
    name
        What their names begin with.
    sources
        Digest of what the code is compiled from: files of another are not read.
    """

    def __init__(self, folder: Path, name: str, sources: str) -> None:
        self._folder, self._name, self._sources = folder, name, sources

    def path(self, key: Any) -> Path:
        """The file of a signature. Sources are not part of the name: old code is replaced."""
        return self._folder / f"{self._name}.{_DIGEST(repr(key).encode()).hexdigest()[:24]}.nbc"

    def load(self, key: Any) -> Any:
        """What was saved for this key; None where that is nothing, or broken, or out of date."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if _DIGEST(body).digest() != digest:
            return None
        stamp, code = pickle.loads(body)
        return pickle.loads(code) if stamp == self._stamp(key) else None

    def save(self, key: Any, code: Any) -> None:
        """Keep it for other processes. What cannot be written is not: this one goes on."""
        body = pickle.dumps((self._stamp(key), dumps(code)), protocol=5)
        path = self.path(key)
        unfinished = path.with_name(f"{path.name}.tmp.{uuid.uuid4().hex[:16]}")
        try:
            unfinished.write_bytes(_DIGEST(body).digest() + body)
            os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget all signatures of the function."""
        for path in self._folder.glob(f"{self._name}.*.nbc"):
            path.unlink(missing_ok=True)

    def _stamp(self, key: Any) -> tuple[str, str, str]:
        return numba.__version__, self._sources, repr(key)


@cache
def _folder_digest(folder: Path) -> str:
    digest = _DIGEST()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources_digest(function: Callable[..., Any]) -> str:
    folders = Path(function.__code__.co_filename).parent, Path(__file__).parent
    return "".join(map(_folder_digest, folders))
