r"""Learning of a story with binary latents under a Boltzmann machine.

With K draws of the latents and ``f_k = log p(x, z_k) + log Z - log q(z_k | x)``, the gradient of
the evidence lower bound in the guide is that of

.. math:: \frac1K \sum_k \Big(f_k - \frac{1}{K - 1} \sum_{j \ne k} f_j\Big) \log q(z_k \mid x)

(the leave-one-out baseline is independent of ``z_k``, so that the gradient stays unbiased), in the
model that of f, and in the machine minus that of log Z, from persistent chains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.svi_loss import SVILoss, show_parameters
from ppgen.types import MachinePrior


class LeaveOneOut(SVILoss):
    """Loss that trains a story with a Boltzmann machine as its prior (RLOO).

    For SVI, a torch loop and ``train``. The float that comes back is minus the mean of f, nats per
    example: the negative ELBO less log Z, comparable only while the machine stays as it is.

    Args:
        samples: draws of the latents for each example, K, at least 2.
        gibbs_steps: sweeps of the prior's chains a step.
        chains: number of chains; one for each row of the first batch if None.

    References:
        | Buy 4 REINFORCE samples, get a baseline for free! (Kool, van Hoof, Welling, 2019)
        | Training restricted Boltzmann machines using approximations to the likelihood gradient
          (Tieleman, 2008)
    """

    reduction = "mean"

    def __init__(
        self, samples: int = 4, gibbs_steps: int = 5, *, chains: int | None = None
    ) -> None:
        require_whole(self, least=2, samples=samples)
        require_whole(self, gibbs_steps=gibbs_steps, chains=1 if chains is None else chains)
        self.samples, self.gibbs_steps, self.chains = samples, gibbs_steps, chains
        self.state: Tensor | None = None  # visible sides of the prior's chains, (C, L)

    def loss_and_grads(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        story, batch = _checked(model, batch)
        show_parameters(story)
        z, f = self._draw(story, batch)
        with torch.no_grad():
            advantage = (f - f.mean(0)) * self.samples / (self.samples - 1)
            chains = self._moved(story, z)
        score = (advantage * story.encode(batch).log_prob(z)).mean()
        log_partition = -story.machine.free_energy(chains).mean()  # its gradient, not its value
        bound = story.log_unnormalised_joint(batch, z).mean() + score - log_partition
        value = -f.mean().item()
        if not bound.isfinite() or value != value:
            raise ValueError(
                "the bound is not finite: look for missing values in the batch, or use a smaller "
                "learning rate"
            )
        (-bound).backward()
        self.state = chains
        return value

    def loss(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """The number alone: no gradient, and the chains stay where they are."""
        return -self._draw(*_checked(model, batch))[1].mean().item()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the prior's chains."""
        return {} if self.state is None else {"chains": self.state}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.state = tensors.get("chains")

    @torch.no_grad()
    def _draw(self, story: MachinePrior, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, ``(K, B, L)``, and f, ``(K, B)``."""
        q = story.encode(x)
        z = q.sample(torch.Size([self.samples]))
        return z, story.log_unnormalised_joint(x, z) - q.log_prob(z)

    def _moved(self, story: MachinePrior, z: Tensor) -> Tensor:
        chains = self.state
        if chains is None:
            chains = z[0]
            if self.chains is not None:
                chains = chains[torch.randint(len(chains), (self.chains,), device=z.device)]
        for _ in range(self.gibbs_steps):
            chains = story.machine.sweep(chains)
        return chains


def _checked(model: Callable, batch: Tensor) -> tuple[MachinePrior, Tensor]:
    story = getattr(model, "__self__", model)
    if not isinstance(story, MachinePrior):
        raise TypeError(
            f"LeaveOneOut: expected the `model` of a story with a machine as prior (RBMVAE), got "
            f"{model!r}; a Boltzmann machine has ContrastiveDivergence, other stories an ELBO"
        )
    if batch.dim() != 2 or batch.shape[1] != story.visible or len(batch) == 0:
        raise ValueError(
            f"LeaveOneOut: expected a batch of shape (B, {story.visible}) with B > 0, got "
            f"{tuple(batch.shape)}"
        )
    return story, batch.to(story.machine.visible_bias)
