"""Query mapping: a module that knows more categories than the one it takes its weights from.

Axis suffixes: ``h`` units, ``i`` inputs of a layer.

Source
------
Lotfollahi et al. 2022, "Mapping single-cell data to reference atlases by transfer learning".
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from scvi_dist.errors import SchemaMismatch
from scvi_dist.nn import Embedding, FCLayers
from scvi_dist.nn.partly_frozen import PartlyFrozenLinear

_OF_LABELS = ("encoder_z2_z1", "decoder_z1_z2")
"""Parts whose categories are labels, which a query does not extend."""
_OF_PROTEINS = ("background_pro_alpha", "background_pro_log_beta")
"""Parameters with a column for each batch that are trained whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeOptions:
    """What of a reference is not trained on a query; scvi-tools' names."""

    unfrozen: bool = False
    """Train everything, whatever the others say."""
    freeze_dropout: bool = False
    """Without dropout."""
    freeze_expression: bool = True
    """The encoders' first layers are trained for covariates alone."""
    freeze_decoder_first_layer: bool = True
    """The decoder's first layer is trained for covariates alone."""
    freeze_batchnorm_encoder: bool = True
    """Neither weights nor running statistics of the encoders' batch norm change."""
    freeze_batchnorm_decoder: bool = False
    """Neither weights nor running statistics of the decoders' batch norm change."""
    freeze_classifier: bool = True
    """Nothing of the classifier changes."""


def transplant(reference: nn.Module, module: nn.Module) -> None:
    """Give a module the weights of a reference, in place; what it knows besides stays new.

    A new category's column goes behind the reference's categories of the same covariate, whichever
    covariates follow. (scvi-tools puts it behind all covariates, so that with a further categorical
    covariate a new batch shifts that covariate's weights.)

    Raises
    ------
    SchemaMismatch
        The module is not the reference with more categories.
    """
    columns = _input_columns(reference, module)
    known, own = reference.state_dict(), module.state_dict()
    if set(known) != set(own):
        strays = sorted(set(known) ^ set(own))
        raise SchemaMismatch(
            f"the query's model has other parts than the reference: {', '.join(strays[:3])}. "
            "Build it with the reference's arguments."
        )
    with torch.no_grad():
        for name, value in own.items():
            source = known[name].to(value.device)
            if name in columns:
                value[:, torch.from_numpy(columns[name]).to(value.device)] = source
                continue
            if any(a > b for a, b in zip(source.shape, value.shape, strict=True)):
                raise SchemaMismatch(
                    f"{name} is {tuple(source.shape)} in the reference and only "
                    f"{tuple(value.shape)} for the query: categories of the reference are missing."
                )
            value[tuple(slice(n) for n in source.shape)] = source


def _input_columns(reference: nn.Module, module: nn.Module) -> dict[str, np.ndarray]:
    """Weight of a layer that covariates enter -> int64 ``[i]``: where the reference's inputs go."""
    known = {path: part for path, part in reference.named_modules() if isinstance(part, FCLayers)}
    columns = {}
    for path, part in module.named_modules():
        old = known.get(path)
        if not isinstance(part, FCLayers) or old is None or old.n_cat_list == part.n_cat_list:
            continue
        for i, old_layer in enumerate(old.fc_layers):
            if part.inject_into_layer(i):
                name = f"{path}.fc_layers.Layer {i}.0.weight"
                n_plain = old_layer[0].in_features - sum(old.n_cat_list)
                columns[name] = _positions(n_plain, old.n_cat_list, part.n_cat_list)
    return columns


def _positions(n_plain: int, old: list[int], new: list[int]) -> np.ndarray:
    """int64: where inputs of ``n_plain`` columns and blocks of categories are among larger ones."""
    starts = n_plain + np.cumsum([0, *new[:-1]])
    blocks = [start + np.arange(n) for start, n in zip(starts, old, strict=True)]
    return np.concatenate([np.arange(n_plain), *blocks]).astype(np.int64)


def freeze(module: nn.Module, options: FreezeOptions, n_known_batches: int | None = None) -> None:
    """Let only that be trained which a query needs: the weights of its covariates.

    Weight decay still acts on the whole of a layer that is trained in part: train with
    ``plan_kwargs={"weight_decay": 0.0}`` to keep the reference as it is.

    Parameters
    ----------
    module
        Changed in place. Parts that it does not use stay without gradient.
    options
        What to freeze.
    n_known_batches
        Of learned vectors of batches, so many are the reference's and are frozen.

    Notes
    -----
    Differently from scvi-tools, vectors of new batches are trained, and a frozen classifier keeps
    its batch norm too.
    """
    if options.unfrozen:
        return
    used = {name for name, p in module.named_parameters() if p.requires_grad}
    free = {"l_encoder"} if options.freeze_classifier else {"l_encoder", "classifier"}
    for name, parameter in module.named_parameters():
        of_proteins = any(part in name for part in _OF_PROTEINS)
        parameter.requires_grad_(_top(name) in free or of_proteins)
    for path, part in list(module.named_modules()):
        if _top(path) in free:
            continue
        if isinstance(part, FCLayers):
            if _top(path) not in (*_OF_LABELS, "classifier"):
                _freeze_layers(part, path, options)
            _freeze_norms(part, path, options)
        elif isinstance(part, Embedding) and n_known_batches is not None:
            part.n_frozen = n_known_batches
            part.weight.requires_grad_(True)
        elif isinstance(part, nn.Dropout) and options.freeze_dropout:
            part.p = 0.0
    for name, parameter in module.named_parameters():
        if name not in used:
            parameter.requires_grad_(False)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _freeze_layers(layers: FCLayers, path: str, options: FreezeOptions) -> None:
    """Train the weights of categories in all layers that they enter; all of a free first layer."""
    is_free = ("encoder" in path and not options.freeze_expression) or (
        "px_decoder" in path and not options.freeze_decoder_first_layer
    )
    n_trained = sum(layers.n_cat_list)
    for i, parts in enumerate(layers.fc_layers):
        if i == 0 and is_free:
            parts[0].requires_grad_(True)
        elif n_trained and layers.inject_into_layer(i):
            parts._modules["0"] = PartlyFrozenLinear.of(parts[0], n_trained)


def _freeze_norms(layers: FCLayers, path: str, options: FreezeOptions) -> None:
    if "decoder" in path:
        frozen = options.freeze_batchnorm_decoder
    elif "encoder" in path:
        frozen = options.freeze_batchnorm_encoder
    else:
        # The classifier's: nothing of it is trained here.
        frozen = True
    for norm in layers.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.requires_grad_(not frozen)
            if frozen:
                # The running statistics stay; a minibatch is still normalised by its own.
                norm.momentum = 0.0
