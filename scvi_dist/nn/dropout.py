"""Dropout whose mask comes from a module's noise stream."""

from torch import Tensor, nn

from scvi_dist.nn.noise import NoiseStream


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that draws its mask from ``noise`` while that is bound to cells."""

    def __init__(self, p: float, noise: NoiseStream) -> None:
        super().__init__(p)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or not self.noise.is_bound:
            return super().forward(x)
        keep = self.noise.bernoulli_keep(x.shape, self.p, x.device, x.dtype)
        # p = 1 keeps nothing; dividing by 1 - p would make that NaN.
        return x * keep if self.p == 1 else x * keep.div_(1 - self.p)
