"""Restricted Boltzmann machine with real visible units, whose variances are learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ppgen.arguments import require_positive, require_share
from ppgen.distributions.boltzmann import Boltzmann
from ppgen.distributions.restricted_boltzmann import shifted
from ppgen.distributions.units import Binary, Gaussian, HiddenUnits, as_floats
from ppgen.models.rbm import RBM


class GaussianRBM(RBM):
    r"""Gaussian-Bernoulli RBM: real visible, binary hidden units; a mixture of 2^H Gaussians.

    .. math:: E(x, h) = \sum_d \frac{x_d^2}{2 \sigma_d^2} - a^\top x - b^\top h - x^\top W h,
              \qquad x \mid h \sim N(\sigma^2 (a + W h), \sigma^2), \quad
              h \mid x \sim \mathrm{Bernoulli}(\sigma(b + W^\top x))

    These are the natural parameters: the energy is linear in them and in ``(x, x^2)``, which keeps
    the variances out of ``h | x`` and makes gradients and annealing those of any other machine.
    The form ``(x - a')^2 / 2 sigma^2 - b.h - (x / sigma^2).W' h`` has ``a' = sigma^2 a`` and
    ``W' = sigma^2 W`` (`loc`, `components`), and differs by a constant. The log partition function
    of this one is

    .. math:: \log Z = \tfrac12 \sum_d \log 2 \pi \sigma_d^2
              + \log \sum_h \exp(b^\top h + \tfrac12 \sum_d \sigma_d^2 (a + W h)_d^2)

    ``sigma^2 = least_scale^2 + exp(raw_variance)``: a density has no upper end, and a column that
    hardly varies would else be worth more than all others. Standardise the data.

    Args:
        visible: D, the number of visible units.
        hidden: H, the number of hidden units.
        weight_scale: standard deviation of the initial weights.
        least_scale: a standard deviation below which no unit falls.
        hidden_units: as of `RBM`. Under Gaussian ones x is a Gaussian with the precision
            ``1 / sigma^2 - W W^T``, and log Z a formula; where that is not positive definite, as
            after too large a step, there is no density, and log Z raises.
    Shapes:
        ``x``: ``(*, D)``, real; ``h``: ``(*, H)`` in {0, 1}; energies ``(*)`` in nats.

    References:
        | Gaussian-Bernoulli RBMs Without Tears (Liao, Kornblith, Ren, Fleet, Hinton, 2022)
        | https://arxiv.org/abs/2210.10318
        | Gaussian-binary restricted Boltzmann machines for modeling natural image statistics
          (Melchior, Wang, Wiskott, 2017)

    Example:
        >>> rbm = GaussianRBM.from_data(torch.randn(100, 3), hidden=2)
        >>> tuple(rbm.marginal().log_prob(torch.zeros(5, 3)).shape)
        (5,)
    """

    raw_variance: Tensor

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        weight_scale: float = 0.01,
        least_scale: float = 0.1,
        hidden_units: HiddenUnits = Binary(),  # noqa: B008 (it has no state)
    ) -> None:
        require_positive(self, least_scale=least_scale)
        require_share(self, least_scale=least_scale)
        super().__init__(visible, hidden, weight_scale=weight_scale, hidden_units=hidden_units)
        self.units, self.least_scale = Gaussian(), least_scale
        start = math.log(1 - least_scale**2)  # sigma = 1
        self.raw_variance = nn.Parameter(torch.full((visible,), start))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set biases and variances to the means and variances of `x`, ``(N, D)``."""
        x, floor = as_floats(x), self.least_scale**2
        variance = x.var(0, correction=0).to(self.raw_variance)
        self.raw_variance.copy_((variance - floor).clamp_min(floor / 100).log())
        self.visible_bias.copy_(x.mean(0) / self.variance)

    @property
    def variance(self) -> Tensor:
        """sigma^2, ``(D,)``."""
        return self.least_scale**2 + self.raw_variance.exp()

    @property
    def loc(self) -> Tensor:
        """Mean of x with all hidden units off, ``(D,)``."""
        return self.variance * self.visible_bias

    @property
    def components(self) -> Tensor:
        """What each hidden unit adds to the mean of x, ``(D, H)``: filters in units of x."""
        return self.variance[:, None] * self.weight

    def visible_natural(self, t: Tensor | None = None) -> Tensor:
        """Of x given h: ``(a + W h, -1 / (2 sigma^2))``, ``(*, 2 D)``."""
        natural = torch.cat([self.visible_bias, -0.5 / self.variance])
        return natural if t is None else shifted(natural, t @ self.weight.T)

    def hidden_marginal(self) -> Boltzmann:
        """The law of h: its units are tied to each other once x is integrated out."""
        if not self.hidden_units.binary:
            raise ValueError(f"the law of {self.hidden_units} under real units is not written")
        pairs = self.weight.T @ self.components
        bias = self.hidden_bias + self.weight.T @ self.loc + pairs.diagonal() / 2
        return Boltzmann(pairs - torch.diag(pairs.diagonal()), bias)

    def by_parameter(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> dict[str, Tensor]:
        linear, square = visible_bias.chunk(2)
        slope = self.raw_variance.detach().exp() / (2 * self.variance.detach().square())
        return {
            **super().by_parameter(weight, linear, hidden_bias),
            "raw_variance": square * slope,
        }
