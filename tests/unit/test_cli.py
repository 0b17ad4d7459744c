"""The command line: what it offers is pinned, what it refuses is one message and a code."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scvi_dist import cli
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.errors import ScviDistError

COMMON = ("-h", "--help", "-q", "--quiet", "--debug")
COPY = (
    *(*COMMON, "SRC", "--layer", "--layout", "--chunk-rows", "--codec", "--overwrite", "--option"),
)
ANALYSIS = (
    *(*COMMON, "MODEL", "STORE", "--out", "--dask", "--filter", "--seed", "--tracking", "--option"),
)
OPTIONS = {
    "": {"-h", "--help", "--version"},
    "demo": {
        *("-h", "--help", "-q", "--quiet", "--debug", "--dir", "--cells", "--genes", "--batches"),
        *("--cell-types", "--epochs", "--workers", "--seed", "--tracking"),
    },
    "run": {"-h", "--help", "-q", "--quiet", "--debug", "--keys", "RUN.yaml", "key=value"},
    "plan": {"-h", "--help", "-q", "--quiet", "--debug", "--json", "RUN.yaml", "key=value"},
    "submit": {
        *(*COMMON, "RUN.yaml", "key=value", "--address", "--name", "-f", "--follow"),
        *("--package", "--shared-storage", "--env"),
    },
    "jobs": {"-h", "--help"},
    "jobs list": {*COMMON, "--address", "--json"},
    "jobs logs": {*COMMON, "--address", "NAME", "-f", "--follow"},
    "jobs stop": {*COMMON, "--address", "NAME"},
    "jobs status": {*COMMON, "--address", "NAME", "--json"},
    "de": {
        *(*ANALYSIS, "--groupby", "--group1", "--group2", "--mode", "--estimator", "--delta"),
        *("--batch-correction", "--fdr"),
    },
    "da": {*ANALYSIS, "--sample-key", "--groupby", "--cells-posterior"},
    "ppc": {*ANALYSIS, "--metrics", "--n-samples", "--groupby", "--cells", "--modality"},
    "store": {"-h", "--help"},
    "store info": {*COMMON, "--json", "--layer", "--option", "URL"},
    "store convert": {*COPY, "--kind", "DST"},
    "store subset": {*COPY, "--kind", "--genes", "--filter", "DST"},
    "store shuffle": {*COPY, "--seed", "--workers", "--memory-gb", "--no-ray", "DST"},
    "store validate": {*COMMON, "SRC", "--layer", "--digest", "--option", "--json"},
    "store hvg": {
        *(*COMMON, "SRC", "--layer", "--filter", "--option", "--out"),
        *("-n", "--n-genes", "--batch-key", "--flavor", "--span"),
    },
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    simulate_atlas(folder, n_cells=300, n_genes=40, n_shards=2)
    return folder


@pytest.fixture
def run_file(atlas: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {{store: {atlas}/atlas.zarr, batch_key: batch}}\n"
        "train: {workers: 0, max_epochs: 2, batch_size: 64}\n"
        f"output: {{dir: {tmp_path}/out}}\n"
    )
    return path


def parsers(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, inner in action.choices.items():
                found.update(parsers(inner, f"{name} {command}".strip()))
    return found


def test_commands_and_options_are_what_they_were() -> None:
    offered = {
        name: {
            option
            for action in parser._actions
            if not isinstance(action, argparse._SubParsersAction)
            for option in (action.option_strings or [action.metavar])
        }
        for name, parser in parsers(cli.make_parser()).items()
    }
    assert offered == OPTIONS


@pytest.mark.parametrize("command", list(OPTIONS))
def test_help_reads_well_everywhere(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == cli.DONE
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith(f"usage: scvi-dist {command}".rstrip())
    if command not in ("", "store", "jobs"):
        assert f"examples:\n  scvi-dist {command}" in text


def test_every_option_of_every_command_is_explained() -> None:
    for parser in parsers(cli.make_parser()).values():
        for action in parser._actions:
            assert isinstance(action, argparse._SubParsersAction) or action.help


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom scvi_dist import cli\n"
        "try:\n    cli.main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'numpy', 'ray', 'mlflow', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == cli.DONE
    assert capsys.readouterr().out.startswith("scvi-dist ")


def test_no_command_shows_what_there_is(capsys) -> None:
    assert cli.main([]) == cli.DONE
    assert "commands:" in capsys.readouterr().out
    assert cli.main(["store"]) == cli.USAGE
    assert "info" in capsys.readouterr().out


WRONG_LINES = ["dmo", "run", "plan", "store inof", "run a.yaml --fast", "demo more", "demo a=b"]


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_command_line_ends_with_the_usage_code(line: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == cli.USAGE
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("run nowhere.yaml", "nowhere.yaml"),
        ("plan {run} train.max_epoch=3", "did you mean 'max_epochs'"),
        ("plan {run} train.max_epochs=few", "a whole number"),
        ("plan {run} data.batch_key=bach", "did you mean 'batch'"),
        ("plan {run} data.labels_key=celltype", "did you mean 'cell_type'"),
        ("plan {run} output.colour_by=[dono]", "did you mean 'donor'"),
        ("plan {run} data.layer=counts", "no layer 'counts'"),
        ("plan {run} data.obs_filter=btch=='x'", "did you mean 'batch'"),
        ("plan {run} data.genes=[gene_00001,gene_0002]", "gene_0002"),
        ("plan {run} train.loader.budget_bytes=10", "budget"),
        ("store info nowhere.h5ad", "nowhere.h5ad"),
        ("store info {run}", "run.yaml"),
        ("demo --workers -1", "--workers"),
    ],
)
def test_what_cannot_be_is_one_message_before_anything_starts(
    line: str, named: str, run_file: Path, capsys
) -> None:
    assert cli.main(line.format(run=run_file).split(" ")) == cli.USAGE
    seen = capsys.readouterr()
    assert named in seen.err
    assert "Traceback" not in seen.err
    assert seen.err.count("error:") == 1
    assert seen.out == ""
    assert not (run_file.parent / "out").exists()


@pytest.mark.parametrize("name", ["run.yaml", "cells.h5ad"])
def test_a_bad_file_is_named(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff\xfe{")
    command = ["plan"] if name.endswith("yaml") else ["store", "info"]
    assert cli.main([*command, str(tmp_path / name)]) in (cli.USAGE, cli.FAILED)
    assert name in capsys.readouterr().err


def test_plan_tells_and_starts_nothing(run_file: Path, capsys) -> None:
    assert cli.main(["plan", str(run_file)]) == cli.DONE
    text = capsys.readouterr().out
    for part in ("300 x 40", "270 train", "5 an epoch", "2 epochs = 10 steps", "together"):
        assert part in text
    assert not (run_file.parent / "out").exists()


def test_plan_as_json(run_file: Path, capsys) -> None:
    assert cli.main(["plan", str(run_file), "--json", "train.workers=2"]) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["workers"] == 2
    assert plan["memory"]["peak"] == sum(v for k, v in plan["memory"].items() if k != "peak")


def test_store_info(atlas: Path, capsys) -> None:
    assert cli.main(["store", "info", str(atlas / "atlas.zarr")]) == cli.DONE
    text = capsys.readouterr().out
    assert "300 x 40" in text
    assert "cell_type  category, 8 values" in text
    shards = sorted(map(str, atlas.glob("*.h5ad")))
    assert cli.main(["store", "info", "--json", *shards]) == cli.DONE
    described = json.loads(capsys.readouterr().out)
    assert (described["n_obs"], described["n_vars"]) == (300, 40)


def test_the_keys_of_a_run_can_be_printed_and_run_again(run_file: Path, tmp_path, capsys) -> None:
    from scvi_dist.config import load_run

    assert cli.main(["run", str(run_file), "--keys", "model.n_latent=5"]) == cli.DONE
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load_run(again) == load_run(run_file, ["model.n_latent=5"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), cli.INTERRUPTED),
        (ScviDistError("it broke"), cli.FAILED),
        (OSError(28, "No space left on device"), cli.FAILED),
        (ZeroDivisionError("division by zero"), cli.FAILED),
    ],
)
def test_exit_codes(raised, code: int, run_file: Path, capsys, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("scvi_dist.job.plan_job", fail)
    assert cli.main(["plan", str(run_file)]) == code
    text = capsys.readouterr().err
    assert "error: " in text
    assert "Traceback" not in text
    assert cli.main(["plan", str(run_file), "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code != cli.INTERRUPTED)


@pytest.mark.filterwarnings("default")
def test_warnings_are_single_lines(run_file: Path, capsys, monkeypatch) -> None:
    import logging
    import warnings

    def warn(*_: object) -> None:
        for _ in range(2):
            warnings.warn("the counts\nare odd", UserWarning, stacklevel=1)
            logging.getLogger("scvi_dist.somewhere").warning("the server is slow")
        raise ScviDistError("stop")

    monkeypatch.setattr("scvi_dist.job.plan_job", warn)
    cli.main(["plan", str(run_file)])
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["! the counts are odd", "! the server is slow", "error: stop"]
