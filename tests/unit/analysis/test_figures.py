"""Pictures are written whole, are readable files, and show every label."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.analysis import figures
from scvi_dist.errors import ConfigError


def size_of(png: Path) -> tuple[int, int]:
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def history(n_epochs: int) -> dict[str, list[tuple[int, float]]]:
    curve = [(epoch, 100 / (1 + epoch)) for epoch in range(n_epochs)]
    return {"elbo_train": curve, "elbo_validation": curve, "kl_local_train": curve, "lr": curve}


def legend_of(monkeypatch, **arguments) -> list[list[str]]:
    """Texts of the legends that a map gets."""
    seen: list[list[str]] = []
    write = figures.write

    def write_and_look(figure, path, title):
        seen.extend([t.get_text() for t in a.get_legend().get_texts()] for a in figure.axes)
        return write(figure, path, title)

    monkeypatch.setattr(figures, "write", write_and_look)
    figures.latent_map(**arguments)
    return seen


@pytest.mark.parametrize("n_epochs", [1, 2, 40])
def test_loss_curves_fit_a_screen(tmp_path: Path, n_epochs: int) -> None:
    made = figures.loss_curves(history(n_epochs), tmp_path / "new" / "loss.png", title="A run")
    width, height = size_of(made)
    assert 600 <= width <= 2_000
    assert 300 <= height <= 1_400
    assert [p.name for p in made.parent.iterdir()] == ["loss.png"], "no half-written file stays"


def test_values_that_are_not_finite_do_not_stop_the_picture(tmp_path: Path) -> None:
    bad = {"elbo_train": [(0, float("nan")), (1, float("inf")), (2, 5.0)]}
    size_of(figures.loss_curves(bad, tmp_path / "loss.png"))


def test_a_history_without_any_known_curve_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="speed"):
        figures.loss_curves({"speed": [(0, 1.0)], "elbo_train": []}, tmp_path / "loss.png")


def test_every_label_is_in_its_panels_legend(tmp_path: Path, monkeypatch) -> None:
    batch = np.array(["a", "b"] * 30)
    types = np.array([f"type {i}" for i in range(12)] * 5)
    legends = legend_of(
        monkeypatch,
        position_n2=np.random.default_rng(0).normal(size=(60, 2)),
        colour_by={"batch": batch, "cell type": types},
        path=tmp_path / "map.png",
    )
    assert legends[0] == ["a", "b"]
    assert legends[1] == [f"{i + 1}  type {i}" for i in range(12)], "type 2 before type 10"
    assert size_of(tmp_path / "map.png")[0] <= 2_000


def test_the_rarest_of_many_labels_are_counted_together(tmp_path: Path, monkeypatch) -> None:
    labels = np.repeat([f"t{i}" for i in range(25)], [25 - i for i in range(25)])
    place = np.random.default_rng(0).normal(size=(len(labels), 2))
    (legend,) = legend_of(
        monkeypatch, position_n2=place, colour_by={"x": labels}, path=tmp_path / "map.png"
    )
    assert len(legend) == 21
    assert legend[-1] == "5 others (15 cells)"


def test_names_that_differ_at_the_end_stay_different() -> None:
    names = [f"a very long name of a very rare kind of cell, number {i}" for i in range(30)]
    short = [figures._shortened(name) for name in names]
    assert len(set(short)) == 30
    assert max(map(len, short)) <= 28


def test_colours_are_distinct() -> None:
    for palette in (figures.EIGHT_COLOURS, figures.MANY_COLOURS):
        assert len({*palette, figures.OTHER_COLOUR}) == len(palette) + 1


@given(st.integers(0, 200), st.integers(1, 100), st.integers(0, 3))
def test_a_subsample_is_rows_in_order_and_repeatable(n: int, at_most: int, seed: int) -> None:
    rows = figures.subsample(n, at_most, seed)
    assert len(rows) == min(n, at_most)
    assert np.all(np.diff(rows) > 0)
    assert np.all((rows >= 0) & (rows < n))
    assert np.array_equal(rows, figures.subsample(n, at_most, seed))


@pytest.mark.parametrize(("n", "k"), [(1, 10), (2, 10), (9, 3), (40, 1), (40, 2)])
def test_small_or_flat_latents_get_places_too(n: int, k: int) -> None:
    place = figures.layout(np.random.default_rng(0).normal(size=(n, k)))
    assert place.shape == (n, 2)
    assert place.dtype == np.float32
    assert np.isfinite(place).all()


def test_neighbours_in_the_latent_are_neighbours_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 60)
    latent = rng.normal(size=(120, 10)) + 8 * groups[:, None]
    place = figures.layout(latent)
    distance = np.linalg.norm(place[:, None] - place, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(1)] == groups).all()


def test_no_display_and_no_global_state_is_touched(tmp_path: Path) -> None:
    code = (
        "import sys, scvi_dist.analysis.figures as f\n"
        "assert 'matplotlib' not in sys.modules\n"
        "f.loss_curves({'elbo_train': [(0, 1.0)]}, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "loss.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    size_of(tmp_path / "loss.png")
