"""Whatever goes in, what comes out may be written down."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.tracking.values import chart_number, clean_key, flatten, redact, tag_texts


@given(st.text(max_size=300))
def test_mlflow_accepts_every_cleaned_name(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    cleaned = clean_key(name)
    _validate_metric_name(cleaned)
    assert clean_key(cleaned) == cleaned


@given(st.text(alphabet="abcXYZ019_-. :", min_size=1, max_size=40).filter(lambda s: s.strip(".")))
def test_a_good_name_stays(name: str) -> None:
    assert clean_key(name) == name


@given(st.floats())
def test_only_infinities_change(value: float) -> None:
    seen = chart_number(value)
    assert math.isnan(seen) if not math.isfinite(value) else seen == value


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@host/a.zarr",
        "cannot open s3://hunter2@bucket/x and gs://a:hunter2@b/y",
        "https://host/a.zarr?sig=hunter2&se=1",
        "postgresql://u:hunter2@db:5432/mlflow?sslpassword=hunter2",
    ],
)
def test_no_secret_is_left_in_a_text(text: str) -> None:
    assert "hunter2" in text
    assert "hunter2" not in redact(text)


@given(st.text(alphabet="abc/._-:0 ", max_size=60))
def test_text_without_secrets_stays(text: str) -> None:
    assert redact(text) == text


@dataclass
class _Section:
    rate: float
    api_token: str | None
    layers: tuple[int, ...]


def test_nested_settings_become_dotted_names_and_secrets_are_hidden() -> None:
    tree = {
        "model": _Section(0.1, "hunter2", (128, 64)),
        "storage": {"secret": "hunter2", "key_frames": 3},
        "sources": [{"url": "https://u:p@h/x"}, {"url": "b"}],
        "empty": {},
    }
    assert flatten(tree) == {
        "model.rate": "0.1",
        "model.api_token": "***",
        "model.layers": "[128, 64]",
        "storage.secret": "***",
        "storage.key_frames": "3",
        "sources.0.url": "https://***@h/x",
        "sources.1.url": "b",
        "empty": "{}",
    }


def test_tags_fit_mlflow() -> None:
    tags = tag_texts({"a[0]": "x" * 10_000, "n": 3})
    assert tags == {"a_0_": "x" * 8_000, "n": "3"}
