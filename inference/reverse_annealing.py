r"""RAISE: a bound from below for each example, without draws from the machine.

Annealing from a base to a machine in K steps is itself a directed model of the data, ``p_ann``: its
last state is x. A reverse pass that starts at x gives an unbiased estimate of its density,

.. math:: p_\mathrm{ann}(x) = E\Big[\frac{p^*(x)}{Z_0\, w_\mathrm{rev}}\Big], \qquad
          \log p_\mathrm{ann}(x) \ge E \log \frac1M \sum_m \frac{p^*(x)}{Z_0\, w_\mathrm{rev}^{(m)}}

with the weights of the reverse pass of annealed importance sampling. It bounds ``p_ann``, which
tends to the machine as K grows: where annealing misses a mode of the machine, so does ``p_ann``,
and its examples score low, whereas a forward pass alone would make them look better than they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.inference.annealed_importance_sampling import (
    Schedule,
    base_biases,
    base_log_partition,
    reverse_pass,
    schedule,
)
from ppgen.progress import Progress
from ppgen.types import BoltzmannMachine

ROWS = 10_000  # chains at once


@torch.no_grad()
def raise_bounds(
    machine: BoltzmannMachine,
    x: Tensor,
    *,
    chains: int = 10,
    temperatures: Schedule = 1000,
    base: Tensor | None = None,
) -> Tensor:
    """A stochastic lower bound on ``log p_ann(x)`` of each example: ``(N, D) -> (N,)``, nats.

    Args:
        machine: one whose visible side is x: an RBM.
        x: data, ``(N, D)``.
        chains: reverse passes for each example, M; more tighten the bound.
        temperatures: steps of the annealing model, or its betas; see
            `annealed_importance_sampling`.
        base: of the annealing model; see there.

    Raises:
        ValueError: for a deep machine, of whose visible side x is a part.

    References:
        | Accurate and conservative estimates of MRF log-likelihood using reverse annealing
          (Burda, Grosse, Salakhutdinov, 2015) | https://arxiv.org/abs/1412.8566
        | Empirical analysis of sampling based estimators for evaluating RBMs
          (Upadhya & Sastry, 2015), for the weights
    """
    if len(machine.visible_bias) != machine.visible:
        raise ValueError(
            f"RAISE: x is {machine.visible} of the {len(machine.visible_bias)} units of this "
            "machine's visible side; it is written for machines with one hidden layer"
        )
    if chains < 1:
        raise ValueError(f"chains: expected at least 1, got {chains}")
    machine.units.require(x, machine.visible)
    x, betas, base = x.to(machine.visible_bias), schedule(temperatures), base_biases(machine, base)
    log_base = base_log_partition(machine, base)
    parts = x.split(max(1, ROWS // chains))
    found = []
    with Progress("RAISE", len(parts) * (len(betas) - 1)) as progress:
        for part in parts:
            start = part.repeat(chains, 1)
            weights = reverse_pass(machine, base, betas, start, progress).reshape(chains, -1)
            mean = torch.logsumexp(-weights, 0) - math.log(chains)
            found.append(mean - machine.free_energy(part).double() - log_base)
    return torch.cat(found)
