"""The semi-supervised variational autoencoder, M2: most labels are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_nonnegative, require_whole
from ppgen.data.errors import check_rows
from ppgen.models.conditional_vae import ConditionalVAE, one_of
from ppgen.networks.likelihoods import PixelLikelihood
from ppgen.networks.mlp import MLP

MISSING = -1


class SemiSupervisedVAE(PyroModule):
    r"""Variational autoencoder with a class that is seen in some examples.

    .. math::
        y \sim \mathrm{Categorical}(1 / C), \quad z \sim N(0, I), \quad x \sim p(x \mid z, y),
        \quad q(y \mid x) \, q(z \mid x, y)

    Where the label is missing it is summed out exactly: its bound is
    ``sum_y q(y | x) [ELBO(x, y) - log q(y | x)]``. Its ELBO is Pyro's ``TraceEnum_ELBO``, which
    `ELBO` uses by itself.

    Args:
        visible: pixels of an example, D.
        classes: C.
        latent: dimensions of the code, L.
        hidden: widths of the hidden layers of all networks.
        activation: their nonlinearity.
        classification: weight of ``log q(y | x)`` of the labelled examples in training, alpha;
            beyond 0 the objective is no bound. The paper takes a tenth of the number of examples
            over that of labelled ones.
        likelihood: p(x | decoder's output); None: `BernoulliLikelihood`.

    Shapes: ``x``: ``(B, D)``; ``y``: ``(B,)`` whole numbers, -1 where it is missing.

    Raises:
        ValueError: for labels out of range and data without density, by row.

    References:
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014)
        | https://arxiv.org/abs/1406.5298

    Example:
        >>> vae = SemiSupervisedVAE(64, classes=10, latent=8, hidden=(100,))
        >>> vae.classify(torch.zeros(5, 64)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        visible: int,
        classes: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        classification: float = 0.0,
        likelihood: PixelLikelihood | None = None,
    ) -> None:
        require_nonnegative(self, classification=classification)
        require_whole(self, least=2, classes=classes)
        super().__init__()
        self.visible, self.classes, self.classification = visible, classes, classification
        self.conditional = ConditionalVAE(
            visible, classes, latent, hidden, activation=activation, likelihood=likelihood
        )
        self.classifier = MLP((visible, *hidden, classes), activation)

    @pyro_method
    def model(self, x: Tensor, y: Tensor) -> None:
        x = self._data(self.conditional.likelihood.check(check_rows(x)))
        for name, rows, known in self._parts(x, y):
            self._generate(name, rows, known)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor) -> None:
        for name, rows, known in self._parts(self._data(check_rows(x)), y):
            classes = self.classify(rows)
            plate = pyro.plate(f"data, {name}", len(rows))
            if known is None:
                with plate:
                    known = pyro.sample(f"y, {name}", classes, infer={"enumerate": "parallel"})
            code = self.conditional.encode(rows, one_of(known, self.classes).to(rows))
            with plate:
                pyro.sample(f"z, {name}", code)

    def classify(self, x: Tensor) -> TorchDistribution:
        """q(y | x), a categorical."""
        inputs = self.conditional.likelihood.network_input(self._data(x))
        return dist.Categorical(logits=self.classifier(inputs))

    def class_prior(self) -> TorchDistribution:
        """p(y): all classes alike."""
        return dist.Categorical(logits=self.conditional.zero.expand(self.classes))

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log sum_y p(x, y, z_y) / q(z_y | x, y)``, z_y ~ q: ``(B, D) -> (samples, B)``, nats.

        Of examples without labels; each class has a draw of its own, and none is left out.
        """
        x = self._data(self.conditional.likelihood.check(x))
        every = torch.eye(self.classes, dtype=x.dtype, device=x.device)[:, None]
        code = self.conditional.encode(x, every)  # (C, B)
        z = code.rsample(torch.Size([samples]))
        pixels = self.conditional.decode(z, every).log_prob(x)
        each = pixels + self.conditional.prior().log_prob(z) - code.log_prob(z)
        return each.logsumexp(1) + self.class_prior().log_prob(x.new_zeros(()))

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New examples of all classes, ``(count, D)``."""
        return self.conditional.sample(self.class_prior().sample(torch.Size([count])))

    def _generate(self, name: str, x: Tensor, known: Tensor | None) -> None:
        prior, classes = self.conditional.prior(), self.class_prior()
        plate = pyro.plate(f"data, {name}", len(x))
        with plate:
            label = pyro.sample(f"y, {name}", classes, obs=known)
            z = pyro.sample(f"z, {name}", prior)
        pixels = self.conditional.decode(z, one_of(label, self.classes).to(x))
        with plate:
            pyro.sample(f"x, {name}", pixels, obs=x)
        if known is not None and self.classification:
            guess = self.classify(x)
            with poutine.scale(scale=self.classification), plate:
                pyro.sample("classification", guess, obs=known)

    def _parts(self, x: Tensor, y: Tensor) -> list[tuple[str, Tensor, Tensor | None]]:
        """The rows with a label and those without; a part without rows is left out."""
        if y.shape != x.shape[:-1]:
            raise ValueError(
                f"expected a label for each of {len(x)} examples, {MISSING} where it is missing; "
                f"got labels of shape {tuple(y.shape)}"
            )
        seen = y != MISSING
        one_of(torch.where(seen, y, torch.zeros_like(y)), self.classes)
        parts = [("labelled", x[seen], y[seen]), ("unlabelled", x[~seen], None)]
        return [part for part in parts if len(part[1])]

    def _data(self, x: Tensor) -> Tensor:
        return self.conditional._data(x)
