"""Arguments of a TOTALVAE are checked before anything is built."""

from typing import Any

import numpy as np
import pytest

from scvi_dist.errors import ConfigError
from scvi_dist.module import TOTALVAE
from scvi_dist.module.totalvae_args import CHOICES

P = 4
SIZES: dict[str, Any] = {"n_input_genes": 9, "n_input_proteins": P, "n_batch": 3, "n_labels": 2}
PRIOR = {
    "protein_background_prior_mean": np.ones((P, 3)),
    "protein_background_prior_scale": np.ones((P, 3)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_not_offered_is_named(name: str) -> None:
    nearly = CHOICES[name][0] + "s"
    with pytest.raises(ConfigError, match=rf"{name} is one of .*did you mean '{CHOICES[name][0]}'"):
        TOTALVAE(**{**SIZES, name: nearly})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gene_dispersion": "gene-batch", "n_batch": 0}, "gene_dispersion.*needs n_batch"),
        ({"protein_dispersion": "protein-batch", "n_batch": 0}, "protein_disp.*needs n_batch"),
        ({"protein_dispersion": "protein-label", "n_labels": 0}, "protein_disp.*needs n_labels"),
        ({"gene_dispersion": "gene-cell"}, "gene_dispersion is one of gene, gene-batch"),
        ({"use_observed_lib_size": False}, r"library_log_means of shape \(1, 3\); it was missing"),
        (
            {
                "use_observed_lib_size": False,
                "library_log_means": np.ones((1, 3)),
                "library_log_vars": np.ones(3),
            },
            r"library_log_vars of shape \(1, 3\); it was of shape \(3,\)",
        ),
        ({**PRIOR, "n_panel": 2}, r"\(4, 1\) or \(4, 2\), proteins by panels.*\(4, 3\) and"),
        ({**PRIOR, "protein_background_prior_scale": None}, r"were \(4, 3\) and None"),
        ({**PRIOR, "protein_background_prior_scale": np.zeros((P, 3))}, "above 0 everywhere"),
        ({"protein_batch_mask": {"3": [True] * P}}, "panel 3, but there are 3 panels"),
        ({"protein_batch_mask": {"0": [True]}}, "panel 0 has 1 entries for 4 proteins"),
        (
            {"extra_decoder_kwargs": {"activation_function_bg": "expo"}},
            "no background activation 'expo'; did you mean 'exp'",
        ),
    ],
)
def test_contradictions_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TOTALVAE(**{**SIZES, **args})


def test_panels_are_the_batches_unless_said_otherwise() -> None:
    assert TOTALVAE(**SIZES).n_panel == 3
    assert TOTALVAE(**SIZES, n_panel=5, panel_key="panel").background_pro_alpha.shape == (P, 5)
    assert TOTALVAE(**{**SIZES, "n_batch": 0}).background_pro_alpha.shape == (P,)
