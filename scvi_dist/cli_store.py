"""The commands ``scvi-dist store …``: their options, and the way to what they do."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from scvi_dist import cli_help
from scvi_dist.cli_options import filter_option, json_option, storage_options

if TYPE_CHECKING:
    from scvi_dist.console import Display
    from scvi_dist.job.store_jobs import StoreSource, Target

Command = Callable[[argparse.Namespace, "Display"], int]
MakeParser = Callable[..., argparse.ArgumentParser]
AddCommon = Callable[[argparse.ArgumentParser, Command], None]

DONE, INVALID = 0, 1


def add_store_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    make_parser: MakeParser,
    add_common: AddCommon,
) -> None:
    """All of ``scvi-dist store``."""
    store = make_parser(
        commands.add_parser,
        name="store",
        help="look at stores of cells, copy, shuffle and check them",
        description=cli_help.STORE,
    )
    store.set_defaults(command=None, parser=store)
    inner = store.add_subparsers(title="commands", metavar="COMMAND")
    for name, (text, description, epilog, add_options, command) in COMMANDS.items():
        parser = make_parser(
            inner.add_parser, name=name, help=text, description=description, epilog=epilog
        )
        add_options(parser)
        add_common(parser, command)


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="+", metavar="URL", help="h5ad file, Zarr or SOMA store")
    parser.add_argument("--layer", help="a layer instead of X; 'raw' for raw.X")
    storage_options(parser)
    json_option(parser, "the description")


def _convert_options(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    _target(parser)
    _choice(parser)
    _layout(parser, "anndata")
    _written(parser)


def _subset_options(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    _target(parser)
    _choice(parser)
    parser.add_argument(
        "--genes", metavar="NAMES", help="gene names with commas between, or @FILE, one a line"
    )
    filter_option(parser, "keep")
    _layout(parser, "anndata")
    _written(parser)


def _shuffle_options(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    parser.add_argument("target", metavar="DST", help="Zarr store to write")
    _choice(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the order (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="tasks at once (%(default)s)")
    parser.add_argument(
        "--memory-gb", type=float, default=2.0, help="of all tasks together (%(default)s)"
    )
    parser.add_argument("--no-ray", action="store_true", help="threads instead of Ray tasks")
    _layout(parser, "training")
    _written(parser)


def _validate_options(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    _choice(parser)
    parser.add_argument("--digest", help="what the store's digest has to be")
    storage_options(parser)
    json_option(parser, "what was found")


def _hvg_options(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    _choice(parser)
    parser.add_argument(
        "-n", "--n-genes", type=int, default=2000, help="genes to choose (%(default)s)"
    )
    parser.add_argument("--batch-key", help="column of obs; genes are ranked in each batch")
    parser.add_argument(
        "--flavor",
        default="seurat_v3",
        choices=("seurat_v3", "seurat_v3_paper"),
        help="how the ranks of several batches are put together (%(default)s)",
    )
    parser.add_argument(
        "--span", type=float, default=0.3, help="share of genes in a local fit (%(default)s)"
    )
    filter_option(parser, "look at")
    parser.add_argument(
        "--out", metavar="FILE", help="names to a file; with .csv the whole table of genes"
    )
    storage_options(parser)


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", metavar="SRC", help="h5ad file, Zarr or SOMA store; several are one"
    )


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DST", help="what to write: ….h5ad, ….zarr or ….soma")
    parser.add_argument("--kind", choices=("h5ad", "zarr", "soma"), help="where DST does not tell")


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", help="only this matrix: a layer, or 'raw' for raw.X")


def _layout(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--layout",
        default=default,
        choices=("anndata", "training"),
        help="types as they are, or the smallest that hold the counts (%(default)s)",
    )
    parser.add_argument(
        "--chunk-rows", type=int, default=64, help="rows decoded at least (%(default)s)"
    )
    parser.add_argument(
        "--codec", default="lz4", choices=("lz4", "zstd"), help="fast, or small (%(default)s)"
    )


def _written(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    storage_options(parser)


def _info(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.data import describe_store, open_store
    from scvi_dist.job.store_jobs import parse_options
    from scvi_dist.job.store_text import description_json, description_text

    source = options.url[0] if len(options.url) == 1 else options.url
    remote = parse_options(options.option) or None
    with open_store(source, layer=options.layer, storage_options=remote) as store:
        described = describe_store(store)
    print(description_json(described) if options.json else description_text(described))
    return DONE


def _convert(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import store_jobs

    store_jobs.convert(_source_of(options), _target_of(options), display, "Copying")
    return DONE


def _shuffle(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import store_jobs

    store_jobs.shuffle(
        _source_of(options),
        _target_of(options),
        display,
        seed=options.seed,
        engine="threads" if options.no_ray else "ray",
        workers=options.workers,
        memory_gb=options.memory_gb,
    )
    return DONE


def _subset(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.errors import ConfigError
    from scvi_dist.job import store_jobs

    if options.genes is None and options.obs_filter is None:
        raise ConfigError("give --genes or --filter; without them, 'store convert' copies all.")
    store_jobs.convert(_source_of(options), _target_of(options), display, "Copying")
    return DONE


def _validate(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import store_jobs

    valid = store_jobs.validate(
        _source_of(options), display, digest=options.digest, as_json=options.json
    )
    return DONE if valid else INVALID


def _hvg(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import store_jobs

    store_jobs.hvg(
        _source_of(options),
        display,
        n_genes=options.n_genes,
        batch_key=options.batch_key,
        flavor=options.flavor,
        span=options.span,
        out=options.out,
    )
    return DONE


def _source_of(options: argparse.Namespace) -> "StoreSource":
    from scvi_dist.job.store_jobs import StoreSource

    return StoreSource(
        urls=tuple(options.source),
        layer=options.layer,
        obs_filter=getattr(options, "obs_filter", None),
        genes=getattr(options, "genes", None),
        options=tuple(options.option),
    )


def _target_of(options: argparse.Namespace) -> "Target":
    from scvi_dist.data.writing.convert import CopyConfig
    from scvi_dist.job.store_jobs import Target

    return Target(
        url=options.target,
        kind=getattr(options, "kind", None),
        config=CopyConfig(
            layout=options.layout, chunk_rows=options.chunk_rows, codec=options.codec
        ),
        overwrite=options.overwrite,
        options=tuple(options.option),
    )


AddOptions = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[str, str, str, AddOptions, Command]] = {
    "info": (
        "what is in a store",
        cli_help.INFO,
        cli_help.INFO_EPILOG,
        _info_options,
        _info,
    ),
    "convert": (
        "copy a store to another kind or layout",
        cli_help.CONVERT,
        cli_help.CONVERT_EPILOG,
        _convert_options,
        _convert,
    ),
    "shuffle": (
        "write the cells of a store in random order",
        cli_help.SHUFFLE,
        cli_help.SHUFFLE_EPILOG,
        _shuffle_options,
        _shuffle,
    ),
    "subset": (
        "copy some genes and some cells of a store",
        cli_help.SUBSET,
        cli_help.SUBSET_EPILOG,
        _subset_options,
        _subset,
    ),
    "validate": (
        "read all of a store and say what is wrong",
        cli_help.VALIDATE,
        cli_help.VALIDATE_EPILOG,
        _validate_options,
        _validate,
    ),
    "hvg": (
        "choose highly variable genes",
        cli_help.HVG,
        cli_help.HVG_EPILOG,
        _hvg_options,
        _hvg,
    ),
}
"""Name -> help, description, epilog, what adds its options, what does it."""
