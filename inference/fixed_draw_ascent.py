"""A guide of few parameters fitted to draws that are fixed once, and then to larger sets of others.

With its draws fixed the ELBO is a plain function, which L-BFGS climbs in some ten calls. The next,
larger set begins where the last one ended. A set that gains less than the tolerance ends it: both
sets are as good as each other, and had nothing in common.

References:
    | Black Box Variational Inference with a Deterministic Objective
    | (Giordano, Ingram & Broderick, 2024) | https://jmlr.org/papers/v25/23-1015.html
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppgen.inference.fixed_draws import matched_normal
from ppgen.inference.hmc import State, init
from ppgen.inference.hmc_starts import climb
from ppgen.inference.stochastic_ascent import Ascent, assign, copied, difference
from ppgen.inference.vi_fit import Fit

_SETS = (64, 128, 256, 512, 1024)  # draws
_ASCENT, _ALMOST = 300, 1e-4  # iterations of a climb; nats that the last of them may gain
_LEVEL = 1e-2  # nats that the slope promises at most where a climb is at its top
_NOTHING = 1e-10  # nats, rounding: there is nothing to climb
_HOPE = 30.0  # tolerances that the largest set may miss by, if gains fall as draws grow
_EVEN = 0.05  # nats by which noise alone may tell two optima apart


@torch.no_grad()
def fixed_draw_ascent(fit: Fit, tolerance: float) -> Ascent | None:
    """Maximise the ELBO in the parameters of the fit's guide, in place.

    The guide goes back to where it began where that is as good by other draws.

    Args:
        fit: the guide in its frame, against the story.
        tolerance: nats that a set of draws has to gain for the next one to be tried.

    Returns:
        The ELBO by each set, nats, and whether the last one gained nothing; None where the end is
        clearly worse than the beginning: then nobody knows where the optimum is.
    """
    objective = _Objective(fit)
    begin = copied(fit.parameters)
    eta = parameters_to_vector(fit.parameters)[None]
    history: list[float] = []
    settled = False
    for count in _SETS:
        objective.noise = matched_normal(count, fit.frame.centre, fit.guide.noise_dim)
        begun = state = init(eta, objective)
        if _promise(begun) > _NOTHING:
            state = climb(objective, eta, iterations=_ASCENT, enough=_ALMOST)
        gain, eta = float(state.log_density - begun.log_density), state.z
        history.append(float(state.log_density))
        # a climb that is stuck gains nothing either
        at_top = _promise(state) < _LEVEL
        settled = count > _SETS[0] and 0 <= gain < tolerance and at_top
        if settled or (count > _SETS[0] and gain * count / _SETS[-1] > _HOPE * tolerance):
            break
    vector_to_parameters(eta[0], fit.parameters)
    gain, _ = difference(fit.bounds, fit.parameters, copied(fit.parameters), begin)
    if gain > 0 or (settled and gain > -_EVEN):
        return Ascent(history, settled, "")
    assign(fit.parameters, begin)
    return Ascent(history, False, "") if gain > -_EVEN else None


def _promise(state: State) -> float:
    """Nats that a step along the gradient gains where the curvature is one, as frames make it."""
    return 0.5 * float(state.gradient.square().sum())


class _Objective:
    """The ELBO by fixed noise at points ``(1, P)`` of the guide's parameters, and its gradient."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.noise = fit.frame.centre.new_empty(0)

    def __call__(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        vector_to_parameters(eta[0], self.fit.parameters)
        # the path derivative alone is that of no function
        elbo, slopes = self.fit.slope(self.noise, self.fit.function, path_gradient=False)
        flat = [
            torch.zeros_like(p).flatten() if slope is None else slope.flatten()
            for p, slope in zip(self.fit.parameters, slopes, strict=True)
        ]
        return elbo[None], torch.cat(flat)[None]
