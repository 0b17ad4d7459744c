"""The commands ``scvi-dist de``, ``da`` and ``ppc``: their options, and the way to what they do."""

import argparse
from typing import TYPE_CHECKING

from scvi_dist import cli_help
from scvi_dist.cli_options import filter_option, storage_options
from scvi_dist.cli_store import DONE, AddCommon, AddOptions, Command, MakeParser

if TYPE_CHECKING:
    from scvi_dist.console import Display
    from scvi_dist.job.analysis_jobs import Asked


def add_analysis_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    make_parser: MakeParser,
    add_common: AddCommon,
) -> None:
    """``scvi-dist de``, ``da`` and ``ppc``."""
    for name, (text, description, epilog, add_options, command) in COMMANDS.items():
        parser = make_parser(
            commands.add_parser, name=name, help=text, description=description, epilog=epilog
        )
        _model_and_cells(parser)
        add_options(parser)
        _how(parser)
        add_common(parser, command)


def _model_and_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a saved model or a run, or models:/NAME/VERSION",
    )
    parser.add_argument(
        "store", nargs="+", metavar="STORE", help="h5ad file, Zarr or SOMA store; several are one"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")


def _how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dask",
        metavar="WHERE",
        help="where to compute: threads[:N] (default), sync, local[:N], tcp://HOST:PORT, "
        "tls://HOST:PORT, file:SCHEDULER.json, env, ray",
    )
    filter_option(parser, "look at")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    parser.add_argument(
        "--tracking",
        default="auto",
        metavar="URI",
        help="MLflow to record to: 'auto' (below the run that trained the model, if there is "
        "one), 'off', or a URI (%(default)s)",
    )
    storage_options(parser)


def _de_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groupby", required=True, metavar="COLUMN", help="column of obs with the populations"
    )
    parser.add_argument(
        "--group1", action="append", metavar="NAME", help="compare this one; again for more (all)"
    )
    parser.add_argument(
        "--group2", metavar="NAME", help="compare with this one (with all other cells)"
    )
    parser.add_argument(
        "--mode",
        default="change",
        choices=("change", "vanilla"),
        help="how probable a change beyond --delta is, or that one has more (%(default)s)",
    )
    parser.add_argument(
        "--estimator",
        default="sample",
        choices=("sample", "full"),
        help="some cells of each population, or every cell (%(default)s)",
    )
    parser.add_argument(
        "--delta",
        default="0.25",
        metavar="LFC",
        help="log2 fold change that counts; 'auto' finds it in the data (%(default)s)",
    )
    parser.add_argument(
        "--batch-correction",
        action="store_true",
        help="decode all cells as of every batch, and compare within batches",
    )
    parser.add_argument(
        "--fdr", type=float, default=0.05, help="false discoveries among called genes (%(default)s)"
    )


def _da_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample-key", required=True, metavar="COLUMN", help="column of obs with the samples"
    )
    parser.add_argument(
        "--groupby", metavar="COLUMN", help="rows of the heat map; the samples themselves if absent"
    )
    parser.add_argument(
        "--cells-posterior",
        type=int,
        metavar="N",
        help="cells whose posteriors make the density of a sample (all)",
    )


def _ppc_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        default="cv_cell,cv_gene,zero_fraction,calibration,diff_exp",
        metavar="NAMES",
        help="some of cv_cell, cv_gene, zero_fraction, calibration and diff_exp (all)",
    )
    parser.add_argument(
        "--n-samples", type=int, default=10, help="draws of each cell (%(default)s)"
    )
    parser.add_argument(
        "--groupby", metavar="COLUMN", help="populations for diff_exp (the model's labels)"
    )
    parser.add_argument(
        "--cells", type=int, metavar="N", help="look at so many cells, drawn at random (all)"
    )
    parser.add_argument(
        "--modality", choices=("rna", "protein"), help="which counts (genes, 'rna')"
    )


def _de(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import analysis_jobs

    analysis_jobs.differential_expression(
        _asked(options),
        display,
        analysis_jobs.ExpressionOptions(
            groupby=options.groupby,
            group1=tuple(options.group1 or ()),
            group2=options.group2,
            mode=options.mode,
            estimator=options.estimator,
            delta=analysis_jobs.parse_delta(options.delta),
            batch_correction=options.batch_correction,
            fdr=options.fdr,
        ),
    )
    return DONE


def _da(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import analysis_jobs

    analysis_jobs.differential_abundance(
        _asked(options),
        display,
        analysis_jobs.AbundanceOptions(
            sample_key=options.sample_key,
            groupby=options.groupby,
            cells_posterior=options.cells_posterior,
        ),
    )
    return DONE


def _ppc(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import analysis_jobs

    analysis_jobs.predictive_check(
        _asked(options),
        display,
        analysis_jobs.PredictiveOptions(
            metrics=tuple(name.strip() for name in options.metrics.split(",") if name.strip()),
            n_samples=options.n_samples,
            groupby=options.groupby,
            cells=options.cells,
            modality=options.modality,
        ),
    )
    return DONE


def _asked(options: argparse.Namespace) -> "Asked":
    from scvi_dist.job.analysis_jobs import Asked

    return Asked(
        model=options.model,
        stores=tuple(options.store),
        out=options.out,
        dask=options.dask,
        obs_filter=options.obs_filter,
        seed=options.seed,
        tracking=options.tracking,
        options=tuple(options.option),
    )


COMMANDS: dict[str, tuple[str, str, str, AddOptions, Command]] = {
    "de": (
        "genes that differ between populations of cells",
        cli_help.DE,
        cli_help.DE_EPILOG,
        _de_options,
        _de,
    ),
    "da": (
        "where in the latent space the cells of samples lie",
        cli_help.DA,
        cli_help.DA_EPILOG,
        _da_options,
        _da,
    ),
    "ppc": (
        "whether a model draws counts like the observed ones",
        cli_help.PPC,
        cli_help.PPC_EPILOG,
        _ppc_options,
        _ppc,
    ),
}
"""Name -> help, description, epilog, what adds its options, what does it."""
