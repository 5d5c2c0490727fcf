"""How far a posterior is from reference draws: by cases whose errors are known."""

import math

import numpy as np
import pytest
import torch

from ppgen.accuracy import accuracy
from ppgen.posterior import Posterior

RNG = np.random.default_rng(0)
REFERENCE = {"mu": RNG.normal(size=(10, 1000)), "theta": RNG.normal(size=(10, 1000, 2))}


def posterior(kind="independent", change=lambda x: x, **fields):
    draws = {n: torch.from_numpy(change(x)) for n, x in REFERENCE.items()}
    return Posterior(draws, "some engine", kind, **fields)


def test_the_reference_itself_has_no_error():
    found = accuracy(posterior(), REFERENCE)
    assert found.shift == 0
    assert found.w1 == 0
    assert found.low_ratio == pytest.approx(1)
    assert found.high_ratio == pytest.approx(1)
    assert found.mcse == pytest.approx(0.01)  # 1 / sqrt(10,000)
    assert found.passed
    assert accuracy(posterior("chains"), REFERENCE).passed


def test_a_shift_and_a_scale_are_found_where_they_are():
    reference = {**REFERENCE, "mu": 1000 * REFERENCE["mu"]}
    draws = {n: torch.from_numpy(x.copy()) for n, x in reference.items()}
    draws["mu"] += 250.0  # a quarter of its sd
    middle = draws["theta"][..., 1].mean()
    draws["theta"][..., 1] = middle + 0.5 * (draws["theta"][..., 1] - middle)
    found = accuracy(Posterior(draws, "shifted", "independent"), reference)
    assert found.shift_at == "mu"
    assert found.shift == pytest.approx(0.25, rel=0.03)  # the sd of 10,000 draws is known to .7%
    assert found.ratio_at == "theta[1]"
    assert found.low_ratio == pytest.approx(0.5)
    assert found.w1 == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.05)  # E|x| / 2
    assert not found.passed


def test_chains_that_stand_apart_are_worth_little():
    apart = np.arange(10)[:, None] + np.zeros((10, 1000))
    found = accuracy(
        posterior("chains", lambda x: x + (apart if x.ndim == 2 else 0 * x)), REFERENCE
    )
    assert found.rhat > 1.5
    assert found.ess < 100
    assert not found.passed


def test_an_approximation_is_worth_its_importance_weights():
    weights = torch.zeros(10, 1000)
    found = accuracy(posterior(log_density=weights, log_guide=weights), REFERENCE)
    assert found.ess == pytest.approx(10_000)
    assert found.k_hat == 0
    assert math.isnan(accuracy(posterior(), REFERENCE).k_hat)


def test_a_point_has_no_spread():
    found = accuracy(posterior("point", lambda x: x[:1, :1]), REFERENCE)
    assert found.high_ratio == 0
    assert not found.passed


def test_a_missing_parameter_is_named():
    draws = {"mu": torch.zeros(2, 10), "theta": torch.zeros(2, 10, 1)}
    with pytest.raises(ValueError, match=r"draws of theta\[1\]; the posterior has mu, theta\[0\]"):
        accuracy(Posterior(draws, "x", "independent"), REFERENCE)
