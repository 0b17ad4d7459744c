"""What the commands ``scvi-dist store …`` do: open, work with a bar, say what came of it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scvi_dist.console import Display, Update
from scvi_dist.data import Store, open_store
from scvi_dist.data.writing.convert import Converted, CopyConfig, convert_store
from scvi_dist.data.writing.writer import OnProgress
from scvi_dist.errors import ConfigError, OutputExists
from scvi_dist.job.plan import in_bytes

if TYPE_CHECKING:
    from scvi_dist.data.highly_variable import Flavor

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class StoreSource:
    """Which cells and genes a command works on."""

    urls: tuple[str, ...]
    """A store, or several that are used as one."""
    layer: str | None = None
    obs_filter: str | None = None
    genes: str | None = None
    """Names with commas between them, or ``@FILE`` with one name a line."""
    options: tuple[str, ...] = ()
    """Storage options as ``key=value``, values as YAML writes them."""

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options as a mapping; dotted keys are mappings in mappings."""
        return parse_options(self.options)

    def open(self) -> Store:
        """The store."""
        return open_store(
            self.urls[0] if len(self.urls) == 1 else list(self.urls),
            layer=self.layer,
            storage_options=self.storage_options or None,
            obs_filter=self.obs_filter,
            genes=gene_names(self.genes),
        )


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs as storage options. Raises :class:`ConfigError`."""
    options: dict[str, Any] = {}
    for pair in given:
        key, mark, text = pair.partition("=")
        if not mark or not key:
            raise ConfigError(f"--option takes key=value, such as anon=true; seen {pair!r}.")
        *path, last = key.split(".")
        inner = options
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = yaml.safe_load(text)
    return options


def gene_names(given: str | None) -> list[str] | None:
    """The genes that ``--genes`` names. Raises :class:`ConfigError`."""
    if given is None:
        return None
    if not given.startswith("@"):
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--genes {given}: the file cannot be read: {error.strerror}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"--genes {given}: the file names no gene.")
    return names


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how a command writes."""

    url: str
    kind: str | None = None
    config: CopyConfig = field(default_factory=CopyConfig)
    overwrite: bool = False
    options: tuple[str, ...] = ()


def convert(source: StoreSource, target: Target, display: Display, name: str) -> None:
    """Copy a store, whole or a part of it, to another kind or layout."""
    with _opened(source, display) as store, _progress(display, name) as (tell, step):
        done = convert_store(
            store,
            target.url,
            kind=target.kind,
            config=target.config,
            overwrite=target.overwrite,
            on_progress=tell,
            storage_options=parse_options(target.options) or None,
        )
        step.say(done.url)
    _say_converted(done, store.shape, display)


def shuffle(
    source: StoreSource,
    target: Target,
    display: Display,
    *,
    seed: int,
    engine: str,
    workers: int,
    memory_gb: float,
) -> None:
    """Write the cells of a store in random order."""
    from scvi_dist.data.writing.shuffle_store import shuffle_store

    if memory_gb <= 0 or workers < 1:
        raise ConfigError(
            f"--memory-gb and --workers must be positive, seen {memory_gb:g} and {workers}."
        )
    if target.kind not in (None, "zarr"):
        raise ConfigError("a shuffled atlas is a Zarr store; there is no other kind.")
    with _opened(source, display) as store, _progress(display, "Shuffling") as (tell, step):
        done = shuffle_store(
            store,
            target.url,
            seed=seed,
            config=target.config,
            engine=engine,
            workers=workers,
            memory_bytes=int(memory_gb * 2**30),
            overwrite=target.overwrite,
            on_progress=tell,
            storage_options=parse_options(target.options) or None,
        )
        step.say(done.url)
    _say_converted(done, store.shape, display)


