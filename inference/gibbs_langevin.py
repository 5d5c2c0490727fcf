r"""Gibbs-Langevin sampling of a machine with real visible units.

The hidden side is drawn given the visible, and the visible side then takes a few Langevin steps
towards its law given the hidden: it keeps part of where it was, where block Gibbs draws it anew,

.. math:: x \leftarrow x + \tfrac{\epsilon^2}{2} \sigma^2 \nabla_x \log p(x \mid h)
          + \epsilon \sigma \xi, \qquad \xi \sim N(0, I)

with the step size in units of each unit's standard deviation. Given h the units are independent,
so a Metropolis test for each of them alone makes the kernel exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppgen.arguments import require_positive, require_whole
from ppgen.distributions.units import Gaussian
from ppgen.inference.gibbs import BlockGibbs, UntransformedKernel
from ppgen.types import BoltzmannMachine


@torch.no_grad()
def step(
    x: Tensor, *, machine: BoltzmannMachine, langevin_steps: int, step_size: float, adjusted: bool
) -> Tensor:
    """One update of the visible sides, ``(C, D)``."""
    hidden = machine.sample_hidden(x)
    linear, square = machine.visible_natural(hidden).chunk(2, -1)
    scale = (-0.5 / square).sqrt()
    mean = linear * scale.square()
    y = (x - mean) / scale  # standard normal given h
    shrink = 1 - step_size**2 / 2
    for _ in range(langevin_steps):
        proposal = shrink * y + step_size * torch.randn_like(y)
        if adjusted:
            # log p(y') q(y | y') - log p(y) q(y' | y); what the quadratic forms leave
            ratio = (y.square() - proposal.square()) * step_size**2 / 8
            proposal = torch.where(torch.rand_like(y).log() < ratio, proposal, y)
        y = proposal
    return torch.addcmul(mean, scale, y)


@dataclass(frozen=True)
class Langevin:
    """Gibbs-Langevin as the negative phase of `ContrastiveDivergence`.

    Args:
        langevin_steps: of the visible side for each draw of the hidden.
        step_size: in standard deviations of a unit given the hidden side, in (0, 2).
        adjusted: correct each step by a Metropolis test; without, the variance given the hidden
            side tends to ``sigma^2 / (1 - step_size^2 / 4)``, as in the paper.

    References:
        | Gaussian-Bernoulli RBMs Without Tears (Liao et al., 2022) | https://arxiv.org/abs/2210.10318
    """

    langevin_steps: int = 10
    step_size: float = 0.5
    adjusted: bool = True
    capturable: ClassVar[bool] = True  # it decides nothing on its way (``train(compile=True)``)

    def __post_init__(self) -> None:
        require_whole(self, langevin_steps=self.langevin_steps)
        require_positive(self, step_size=self.step_size)
        if not 0 < self.step_size < 2:
            raise ValueError(
                f"step_size: expected a number in (0, 2), beyond which Langevin steps diverge, got "
                f"{self.step_size}"
            )

    def start(self, machine: BoltzmannMachine, visible: Tensor) -> Tensor:
        if not isinstance(machine.units, Gaussian):
            raise ValueError(
                f"Langevin: expected real visible units (GaussianRBM), these are {machine.units}; "
                "discrete ones have block Gibbs and Tempered"
            )
        return visible

    def move(self, machine: BoltzmannMachine, kept: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        for _ in range(steps):
            kept = step(
                kept,
                machine=machine,
                langevin_steps=self.langevin_steps,
                step_size=self.step_size,
                adjusted=self.adjusted,
            )
        return kept, kept


class GibbsLangevin(UntransformedKernel):
    """The same for ``pyro.infer.MCMC``: draws of ``(chains, D)``, as `BlockGibbs` has them.

    Args:
        machine: what is sampled; its parameters stay as they are.
        start: visible sides to start from, ``(chains, D)``.
        langevin: its options.
        sweeps: updates for each draw.
        site: name of the draws.
    """

    def __init__(
        self,
        machine: BoltzmannMachine,
        start: Tensor,
        *,
        langevin: Langevin | None = None,
        sweeps: int = 1,
        site: str = "x",
    ) -> None:
        inner = BlockGibbs(machine, start, sweeps=sweeps, site=site)  # the same arguments, checked
        self.langevin = Langevin() if langevin is None else langevin
        self.machine, self.sweeps, self.site = machine, sweeps, site
        self.langevin.start(machine, start)
        super().__init__(inner.initial_params)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        side = self.langevin.move(self.machine, params[self.site], self.sweeps)[1]
        return self.kept({self.site: side})
