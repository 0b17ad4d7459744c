"""Options that several commands have: one meaning, one text."""

import argparse


def json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--json``: print ``what`` for programs."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def filter_option(parser: argparse.ArgumentParser, verb: str) -> None:
    """``--filter``: which cells of a store there are; ``verb`` says what is done with them."""
    parser.add_argument(
        "--filter",
        dest="obs_filter",
        metavar="EXPR",
        help=f"{verb} the cells for which this holds, as pandas writes it: \"batch == 'a'\"",
    )


def storage_options(parser: argparse.ArgumentParser) -> None:
    """``--option``: how a remote store is reached."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for remote stores, such as anon=true or scvi_dist.cache_dir=/scratch",
    )
