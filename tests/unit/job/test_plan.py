"""A plan starts nothing, and says what a run then does."""

import json
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.config import RunConfig, open_run_store, parse_run
from scvi_dist.data.schema import fit_schema
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.errors import ConfigError
from scvi_dist.job.models import count_parameters
from scvi_dist.job.output_folder import OutputFolder
from scvi_dist.job.plan import in_bytes, plan_job
from scvi_dist.job.reader_plan import CORE_FLOPS, OPERATIONS, plan_readers


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_atlas(
        tmp_path_factory.mktemp("atlas"), n_cells=1_003, n_genes=30, n_shards=3
    ).zarr


def config_of(atlas: Path, tmp_path: Path, *overrides: str) -> RunConfig:
    text = (
        f"data: {{store: {atlas}, batch_key: batch}}\n"
        "train: {max_epochs: 4, batch_size: 100}\n"
        f"output: {{dir: {tmp_path}/out}}\n"
    )
    return parse_run(text, overrides=overrides)


def test_the_figures_agree_with_the_store(atlas: Path, tmp_path: Path) -> None:
    plan = plan_job(config_of(atlas, tmp_path))
    assert (plan.n_cells, plan.n_genes, plan.n_batches) == (1_003, 30, 3)
    assert plan.n_train + plan.n_validation + plan.n_test == plan.n_cells
    assert plan.steps_per_epoch == -(-plan.n_train // 100)
    assert plan.total_steps == 4 * plan.steps_per_epoch
    assert plan.output_state == "new"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1, 2, 5, 16])
def test_workers_change_neither_cells_nor_steps_and_need_less_memory_each(
    atlas: Path, tmp_path: Path, workers: int
) -> None:
    one = plan_job(config_of(atlas, tmp_path, "train.workers=1"))
    many = plan_job(config_of(atlas, tmp_path, f"train.workers={workers}"))
    assert many.steps_per_epoch == one.steps_per_epoch
    assert many.n_train == one.n_train
    assert many.memory.reading <= one.memory.reading
    assert many.memory.step <= one.memory.step


def test_a_range_of_workers_is_planned_for_the_fewest(atlas: Path, tmp_path: Path) -> None:
    few = plan_job(config_of(atlas, tmp_path, "train.workers=2"))
    span = plan_job(config_of(atlas, tmp_path, "train.workers=[2, 8]"))
    assert (span.min_workers, span.workers) == (2, 8)
    assert span.memory == few.memory
    assert "2 to 8 Ray Train workers" in span.to_text()
    for bad in ("[0, 2]", "[3, 2]", "[1, 2, 3]", "-1"):
        with pytest.raises(ConfigError, match="workers"):
            config_of(atlas, tmp_path, f"train.workers={bad}")


def test_the_plan_says_how_many_cores_have_to_read(atlas: Path, tmp_path: Path) -> None:
    alone = plan_job(config_of(atlas, tmp_path, "train.workers=0"))
    assert alone.readers is None
    with open_run_store(config_of(atlas, tmp_path)) as store:
        ticks = iter([0.0, 1.0] * 3)
        found = {
            workers: plan_readers(
                config_of(atlas, tmp_path, f"train.workers={workers}"),
                store,
                n_parameters=10_000,
                world=workers,
                clock=lambda: next(ticks),
            )
            for workers in (1, 4)
        }
    assert found[1].decode_cells_per_s == 1_003
    assert found[1].step_cells_per_s == pytest.approx(CORE_FLOPS / (OPERATIONS * 10_000))
    assert found[4].cores == ceil(4 * found[4].step_cells_per_s / 1_003)
    many = plan_job(config_of(atlas, tmp_path, "train.workers=4"))
    assert many.readers is not None
    assert "keep all ranks busy" in many.to_text()
    assert json.loads(many.to_json())["readers"]["cores"] == many.readers.cores


def test_padding_is_told(atlas: Path, tmp_path: Path) -> None:
    few = plan_job(config_of(atlas, tmp_path, "train.batch_size=2", "train.workers=3"))
    assert few.n_padding == few.steps_per_epoch * 3 - few.n_train
    assert f"{few.n_padding:,} cells an epoch" in few.to_text()


@pytest.mark.parametrize(
    ("overrides", "total"),
    [
        (["train.max_epochs=null", "train.max_steps=7"], 7),
        (["train.max_epochs=2", "train.max_steps=7000"], 2 * 10),
        (["train.max_epochs=2", "train.max_steps=7"], 7),
        (["train.max_epochs=0"], 0),
    ],
)
def test_the_lower_limit_counts(atlas: Path, tmp_path: Path, overrides, total: int) -> None:
    plan = plan_job(config_of(atlas, tmp_path, *overrides))
    assert plan.total_steps == total


def test_validation_is_read_only_where_something_looks_at_it(atlas, tmp_path) -> None:
    without = plan_job(config_of(atlas, tmp_path))
    stops = plan_job(config_of(atlas, tmp_path, "train.early_stopping=true"))
    assert without.validate_every is None
    assert stops.validate_every == 1
    assert stops.read_bytes_per_epoch > without.read_bytes_per_epoch


def test_parameters_are_those_of_the_model(atlas: Path, tmp_path: Path) -> None:
    config = config_of(atlas, tmp_path, "model.n_latent=3", "model.n_hidden=16")
    with open_run_store(config) as store:
        schema = fit_schema(store, config.setup)
        counted = count_parameters(config, schema)
        from scvi_dist.data.manager import AnnDataManager

        model = config.model.model_class(
            AnnDataManager(store, schema, "SCVI"), **config.model.arguments
        )
    assert counted == sum(p.numel() for p in model.module.parameters())


def test_the_plan_knows_what_is_in_the_output_folder(atlas: Path, tmp_path: Path) -> None:
    config = config_of(atlas, tmp_path, "tracking.uri=off")
    folder = OutputFolder.claim(config, plan_job(config).store_digest)
    folder.close()
    assert plan_job(config).output_state == "continues a run"
    other = config_of(atlas, tmp_path, "train.max_epochs=5")
    assert "cannot be used" in plan_job(other).output_state
    replacing = config_of(atlas, tmp_path, "train.max_epochs=5", "output.overwrite=true")
    assert plan_job(replacing).output_state == "replaces another run"
    for stage in ("model", "evaluation", "latent", "figures"):
        folder.done(stage)
    assert plan_job(config).output_state == "the run is finished"


def test_text_and_json_say_the_same(atlas: Path, tmp_path: Path) -> None:
    plan = plan_job(config_of(atlas, tmp_path, "tracking.register_as=lung"))
    content = json.loads(plan.to_json())
    text = plan.to_text()
    for value in (
        plan.store,
        f"{content['n_parameters']:,}",
        plan.engine_reason,
        "lung@challenger",
    ):
        assert value in text
    assert content["memory"]["peak"] == plan.memory.peak


def test_a_plan_reaches_no_server_and_starts_no_engine(atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"data: {{store: {atlas}}}\ntrain: {{workers: 2}}\n"
        f"tracking: {{uri: 'http://127.0.0.1:9'}}\noutput: {{dir: {tmp_path}/out}}\n"
    )
    code = (
        "import sys\nfrom scvi_dist.cli import main\n"
        f"assert main(['plan', {str(tmp_path / 'run.yaml')!r}]) == 0\n"
        "assert not {'ray', 'mlflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@given(st.integers(0, 2**60))
def test_bytes_are_told_in_a_unit_that_suits(n: int) -> None:
    number, unit = in_bytes(n).split()
    assert float(number) < 1_024.5 or unit == "TiB"
    assert float(number) >= 1 or n == 0 or unit == "B"
