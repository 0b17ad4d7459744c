"""Arguments of a VAE are checked before anything is built."""

from typing import Any

import numpy as np
import pytest

from scvi_dist.errors import ConfigError
from scvi_dist.module import VAE
from scvi_dist.module.vae_args import CHOICES

SIZES: dict[str, Any] = {"n_input": 9, "n_batch": 3, "n_labels": 2}
LIBRARY = {
    "use_observed_lib_size": False,
    "library_log_means": np.full((1, 3), 3.0),
    "library_log_vars": np.full((1, 3), 0.5),
}


def test_the_batch_embedding_is_found_by_name() -> None:
    assert VAE(**SIZES).batch_embedding is None
    module = VAE(
        **SIZES, batch_representation="embedding", batch_embedding_kwargs={"embedding_dim": 2}
    )
    assert module.batch_embedding is not None
    assert module.batch_embedding.weight.shape == (3, 2)
    assert "_embeddings_dict.batch.weight" in module.state_dict()
    default = VAE(**SIZES, batch_representation="embedding")
    assert default.batch_embedding is not None
    assert default.batch_embedding.embedding_dim == 5


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_not_offered_is_named(name: str) -> None:
    nearly = CHOICES[name][0] + "s"
    with pytest.raises(ConfigError, match=rf"{name} is one of .*did you mean '{CHOICES[name][0]}'"):
        VAE(**SIZES, **{name: nearly})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dispersion": "gene-batch", "n_batch": 0}, "needs n_batch of at least 1"),
        ({"dispersion": "gene-label", "n_labels": 0}, "needs n_labels of at least 1"),
        ({"use_observed_lib_size": False}, r"library_log_means of shape \(1, 3\); it was missing"),
        (
            {**LIBRARY, "library_log_vars": np.ones(3)},
            r"library_log_vars of shape \(1, 3\); it was of shape \(3,\)",
        ),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VAE(**{**SIZES, **args})
