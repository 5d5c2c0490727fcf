"""Block Gibbs sampling of a Boltzmann machine, as a kernel for ``pyro.infer.MCMC``."""

from __future__ import annotations

from typing import Any

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ppgen.types import BoltzmannMachine


class UntransformedKernel(MCMCKernel):
    """A kernel on the sites' own scale: what ``pyro.infer.MCMC`` asks for besides draws."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        self.transforms: dict[str, Any] = {}  # MCMC asks for it after the last draw
        self._initial_params = start

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params


class BlockGibbs(UntransformedKernel):
    """Alternate the two sides of a Boltzmann machine, all units of a side at once.

    The state of a chain is a whole visible side: ``x`` for an RBM, ``(x, h2, ...)`` for a deep
    machine, of which x is the first `machine.visible` units; x alone would be another chain. All
    rows of `start` move together, as one draw of shape ``(chains, D)``.

    Args:
        machine: what is sampled; its parameters stay as they are.
        start: visible sides to start from, ``(chains, D)`` in {0, 1}.
        sweeps: block Gibbs updates for each draw.
        site: name of the draws.

    Example:
        >>> import torch; from pyro.infer import MCMC; from ppgen.models.rbm import RBM
        >>> kernel = BlockGibbs(RBM(6, 4), start=torch.zeros(10, 6))
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["x"].shape)
        (3, 10, 6)
    """

    def __init__(
        self, machine: BoltzmannMachine, start: Tensor, *, sweeps: int = 1, site: str = "x"
    ) -> None:
        units = len(machine.visible_bias)
        if start.dim() != 2 or start.shape[1] != units or len(start) == 0:
            raise ValueError(
                f"start: expected shape (chains, {units}) with chains > 0, got {tuple(start.shape)}"
            )
        if sweeps < 1:
            raise ValueError(f"sweeps: expected at least 1, got {sweeps}")
        self.machine, self.sweeps, self.site = machine, sweeps, site
        super().__init__({site: start.to(machine.visible_bias.detach())})

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        side = params[self.site]
        for _ in range(self.sweeps):
            side = self.machine.sweep(side)
        return {self.site: side}
