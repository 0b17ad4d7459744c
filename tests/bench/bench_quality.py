"""Is a model trained by two workers as good as scvi-tools'? On two real data sets.

    python tests/bench/bench_quality.py --data DIR [--set pbmc|mixology] [--epochs 60]

Both sides train on the very same cells (scvi-tools' own split for the seed), for as many epochs,
with the same global batch size and the same settings. Printed are the validation ELBO of both
(higher is better), their relative difference, and, on the cell lines, how well lines separate and
batches mix in both latent spaces.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np

WARM_UP_EPOCHS = 20
GENES = 2000


def load(name: str, folder: Path) -> "anndata.AnnData":  # noqa: F821
    """Counts with ``obs["batch"]``; of the cell lines singlets and the most variable genes."""
    import anndata

    if name == "pbmc":
        adata = anndata.read_h5ad(folder / "pbmc_citeseq_10k5k.h5ad")
        del adata.obsm["protein_expression"]
        return adata
    adata = anndata.read_h5ad(folder / "celllines_mixology.h5ad")
    adata = adata[adata.obs["demuxlet_cls"] == "SNG"].copy()
    log_x = np.log1p(adata.X.toarray())
    keep = np.sort(np.argsort(log_x.var(axis=0))[::-1][:GENES])
    return adata[:, keep].copy()


def latent_quality(latent_nk: np.ndarray, lines: np.ndarray, batches: np.ndarray) -> dict:
    """Purity of cell lines and mixing of batches among 30 nearest neighbours, and silhouettes.

    ``mixing`` is the mean entropy of the batches around a cell over the entropy expected if the
    neighbours were drawn from all cells of its line: 1 is perfect.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=31).fit(latent_nk).kneighbors(latent_nk)[1][:, 1:]
    codes = np.unique(batches, return_inverse=True)[1]

    def entropy(counts: np.ndarray) -> np.ndarray:
        share = counts / counts.sum(axis=-1, keepdims=True)
        return -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)

    around = np.stack([(codes[found] == c).sum(axis=1) for c in range(codes.max() + 1)], axis=1)
    expected = np.zeros(len(lines))
    for line in np.unique(lines):
        of_line = lines == line
        expected[of_line] = entropy(np.bincount(codes[of_line]).astype(float))
    return {
        "knn_purity_of_lines": float((lines[found] == lines[:, None]).mean()),
        "knn_mixing_of_batches": float((entropy(around) / expected).mean()),
        "silhouette_lines": float(silhouette_score(latent_nk, lines)),
        "silhouette_batches": float(silhouette_score(latent_nk, batches)),
    }


def ours(adata, epochs: int, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Validation ELBO, latent and validation cells of a run with two workers."""
    from scvi_dist.model import SCVI

    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, gene_likelihood="nb")
    with tempfile.TemporaryDirectory() as run_dir:
        model.train(
            max_epochs=epochs,
            batch_size=128,
            train_size=0.9,
            seed=seed,
            num_workers=2,
            run_dir=str(Path(run_dir) / "run"),
            plan_kwargs={"n_epochs_kl_warmup": WARM_UP_EPOCHS},
        )
    validation = np.asarray(model.validation_indices)
    elbo = float(model.get_elbo(indices=validation))
    return elbo, model.get_latent_representation(), validation


def theirs(adata, epochs: int, seed: int, validation: np.ndarray) -> tuple[float, np.ndarray]:
    """The same of scvi-tools in one process."""
    import scvi

    scvi.settings.seed = seed
    copy = adata.copy()
    scvi.model.SCVI.setup_anndata(copy, batch_key="batch")
    model = scvi.model.SCVI(copy, gene_likelihood="nb")
    model.train(
        max_epochs=epochs,
        batch_size=128,
        train_size=0.9,
        plan_kwargs={"n_epochs_kl_warmup": WARM_UP_EPOCHS},
        enable_progress_bar=False,
        accelerator="cpu",
    )
    assert np.array_equal(np.sort(model.validation_indices), np.sort(validation)), "splits differ"
    return float(model.get_elbo(indices=validation)), model.get_latent_representation()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--set", choices=["pbmc", "mixology"], default="mixology")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    adata = load(arguments.set, arguments.data)
    for seed in arguments.seeds:
        elbo, latent_nk, validation = ours(adata, arguments.epochs, seed)
        peer_elbo, peer_latent_nk = theirs(adata, arguments.epochs, seed, validation)
        report = {
            "set": arguments.set,
            "seed": seed,
            "epochs": arguments.epochs,
            "validation_elbo": elbo,
            "validation_elbo_scvi_tools": peer_elbo,
            "relative_difference": (elbo - peer_elbo) / abs(peer_elbo),
        }
        if arguments.set == "mixology":
            lines = adata.obs["cell_type"].to_numpy().astype(str)
            batches = adata.obs["batch"].to_numpy().astype(str)
            report["latent"] = latent_quality(latent_nk, lines, batches)
            report["latent_scvi_tools"] = latent_quality(peer_latent_nk, lines, batches)
        print(json.dumps(report, indent=2), flush=True)


if __name__ == "__main__":
    main()
