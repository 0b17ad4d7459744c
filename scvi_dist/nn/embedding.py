"""Embeddings of categories that can grow."""

from typing import Any

import torch
from torch import Tensor, nn

from scvi_dist.errors import ConfigError


class Embedding(nn.Embedding):
    """``torch.nn.Embedding`` to which categories can be added.

    Attributes
    ----------
    n_frozen
        Rows from the start that are not trained.
    """

    weight: nn.Parameter
    n_frozen: int = 0

    @classmethod
    def extend(
        cls, embedding: "Embedding", init: int | list[int], freeze_prev: bool = True
    ) -> "Embedding":
        """A new embedding with rows after those of ``embedding``, which is left as it is.

        Parameters
        ----------
        embedding
            What to extend.
        init
            Number of new rows, drawn from a standard normal law; or the rows of ``embedding``
            to start them from.
        freeze_prev
            Whether only the new rows are trained.
        """
        old = embedding.weight.detach()
        if isinstance(init, list):
            new = old[init]
        elif isinstance(init, int) and init > 0:
            new = nn.init.normal_(old.new_empty(init, old.shape[1]))
        else:
            raise ConfigError(
                "init is the number of categories to add (at least 1) or the list of those to "
                f"copy; it was {init!r}."
            )
        extended = cls(
            num_embeddings=len(old) + len(new),
            embedding_dim=old.shape[1],
            padding_idx=embedding.padding_idx,
            max_norm=embedding.max_norm,
            norm_type=embedding.norm_type,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            _weight=torch.cat([old, new]),
        )
        extended.n_frozen = len(old) if freeze_prev else 0
        return extended

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors ``[n, embedding_dim]`` of codes ``[n]`` or ``[n, 1]``."""
        codes = codes.flatten()
        vectors = super().forward(codes)
        if not self.n_frozen:
            return vectors
        # A gradient hook would be lost with a pickle or a copy; a detached row is not.
        return torch.where((codes < self.n_frozen).unsqueeze(-1), vectors.detach(), vectors)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take the number of rows from the state: an extended embedding loads into a new one."""
        saved = state_dict.get(f"{prefix}weight")
        if saved is not None and saved.shape[1:] == self.weight.shape[1:]:
            if len(saved) != len(self.weight):
                self.weight = nn.Parameter(self.weight.new_empty(saved.shape))
            self.num_embeddings = len(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
