"""The whole tree of errors.

Every class is also the builtin a caller would expect, so that ``except ValueError`` keeps working.
A message says what was expected, what was seen, where, and what to do::

    ScviDistError
    ├── ConfigError            (ValueError)         a run file or an argument is wrong
    ├── StoreError             (OSError)            a store cannot be used
    │   ├── StoreNotFound      (FileNotFoundError)
    │   ├── StoreCorrupt       (ValueError)         its content contradicts itself
    │   ├── StoreChanged       (RuntimeError)       it is not the store that was planned for
    │   ├── StoreUnreachable   (ConnectionError)    a service did not answer, or refused to
    │   └── UnsupportedStore   (TypeError)          a format or layout we do not read
    ├── OutputExists           (FileExistsError)    we would have overwritten something
    ├── FieldNotFound          (KeyError)           a column, layer or key is not in the store
    ├── SchemaMismatch         (ValueError)         data and schema disagree
    ├── BadCounts              (ValueError)         X is not a matrix of counts
    ├── PlanError              (ValueError)         rows, steps or ranks do not fit together
    ├── BudgetExceeded         (MemoryError)        it would not fit in the memory allowed
    ├── NotTrained             (RuntimeError)
    ├── TrainingFailed         (RuntimeError)
    ├── CheckpointError        (RuntimeError)
    ├── EngineError            (RuntimeError)       workers or their scheduler cannot be used
    ├── WaitTimeout            (TimeoutError)       a wait reached its limit
    ├── ClusterUnreachable     (ConnectionError)    a Ray cluster did not answer, or refused to
    ├── TrackingError          (RuntimeError)
    ├── UnsafeFile             (ValueError)         a file would run code when read
    └── MissingDependency      (ImportError)
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ScviDistError(Exception):
    """Base of every error that scvi_dist raises on purpose."""


class ConfigError(ScviDistError, ValueError):
    """A run file or an argument is wrong."""


class StoreError(ScviDistError, OSError):
    """A store cannot be used."""


class StoreNotFound(StoreError, FileNotFoundError):
    """Nothing is at that URL."""


class StoreCorrupt(StoreError, ValueError):
    """The content of a store contradicts itself."""


class StoreChanged(StoreError, RuntimeError):
    """The store is not the one that the plan or the checkpoint was made for."""


class StoreUnreachable(StoreError, ConnectionError):
    """The service that holds a store did not answer, or refused to, however often it was asked."""

    may_pass: bool = True
    """Whether it may answer later; not where credentials lack."""


class UnsupportedStore(StoreError, TypeError):
    """The format or layout is one that scvi_dist does not read."""


class OutputExists(ScviDistError, FileExistsError):
    """Something is already where the output should go."""


class FieldNotFound(ScviDistError, KeyError):
    """A column, layer or key is not in the store."""

    # KeyError shows repr(message); ours are sentences.
    __str__ = Exception.__str__


class SchemaMismatch(ScviDistError, ValueError):
    """Data and schema disagree."""


class BadCounts(ScviDistError, ValueError):
    """X is not a matrix of counts."""


class PlanError(ScviDistError, ValueError):
    """Rows, steps or ranks do not fit together."""


class BudgetExceeded(ScviDistError, MemoryError):
    """It would not fit in the memory that is allowed."""


class NotTrained(ScviDistError, RuntimeError):
    """The model has to be trained first."""


class TrainingFailed(ScviDistError, RuntimeError):
    """Training ended without a model."""


class CheckpointError(ScviDistError, RuntimeError):
    """A checkpoint cannot be written, read or resumed from."""


class EngineError(ScviDistError, RuntimeError):
    """Workers, or the scheduler that leads them, are lost or cannot do the work."""


class WaitTimeout(ScviDistError, TimeoutError):
    """A wait reached its limit."""


class ClusterUnreachable(ScviDistError, ConnectionError):
    """A cluster's address does not answer, or refuses who asks."""


class TrackingError(ScviDistError, RuntimeError):
    """The tracking server or store cannot be used."""


class UnsafeFile(ScviDistError, ValueError):
    """A file asks for code to be run when it is read."""


class MissingDependency(ScviDistError, ImportError):
    """An optional package is not installed."""


class WarmUpWarning(UserWarning):
    """Training ends before the divergence from the prior has its full weight."""


class KernelWarning(UserWarning):
    """The fast kernels of a device do not work there: others compute in their place."""


class PrecisionWarning(UserWarning):
    """Arithmetic was asked for that costs quality and gains nothing."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The end of a message: the nearest valid name, or all of them where none is near."""
    names = [str(v) for v in valid]
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there is none to choose from."
    shown = ", ".join(repr(n) for n in sorted(names)[:12])
    return f"choose from: {shown}{', …' if len(names) > 12 else ''}."
