r"""Gibbs sampling one unit after the other, where units are tied to each other.

Each unit is drawn from its law given all others, ``Bernoulli(sigmoid(a_i + sum_j W_ij x_j))``, for
all chains at once. A fixed order leaves the law invariant, though not reversible; a random one,
a unit drawn anew each time, is reversible.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.distributions.units import Binary
from ppgen.inference.gibbs import Clamp, UntransformedKernel, clamped, known
from ppgen.types import PairwiseMachine

Scan = Literal["sequential", "random"]


@torch.no_grad()
def step(
    x: Tensor,
    *,
    machine: PairwiseMachine,
    scan: Scan = "sequential",
    clamp: Clamp | None = None,
) -> Tensor:
    """One sweep, D updates of a unit: ``(C, D) -> (C, D)``; those of `clamp` stay."""
    chains, units = x.shape
    weight, x = machine.weight, x.clone()
    fields = torch.addmm(machine.visible_bias, x, weight)  # kept up to date: D^2 a sweep, not D^3
    thresholds = torch.logit(torch.rand(units, chains, dtype=x.dtype, device=x.device))
    order = range(units) if scan == "sequential" else torch.randint(units, (units,)).tolist()
    for i, threshold in zip(order, thresholds, strict=True):
        new = (threshold < fields[:, i]).to(x)
        if clamp is not None:
            new = torch.where(clamp.units[..., i], x[:, i], new)
        fields.addr_(new - x[:, i], weight[i])
        x[:, i] = new
    return x


class SingleSiteGibbs(UntransformedKernel):
    """Single-site Gibbs as a kernel for ``pyro.infer.MCMC``; all rows of `start` move together.

    Args:
        machine: what is sampled; its parameters stay as they are.
        start: states to start from, ``(chains, D)`` in {0, 1}.
        scan: "sequential", each unit once a sweep, or "random", D units drawn with replacement.
        sweeps: for each draw.
        site: name of the draws.
        clamp: as of `BlockGibbs`.

    References:
        | Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images
          (Geman & Geman, 1984)

    Example:
        >>> from pyro.infer import MCMC
        >>> from ppgen.models import FullyVisibleBoltzmannMachine
        >>> kernel = SingleSiteGibbs(FullyVisibleBoltzmannMachine(6), start=torch.zeros(10, 6))
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["x"].shape)
        (3, 10, 6)
    """

    def __init__(
        self,
        machine: PairwiseMachine,
        start: Tensor,
        *,
        scan: Scan = "sequential",
        sweeps: int = 1,
        site: str = "x",
        clamp: Tensor | None = None,
    ) -> None:
        if not isinstance(machine, PairwiseMachine):
            raise TypeError(
                f"machine: expected a FullyVisibleBoltzmannMachine, got {type(machine).__name__}; "
                "a machine of two sides has BlockGibbs"
            )
        units = machine.visible
        if start.dim() != 2 or start.shape[1] != units or len(start) == 0:
            raise ValueError(
                f"start: expected shape (chains, {units}) with chains > 0, got {tuple(start.shape)}"
            )
        if scan not in get_args(Scan):
            raise ValueError(f"scan: expected one of {', '.join(get_args(Scan))}, got {scan!r}")
        require_whole(self, sweeps=sweeps)
        self.machine, self.sweeps, self.site = machine, sweeps, site
        self.scan: Scan = scan
        start = start.to(machine.visible_bias.detach())
        self.clamp = None if clamp is None else clamped(clamp, start, Binary())
        super().__init__({site: known(start, clamp)})

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        x = params[self.site]
        for _ in range(self.sweeps):
            x = step(x, machine=self.machine, scan=self.scan, clamp=self.clamp)
        return self.kept({self.site: x})
