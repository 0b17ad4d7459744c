"""A folder belongs to one run and one process, and nothing in it is lost unasked."""

from pathlib import Path

import pytest

from scvi_dist.config import RunConfig, load_run, parse_run, run_keys
from scvi_dist.errors import OutputExists
from scvi_dist.job.output_folder import (
    FREE_KEYS,
    OWN_ENTRIES,
    STAGES,
    OutputFolder,
    run_facts,
    wanted_stages,
)

DIGEST = "d" * 32


def config_in(path: Path, *overrides: str) -> RunConfig:
    return parse_run(f"data: {{store: a.zarr}}\noutput: {{dir: '{path}'}}", overrides=overrides)


def test_a_new_folder_says_what_is_run_in_it(tmp_path: Path) -> None:
    config = config_in(tmp_path / "deep" / "out", "train.max_epochs=3")
    folder = OutputFolder.claim(config, DIGEST)
    assert folder.is_new
    assert load_run(folder.path / "run.yaml") == config
    assert not folder.is_complete(config)
    folder.close()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folder = OutputFolder.claim(config_in(tmp_path), DIGEST)
    assert folder.is_new
    folder.close()


@pytest.mark.parametrize("n_done", range(len(STAGES) + 1))
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, n_done: int) -> None:
    config = config_in(tmp_path / "out")
    first = OutputFolder.claim(config, DIGEST)
    for stage in STAGES[:n_done]:
        first.done(stage, {"of": stage})
    first.close()
    second = OutputFolder.claim(config, DIGEST)
    assert not second.is_new
    for i, stage in enumerate(STAGES):
        assert second.remembered(stage) == ({"of": stage} if i < n_done else None)
    assert second.is_complete(config) == (n_done == len(STAGES))
    second.close()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    config = config_in(tmp_path / "out")
    first = OutputFolder.claim(config, DIGEST)
    with pytest.raises(OutputExists, match="another process"):
        OutputFolder.claim(config, DIGEST)
    first.close()
    OutputFolder.claim(config, DIGEST).close()


@pytest.mark.parametrize(
    "override",
    [
        "train.max_epochs=9",
        "model.n_latent=3",
        "data.batch_key=b",
        "train.plan.lr=1",
        "train.seed=5",
    ],
)
def test_another_run_is_refused_by_what_differs_and_replaced_when_asked(tmp_path, override) -> None:
    OutputFolder.claim(config_in(tmp_path / "out"), DIGEST).close()
    (tmp_path / "out" / "checkpoints").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match=override.partition("=")[0]) as refused:
        OutputFolder.claim(config_in(tmp_path / "out", override), DIGEST)
    assert "output.overwrite=true" in str(refused.value)
    assert (tmp_path / "out" / "checkpoints").exists()
    replaced = OutputFolder.claim(
        config_in(tmp_path / "out", override, "output.overwrite=true"), DIGEST
    )
    assert replaced.is_new
    assert not replaced.checkpoints_exist
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine", "only what a run made may go"
    replaced.close()


def test_overwrite_redoes_a_finished_run_and_continues_an_unfinished_one(tmp_path: Path) -> None:
    config = config_in(tmp_path / "out", "output.overwrite=true", "tracking.uri=off")
    first = OutputFolder.claim(config, DIGEST)
    first.done("model")
    first.close()
    second = OutputFolder.claim(config, DIGEST)
    assert second.remembered("model") is not None
    for stage in wanted_stages(config):
        second.done(stage)
    second.close()
    third = OutputFolder.claim(config, DIGEST)
    assert third.is_new
    third.close()


@pytest.mark.parametrize("key", FREE_KEYS)
def test_what_does_not_change_the_result_may_change(key: str) -> None:
    assert key in run_keys()
    facts = run_facts(config_in(Path("out")))
    assert not any(fact == key or fact.startswith(f"{key}.") for fact in facts)


def test_other_workers_may_continue_a_run(tmp_path: Path) -> None:
    OutputFolder.claim(config_in(tmp_path / "out"), DIGEST).close()
    other = config_in(
        tmp_path / "out", "train.workers=7", "tracking.uri=off", "output.latent=false"
    )
    OutputFolder.claim(other, DIGEST).close()


def test_a_store_that_changed_is_another_run(tmp_path: Path) -> None:
    OutputFolder.claim(config_in(tmp_path / "out"), DIGEST).close()
    with pytest.raises(OutputExists, match="before it was changed"):
        OutputFolder.claim(config_in(tmp_path / "out"), "e" * 32)


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_what_is_not_ours_is_left_alone_even_with_overwrite(tmp_path: Path, overwrite) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    with pytest.raises(OutputExists, match="no run of scvi-dist"):
        OutputFolder.claim(config_in(tmp_path, f"output.overwrite={overwrite}"), DIGEST)
    assert (tmp_path / "model" / "precious").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputExists):
        OutputFolder.claim(config_in(tmp_path / "out"), DIGEST)


def test_wanted_stages_follow_the_config(tmp_path: Path) -> None:
    off = config_in(tmp_path, "tracking.uri=off", "output.latent=false", "output.figures=false")
    assert wanted_stages(off) == ["model", "evaluation"]
    assert wanted_stages(config_in(tmp_path)) == [s for s in STAGES if s != "predictions"]
    labelled = ("model.name=SCANVI", "data.labels_key=l", "data.unlabeled_category=u")
    assert wanted_stages(config_in(tmp_path, *labelled)) == list(STAGES)
    types = ("model.name=CellAssign", "data.markers=m.csv")
    assert "latent" not in wanted_stages(config_in(tmp_path, *types))


def test_own_entries_are_what_is_removed() -> None:
    assert "atlas" not in OWN_ENTRIES
    assert {"model", "checkpoints", "tracking", "latent.zarr", "figures"} <= set(OWN_ENTRIES)
