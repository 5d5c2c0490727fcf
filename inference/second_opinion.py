"""What the importance weights of an approximation say about its own means and widths.

k-hat and IS-ESS do not say which site is wrong, nor by how much: weighted moments do, where the
weights can be trusted. Linear response, for one, is exact for a normal posterior, and widens a
skew one: DADVI's sd of tau in eight schools is half as large again as the posterior's.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ppgen import diagnostics
from ppgen.diagnosis import trustworthy
from ppgen.diagnostics.arrays import varies
from ppgen.inference.psis import REMEDY
from ppgen.inference.verdict import RATIO_FAIL, SHIFT_FAIL
from ppgen.posterior import Posterior


def with_second_opinion(posterior: Posterior) -> Posterior:
    """The same posterior; its messages name the scalar that its weights contradict most, if any.

    A contradiction is what a comparison calls a failure: a mean that is off by 0.3 sd, or an sd
    outside 0.75 to 1.33 of the weighted one. Weights that are worth too little to tell, which an
    approximation far from the posterior has, are a message too.
    """
    note = _contradiction(posterior)
    if note is None:
        return posterior
    return dataclasses.replace(posterior, messages=(*posterior.messages, note))


def _contradiction(posterior: Posterior) -> str | None:
    log_weights = posterior.log_weights
    if log_weights is None:
        return None
    log_weights = np.nan_to_num(log_weights, nan=-np.inf, neginf=-np.inf, posinf=np.inf)
    found = diagnostics.pareto_k(log_weights)
    if not math.isfinite(found.k):
        return None
    if not trustworthy(found, log_weights.size):
        return (
            "its weights are worth too few draws to check its means and widths by: they may be far "
            "off; compare with HMC"
        )
    weights = np.exp(diagnostics.psis(log_weights)[0]).ravel()
    named = {n: x.ravel() for n, x in posterior.scalars().items()}
    worst, badness = None, 1.0
    for name, x in named.items():
        mean, sd = float(x.mean()), float(x.std())
        other = float(weights @ x)
        width = math.sqrt(max(float(weights @ np.square(x - other)), 0.0))
        if not (varies(x) and width > 0.0 and math.isfinite(sd)):
            continue
        shift, ratio = (mean - other) / width, sd / width
        bad = max(abs(shift) / SHIFT_FAIL, abs(math.log(ratio)) / math.log(RATIO_FAIL[1]))
        if bad > badness:
            badness = bad
            worst = f"{name}: sd {sd:.3g} where they say {width:.3g}, mean {mean:.3g}, {other:.3g}"
    if worst is None:
        return None
    return (
        f"its importance weights contradict {worst}: the posterior is skew or has other tails; "
        f"{REMEDY}"
    )