def validate(source: StoreSource, display: Display, *, digest: str | None, as_json: bool) -> bool:
    """Read all of a store and say what is wrong with it; whether nothing is."""
    from scvi_dist.data.writing.validate import validate_store

    with _opened(source, display) as store, _progress(display, "Reading") as (tell, step):
        found = validate_store(store, digest=digest, on_progress=tell)
        step.say(f"{found.content.n_cells:,} of {found.n_obs:,} cells")
    if as_json:
        print(
            json.dumps(
                {
                    "store": found.url,
                    "layer": found.layer,
                    "digest": found.digest,
                    "valid": found.is_valid,
                    "content": found.content.to_json(),
                    "problems": [
                        {"rows": problem.rows, "what": problem.what} for problem in found.problems
                    ],
                    "notes": found.notes,
                },
                indent=1,
            )
        )
        return found.is_valid
    rows = {
        "store": found.url,
        "cells x genes": f"{found.n_obs:,} x {found.n_vars:,}",
        "counts": f"{found.content.n_entries:,} non-zero, {found.content.total:,.0f} in all",
        "checksum": f"{found.content.checksum:016x} (of the cells, in any order)",
        "digest": found.digest,
    }
    for note in found.notes:
        display.warn(note)
    n = len(found.problems)
    title = "Valid" if found.is_valid else f"Not valid: {n} problem{'s' if n != 1 else ''}"
    told = "\n".join(f"  {problem}" for problem in found.problems)
    display.result(title, rows, then=told)
    return found.is_valid


def hvg(
    source: StoreSource,
    display: Display,
    *,
    n_genes: int,
    batch_key: str | None,
    flavor: "Flavor",
    span: float,
    out: str | None,
) -> None:
    """Choose highly variable genes: their names, or the whole table as CSV."""
    from scvi_dist.data.gene_moments import BlockReading
    from scvi_dist.data.highly_variable import highly_variable_genes

    if out is not None and Path(out).exists():
        raise OutputExists(f"{out} exists. Choose another file, or remove it.")
    with _opened(source, display) as store, _progress(display, "Genes") as (tell, step):
        table = highly_variable_genes(
            store,
            n_top_genes=n_genes,
            flavor=flavor,
            batch_key=batch_key,
            span=span,
            reading=BlockReading(on_progress=tell),
        )
        chosen = table.index[table["highly_variable"]]
        step.say(f"{len(chosen):,} of {len(table):,} chosen")
    if out is None:
        print("\n".join(chosen))
        return
    if out.endswith(".csv"):
        table.to_csv(out, index_label="gene")
    else:
        Path(out).write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    display.note(f"written to {out}")


def _say_converted(done: Converted, shape: tuple[int, int], display: Display) -> None:
    rows = {"store": done.url, "cells x genes": f"{shape[0]:,} x {shape[1]:,}"}
    rows["matrices"] = ", ".join(done.matrices)
    facts = done.content.get("X")
    if facts is not None:
        rows["counts"] = f"{facts.n_entries:,} non-zero, the largest is {facts.largest:g}"
    size = _size_of(done.url)
    if size is not None:
        rows["on disk"] = in_bytes(size)
    if done.lost:
        more = len(done.lost) - _SHOWN
        shown = [*done.lost[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        rows["not copied"] = "\n".join(shown)
    display.result("Written", rows)


def _size_of(url: str) -> int | None:
    """Bytes of a local file or folder."""
    path = Path(url)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def _opened(source: StoreSource, display: Display) -> Iterator[Store]:
    """The store; what its errors say of arguments in Python is said of options."""
    with display.step("Store") as step:
        store = source.open()
        step.say(f"{store.n_obs:,} cells x {store.n_vars:,} genes, {store.locator.redacted_url}")
    try:
        with store:
            yield store
    except OutputExists as error:
        text = str(error).replace("Pass overwrite=True", "Give --overwrite")
        raise OutputExists(text.replace("overwrite=True", "--overwrite")) from error


@contextmanager
def _progress(display: Display, name: str) -> Iterator[tuple[OnProgress, Any]]:
    with display.progress(name) as (update, step):
        yield _in_cells(update), step


def _in_cells(update: Update) -> OnProgress:
    def tell(done: int, total: int) -> None:
        update(done / max(1, total), f"{done:,} of {total:,} cells")

    return tell
