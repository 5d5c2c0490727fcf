"""Block Gibbs sampling of a Boltzmann machine, as a kernel for ``pyro.infer.MCMC``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ppgen.arguments import require_positive, require_whole
from ppgen.distributions.units import Units
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

    def kept(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same `draws`; a next run of the kernel goes on from them."""
        self.initial_params = draws
        return draws


class BlockGibbs(UntransformedKernel):
    """Alternate the two sides of a Boltzmann machine, all units of a side at once.

    The state of a chain is a whole visible side: ``x`` for an RBM, ``(x, h2, ...)`` for a deep
    machine, of which x is the first `machine.visible` units; x alone would be another chain. All
    rows of `start` move together, as one draw of shape ``(chains, D)``. A second run of the kernel
    goes on where the first ended.

    Args:
        machine: what is sampled; its parameters stay as they are.
        start: visible sides to start from, ``(chains, D)`` in {0, 1}.
        sweeps: block Gibbs updates for each draw.
        site: name of the draws.
        temperature: T of ``exp(-E / T)``, the law that is sampled; below 1 states come nearer to
            the modes. Both sides are drawn at it, which is exact.
        clamp: units that stay at their values in `start`, ``(D,)`` or ``(chains, D)``, bool: the
            others are drawn from their law given these (inpainting, missing pixels, labels), and
            may be NaN in `start`.

    Example:
        >>> import torch; from pyro.infer import MCMC; from ppgen.models.rbm import RBM
        >>> kernel = BlockGibbs(RBM(6, 4), start=torch.zeros(10, 6))
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["x"].shape)
        (3, 10, 6)
    """

    def __init__(
        self,
        machine: BoltzmannMachine,
        start: Tensor,
        *,
        sweeps: int = 1,
        site: str = "x",
        temperature: float = 1.0,
        clamp: Tensor | None = None,
    ) -> None:
        require_sides(machine)
        units = len(machine.visible_bias)
        if start.dim() != 2 or start.shape[1] != units or len(start) == 0:
            raise ValueError(
                f"start: expected shape (chains, {units}) with chains > 0, got {tuple(start.shape)}"
            )
        require_whole(self, sweeps=sweeps)
        require_positive(self, temperature=temperature)
        self.machine, self.sweeps, self.site = machine, sweeps, site
        self.temperature = temperature
        start = start.to(machine.visible_bias.detach())
        self.clamp = None if clamp is None else clamped(clamp, start, machine.units)
        super().__init__({site: known(start, clamp)})

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        side = params[self.site]
        for _ in range(self.sweeps):
            side = self._sweep(side)
            if self.clamp is not None:
                side = torch.where(*self.clamp, side)
        return self.kept({self.site: side})

    @torch.no_grad()
    def _sweep(self, side: Tensor) -> Tensor:
        if self.temperature == 1:
            return self.machine.sweep(side)
        kind, logits = self.machine.hidden_units, self.machine.hidden_logits(side)
        # others than binary have a term h^2 / 2 of their own: h / sqrt(T) is of their kind
        scale = self.temperature if kind.binary else math.sqrt(self.temperature)
        hidden = kind.sample(logits / scale)
        if not kind.binary:
            hidden = scale * hidden
        return self.machine.units.sample(self.machine.visible_natural(hidden) / self.temperature)


def require_sides(machine: object) -> None:
    """Refuse what has no two sides to be drawn in turn."""
    if not isinstance(machine, BoltzmannMachine):
        raise TypeError(
            f"machine: expected one of two sides (an RBM, a DBM, a DBN's `machine`), got "
            f"{type(machine).__name__}; a FullyVisibleBoltzmannMachine has SingleSiteGibbs"
        )


def known(start: Tensor, clamp: Tensor | None) -> Tensor:
    """`start` with 0 for what is missing of it and is to be drawn, ``(chains, D)``.

    Raises:
        ValueError: where it is not finite elsewhere.
    """
    missing = start.isnan()
    if clamp is not None:
        start = start.masked_fill(missing & ~clamp.to(start.device), 0.0)
    if not start.isfinite().all():
        raise ValueError(
            "start: expected finite numbers; where units are missing, clamp the others: "
            "clamp=~start.isnan()"
        )
    return start


class Clamp(NamedTuple):
    """Units of the visible side that stay."""

    units: Tensor  # (D,) or (chains, D), bool
    values: Tensor  # (chains, D)


def clamped(clamp: Tensor, start: Tensor, kind: Units) -> Clamp:
    """Units of this kind clamped at their values in `start`, ``(chains, D)``.

    Raises:
        ValueError: where the mask does not fit, takes a categorical variable apart, or holds a
            unit at what is no value of it.
    """
    if clamp.dtype != torch.bool or clamp.shape not in (start.shape, start.shape[1:]):
        raise ValueError(
            f"clamp: expected a bool tensor of shape {tuple(start.shape[1:])} or "
            f"{tuple(start.shape)}, got {clamp.dtype} of {tuple(clamp.shape)}"
        )
    clamp = clamp.to(start.device)
    variables = kind.variables(start.shape[1]).to(start.device)
    same = variables[1:] == variables[:-1]
    if ((clamp[..., 1:] != clamp[..., :-1]) & same).any():
        raise ValueError(
            "clamp: a categorical variable is clamped in part of its units; clamp all or none of "
            "its group"
        )
    valid = torch.cat([same.new_zeros(1), same]).logical_not().to(start)  # a state of any kind
    kind.require(torch.where(clamp, start, valid), start.shape[1])
    return Clamp(clamp, start)
