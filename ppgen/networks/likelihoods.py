"""What the numbers of a decoder mean: the law of the pixels, and the data it is a law of."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.arguments import require_positive, require_whole, require_widths
from ppgen.data.errors import DataError, check_finite, refuse_where
from ppgen.data.levels import whole_levels
from ppgen.distributions.causal_bernoulli import CausalBernoulli
from ppgen.distributions.discretised_logistic import DiscretisedLogistic


class PixelLikelihood(nn.Module):
    """The law p(x | raw) of D independent pixels; `forward` makes it of a decoder's output.

    Args:
        parameters_each: numbers that it takes for a pixel, P.

    Shapes: raw ``(*, D P)``, the P numbers of a pixel side by side; the law has batch ``(*)`` and
        event ``(D,)``.
    """

    def __init__(self, parameters_each: int = 1) -> None:
        require_whole(self, parameters_each=parameters_each)
        super().__init__()
        self.parameters_each = parameters_each

    def check(self, x: Tensor) -> Tensor:
        """`x` itself; DataError (a ValueError) by row and column where it can have no density."""
        return check_finite(x)

    def network_input(self, x: Tensor) -> Tensor:
        """`x` on the scale that an encoder is given, about -1 to 1."""
        return x


def pixel_law(likelihood: PixelLikelihood, raw: Tensor, visible: int) -> TorchDistribution:
    """p(x | raw) of that many pixels.

    Raises:
        ValueError: where a decoder gives another count of numbers; one alone would stand for all.
    """
    each = likelihood.parameters_each
    if raw.shape[-1] != each * visible:
        raise ValueError(
            f"the decoder gives {raw.shape[-1]} numbers, and {visible} pixels with {each} each "
            f"need {each * visible}"
        )
    return likelihood(raw)


class BernoulliLikelihood(PixelLikelihood):
    """Binary pixels; the decoder gives their log-odds. Grey values have no density here."""

    def forward(self, raw: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=raw).to_event(1)

    def check(self, x: Tensor) -> Tensor:
        try:
            return whole_levels(x)
        except DataError as error:
            if not x.numel():
                raise
            error.args = (
                f"{error}; or model the grey values themselves: "
                "likelihood=ContinuousBernoulliLikelihood() takes any number in [0, 1], "
                "DiscretisedLogisticLikelihood(levels) whole numbers",
            )
            raise


class CausalBernoulliLikelihood(BernoulliLikelihood):
    """Binary images drawn row by row, each pixel told of those above and to the left of it.

    What a code need not say, because the neighbours tell: strokes go on and edges are straight.
    The decoder gives a pixel its log-odds, and what its hidden units add to what they are told.

    Args:
        image_shape: height and width.
        hidden: hidden units of a pixel; the decoder gives one number more for each pixel.
        reach: how many rows up, and columns to either side, a pixel sees.

    References:
        | PixelVAE (Gulrajani et al., 2017)
        | https://arxiv.org/abs/1611.05013
    """

    def __init__(self, image_shape: tuple[int, int], hidden: int = 15, reach: int = 3) -> None:
        require_whole(self, hidden=hidden, reach=reach)
        require_widths(self, image_shape=image_shape)
        super().__init__(1 + hidden)
        self.image_shape = image_shape
        neighbours = 2 * reach * (reach + 1)
        shape = (hidden, reach + 1, 2 * reach + 1)
        self.kernel = nn.Parameter(torch.randn(shape) / neighbours**0.5)
        self.weight = nn.Parameter(torch.randn(hidden) / hidden**0.5)

    def forward(self, raw: Tensor) -> TorchDistribution:
        numbers = raw.unflatten(-1, (-1, self.parameters_each))
        return CausalBernoulli(
            numbers[..., 0], numbers[..., 1:], self.kernel, self.weight, self.image_shape
        )


class ContinuousBernoulliLikelihood(PixelLikelihood):
    """Grey pixels in [0, 1], a density: in other nats than those of binary data.

    References:
        | The continuous Bernoulli (Loaiza-Ganem and Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845
    """

    def forward(self, raw: Tensor) -> TorchDistribution:
        return dist.ContinuousBernoulli(logits=raw).to_event(1)

    def check(self, x: Tensor) -> Tensor:
        outside = ~((x >= 0) & (x <= 1))  # NaN too
        if outside.any().item():
            message = f"{x[outside][0].item():.6g} is not in [0, 1]: divide by the largest level"
            refuse_where(outside, message, "x")
        return x


class GaussianLikelihood(PixelLikelihood):
    """Real pixels of one standard deviation, or with one for each pixel and code.

    A density: its nats change with the unit of x, and grow without limit where x repeats itself.

    Args:
        scale: the standard deviation, its first value where it is learned; None: the decoder gives
            a log variance for each pixel, smoothly bounded.
        learned: whether `scale` is trained, one number for all pixels.
        log_variance_bound: the largest absolute log variance.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202
    """

    def __init__(
        self,
        scale: float | None = 1.0,
        *,
        learned: bool = False,
        log_variance_bound: float = 10.0,
    ) -> None:
        require_positive(self, scale=1.0 if scale is None else scale)
        require_positive(self, log_variance_bound=log_variance_bound)
        super().__init__(2 if scale is None else 1)
        if scale is None and learned:
            raise ValueError("a scale from the decoder is learned anyway: leave `learned` out")
        self.log_variance_bound = log_variance_bound
        log_variance = None if scale is None else torch.tensor(2 * math.log(scale))
        if learned and log_variance is not None:
            self.log_variance: Tensor | None = nn.Parameter(log_variance)
        else:
            self.register_buffer("log_variance", log_variance)

    def forward(self, raw: Tensor) -> TorchDistribution:
        log_variance = self.log_variance
        if log_variance is None:
            raw, free = raw.unflatten(-1, (-1, 2)).unbind(-1)
            bound = self.log_variance_bound
            log_variance = bound * torch.tanh(free / bound)
        return dist.Normal(raw, torch.exp(0.5 * log_variance).expand_as(raw)).to_event(1)


class DiscretisedLogisticLikelihood(PixelLikelihood):
    """Grey pixels as whole levels: a probability, and a neighbour's is near.

    Args:
        levels: the values are 0 to ``levels - 1``.
        log_scale_bound: the largest absolute log of the scale, in units of half the range.
    """

    def __init__(self, levels: int = 256, *, log_scale_bound: float = 7.0) -> None:
        require_whole(self, least=2, levels=levels)
        require_positive(self, log_scale_bound=log_scale_bound)
        super().__init__(2)
        self.levels, self.log_scale_bound = levels, log_scale_bound

    def forward(self, raw: Tensor) -> TorchDistribution:
        centre, free = raw.unflatten(-1, (-1, 2)).unbind(-1)
        half, bound = 0.5 * (self.levels - 1), self.log_scale_bound
        scale = half * torch.exp(bound * torch.tanh(free / bound))
        return DiscretisedLogistic(half * (1 + centre), scale, self.levels).to_event(1)

    def check(self, x: Tensor) -> Tensor:
        return whole_levels(x, levels=self.levels)

    def network_input(self, x: Tensor) -> Tensor:
        return 2 * x / (self.levels - 1) - 1


class _Levels(dist.Categorical):
    """A categorical whose values are numbers, so that it has a mean."""

    @property
    def mean(self) -> Tensor:
        return self.probs @ torch.arange(self.probs.shape[-1]).to(self.probs)


class CategoricalLikelihood(PixelLikelihood):
    """Whole levels, each with a probability of its own.

    Args:
        levels: the values are 0 to ``levels - 1``.
    """

    def __init__(self, levels: int) -> None:
        require_whole(self, least=2, levels=levels)
        super().__init__(levels)
        self.levels = levels

    def forward(self, raw: Tensor) -> TorchDistribution:
        return _Levels(logits=raw.unflatten(-1, (-1, self.levels))).to_event(1)

    def check(self, x: Tensor) -> Tensor:
        return whole_levels(x, levels=self.levels)

    def network_input(self, x: Tensor) -> Tensor:
        return 2 * x / (self.levels - 1) - 1
