"""Variational autoencoder with binary latents, whose prior is a Boltzmann machine."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_whole, require_widths
from ppgen.data.errors import check_rows
from ppgen.distributions.units import sample_units
from ppgen.models.base_rate import whole_levels
from ppgen.models.rbm import RBM
from ppgen.networks.mlp import MLP


class RBMVAE(PyroModule):
    r"""Binary code under an RBM prior, Bernoulli pixels.

    .. math:: z \sim p_{\mathrm{RBM}}(z) = e^{-F(z)} / Z, \quad
        x \mid z \sim \mathrm{Bernoulli}(\sigma(f(z))), \quad
        q(z \mid x) = \mathrm{Bernoulli}(\sigma(g(x)))

    With at most 20 units on a side of the prior the pair is normalised, and runs under Pyro's
    ``Trace_ELBO``. Any size trains with ``LeaveOneOut``: score-function gradients with a
    leave-one-out baseline for q, the prior's log Z by persistent chains. ``log_likelihood``
    subtracts the upper estimate of log Z, so that its bound is one.

    Args:
        visible: pixels of an example, D.
        prior: the machine whose visible side is the code z, L = ``prior.visible`` units.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        encoder: another recognition network, ``(*, D) -> (*, L)`` logits.
        decoder: another generating network, ``(*, L) -> (*, D)`` logits.

    Shapes:
        ``x``: ``(B, D)`` and ``z``: ``(B, L)`` in {0, 1}.

    Raises:
        ValueError: when a network gives another count of logits; when `x` is not binary.

    References:
        | Discrete Variational Autoencoders (Rolfe, 2017) | https://arxiv.org/abs/1609.02200

    Example:
        >>> vae = RBMVAE(64, RBM(8, 8), hidden=(30,))
        >>> tuple(vae.sample(3, gibbs_steps=5).shape)
        (3, 64)
    """

    def __init__(
        self,
        visible: int,
        prior: RBM,
        hidden: Sequence[int] = (200,),
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        require_whole(self, visible=visible)
        require_widths(self, hidden=hidden)
        super().__init__()
        if not prior.units.binary:
            raise ValueError(f"prior: expected binary visible units, got {prior.units}")
        self.visible, self.latent, self.prior = visible, prior.visible, prior
        if encoder is None:  # and not where it is false: an empty nn.Sequential is the identity
            encoder = MLP((visible, *hidden, self.latent))
        if decoder is None:
            decoder = MLP((self.latent, *reversed(hidden), visible))
        self.encoder, self.decoder = encoder, decoder

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = self._data(check_rows(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior.marginal())
            pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        code = self.encode(check_rows(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x)."""
        return _independent(self.encoder(self._data(x)), self.latent, "encoder")

    def decode(self, z: Tensor) -> TorchDistribution:
        """The generating distribution p(x | z)."""
        return _independent(self.decoder(z), self.visible, "decoder")

    def log_unnormalised_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x, z) + log Z``, ``(*)``, nats."""
        return self.decode(z).log_prob(x) - self.prior.free_energy(z)

    # Where log p(x) is bounded up to the log Z of the prior

    @property
    def machine(self) -> RBM:
        return self.prior

    @torch.no_grad()
    def machine_side(self, x: Tensor) -> Tensor:
        """Draws of z given x, ``(N, L)``."""
        return self.encode(x).sample()

    def log_unnormalised(self, x: Tensor) -> None:
        """No feasible sum."""
        return None

    @torch.no_grad()
    def unnormalised_log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) + log Z - log q(z | x)``, z ~ q: ``(N, D) -> (samples, N)``, nats."""
        x, q = self._data(x), self.encode(x)
        z = q.sample(torch.Size([samples]))
        return self.log_unnormalised_joint(x, z) - q.log_prob(z)

    @torch.no_grad()
    def sample(self, count: int, *, gibbs_steps: int = 1000) -> Tensor:
        """New examples, ``(count, D)``: long chains of the prior, then the decoder."""
        z = sample_units(self.prior.visible_bias.sigmoid().expand(count, -1))
        for _ in range(gibbs_steps):
            z = self.prior.sweep(z)
        return self.decode(z).sample()

    def _data(self, x: Tensor) -> Tensor:
        return whole_levels(x, self.visible).to(self.prior.visible_bias.dtype)


def _independent(logits: Tensor, units: int, network: str) -> TorchDistribution:
    """Bernoulli units; one logit alone would stand for all of them."""
    if logits.shape[-1] != units:
        raise ValueError(f"the {network} gives {logits.shape[-1]} logits for {units} units")
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
