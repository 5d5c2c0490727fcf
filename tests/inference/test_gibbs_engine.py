"""Gibbs: exact posteriors, Geweke's joint test for every story, and HMC's answer."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import MCMC

import ppgen
from ppgen import diagnostics
from ppgen.inference import HMC, NUTS, ConditionalGibbs, Exact, Gibbs
from ppgen.inference.gibbs_engine import State, init, step
from ppgen.models import (
    ConjugateRegression,
    GaussianMixture,
    LogitRegression,
    NormalGamma,
    ProbitRegression,
    ShrinkageRegression,
    eight_schools,
)
from ppgen.models.eight_schools import data as schools
from ppgen.models.gaussian_mixture import data as mixture_data
from ppgen.program import Program
from ppgen.simulation import simulate
from ppgen.story import sandbox

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py

X = torch.tensor([[1.0, -0.4], [1.0, 0.3], [1.0, 1.5], [1.0, -2.0], [1.0, 0.9]]).double()
Y = torch.tensor([0.4, 1.2, 2.7, -3.0, 1.4]).double()
EXACT = {
    "NormalGamma": (NormalGamma(0.5, 0.7, 3.0, 1.5), (Y,)),
    "ConjugateRegression": (ConjugateRegression(1.5, 3.0, 2.0), (X, Y)),
}
GEWEKE = {  # with priors that have second moments, and few data: the chain then mixes
    "NormalGamma": (NormalGamma(0.5, 2.0, 5.0, 4.0), (Y[:3],)),
    "ConjugateRegression": (ConjugateRegression(0.7, 5.0, 4.0), (X, Y)),
    "ShrinkageRegression": (ShrinkageRegression(6.0, 5.0, 5.0, 4.0), (X, Y)),
    "GaussianMixture": (GaussianMixture(2, 2.0, 0.3, 1.0, 5.0, 4.0), (Y[:4],)),
    "ProbitRegression": (ProbitRegression(1.0), (X, (Y > 1).double())),
    "LogitRegression": (LogitRegression(1.5), (X, (Y > 1).double())),
}


@pytest.mark.slow
@pytest.mark.parametrize(("story", "data"), EXACT.values(), ids=EXACT)
def test_finds_the_moments_of_the_exact_posterior(story, data):
    posterior = ppgen.fit(story.model, *data, using=Gibbs())
    exact = ppgen.fit(story.model, *data, using=Exact(draws=100_000)).scalars()
    assert posterior.converged, posterior.headline()
    scalars = posterior.scalars()
    # means of x and of its square: at most 6 comparisons
    z = 5.0
    for name, draws in scalars.items():
        for power in (1, 2):
            ours, theirs = draws**power, exact[name] ** power
            error = math.hypot(
                float(diagnostics.mcse_mean(ours[..., None])[0]), theirs.std() / math.sqrt(1e5)
            )
            assert abs(ours.mean() - theirs.mean()) < z * error, name


def test_logit_regression_has_the_moments_of_its_posterior_on_a_grid():
    story, y = LogitRegression(1.5), (Y > 1).double()
    axis = torch.linspace(-9.0, 9.0, 181)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = -(grid / 1.5).square().sum(-1) / 2
    log_joint += torch.nn.functional.logsigmoid((2 * y - 1) * (grid @ X.mT)).sum(-1)
    exact = log_joint.softmax(0) @ moments_of(grid)
    state, coordinates = init(story, 1000, (X, y)), story.coordinates(X, y)
    kept = []
    for sweep in range(45):
        state, _ = step(state, coordinates)
        if sweep >= 20:
            kept.append(moments_of(state.values["w"]))
    means = torch.stack(kept).mean(0)  # of each chain; these are independent
    z = (means.mean(0) - exact).abs() / means.std(0) * math.sqrt(1000)
    assert z.max() < limit(z), z


def moments_of(w):
    """First and second, ``(*, 5)``, of two coefficients ``(*, 2)``."""
    return torch.cat([w, w.square(), w[..., :1] * w[..., 1:]], -1)


def geweke(story, data, steps):
    """z of each moment: the chain of kernel and ``data | parameters`` against prior draws.

    Both have the joint law of parameters and data where the kernel leaves the posterior invariant.
    """
    program = Program(story.model, *data)

    def simulated(values):
        with sandbox(program.dtype):
            return simulate(story.model, values, data, {})

    names = list(program.sites)
    prior = [simulated({}) for _ in range(2000)]
    state, chain = simulated({}), []
    for _ in range(steps):
        drawn = simulated({name: state[name] for name in names})
        found = (*data[:-1], drawn["y" if "y" in drawn else "x"].reshape(data[-1].shape))
        values = {name: state[name][None] for name in names}
        with sandbox(program.dtype):
            new, _ = step(State(values), story.coordinates(*found))
        state = {name: new.values[name][0] for name in names}
        chain.append(state)

    def moments(rows):
        flat = torch.stack([torch.cat([row[n].flatten() for n in names]) for row in rows])
        return torch.cat([flat, flat.square(), flat[:, :1] * flat[:, 1:]], -1).numpy()

    direct, chained = moments(prior), moments(chain)
    chains = chained.reshape(4, -1, chained.shape[-1])
    error = np.hypot(direct.std(0) / math.sqrt(len(direct)), diagnostics.mcse_mean(chains))
    return np.abs(chained.mean(0) - direct.mean(0)) / error


def limit(z):
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - FAILURE_RATE / len(z))))


@pytest.mark.slow  # 4 to 15 s each
@pytest.mark.parametrize(("story", "data"), GEWEKE.values(), ids=GEWEKE)
def test_geweke_s_joint_test(story, data):
    z = geweke(story, data, 4000)
    assert z.max() < limit(z), z


class OneTooFew(NormalGamma):
    """A planted bug: the prior of mu is forgotten in the shape of the precision."""

    def coordinates(self, x):
        right = super().coordinates(x)

        def tau(q):
            law = right["tau"](q)
            return type(law)(law.concentration - 0.5, law.rate)

        return {**right, "tau": tau}


class MeansForDraws(ShrinkageRegression):
    """A planted bug: coefficients are set to their mean instead of drawn."""

    def coordinates(self, x, y):
        right = super().coordinates(x, y)

        def w(q):
            law = right["w"](q)
            return type(law)(law.mean, precision_matrix=1e6 * law.precision_matrix)

        return {**right, "w": w}


class WrongShare(GaussianMixture):
    """A planted bug: the weights count the points, and forget their prior."""

    def coordinates(self, x):
        right = super().coordinates(x)

        def weights(q):
            law = right["weights"](q)
            return type(law)(law.concentration - self.concentration + 1)

        return {**right, "weights": weights}


class WrongSign(ProbitRegression):
    """A planted bug: the prior of the coefficients is left out."""

    def coordinates(self, x, y):
        return ProbitRegression(self.scale * 3).coordinates(x, y)


PLANTED = {
    "shape": (OneTooFew(0.5, 2.0, 5.0, 4.0), (Y[:3],)),
    "mean": (MeansForDraws(6.0, 5.0, 5.0, 4.0), (X, Y)),
    "prior of weights": (WrongShare(2, 2.0, 0.3, 1.0, 5.0, 4.0), (Y[:4],)),
    "prior of coefficients": (WrongSign(1.0), (X, (Y > 1).double())),
}


@pytest.mark.slow  # 4 to 15 s each
@pytest.mark.parametrize(("story", "data"), PLANTED.values(), ids=PLANTED)
def test_geweke_s_joint_test_catches_a_planted_bug(story, data):
    z = geweke(story, data, 4000)
    assert z.max() > limit(z), z


@pytest.mark.slow  # 10 s
def test_agrees_with_hmc_on_the_mixture_without_its_assignments():
    story, data = GaussianMixture(), mixture_data()
    gibbs = ppgen.fit(story.model, **data, using=Gibbs())
    draws = ppgen.fit(story.model, **data, using=HMC()).draws
    worst = []
    for name, theirs in draws.items():
        for power in (1, 2):
            ours, other = gibbs[name].numpy() ** power, theirs.numpy() ** power
            error = np.hypot(diagnostics.mcse_mean(ours), diagnostics.mcse_mean(other))
            worst.append(np.abs(ours.mean((0, 1)) - other.mean((0, 1))) / error)
    z = np.concatenate([w.ravel() for w in worst])
    assert z.max() < limit(z), z


def test_components_come_in_canonical_order_and_assignments_may_be_kept():
    story, data = GaussianMixture(), mixture_data()
    posterior = ppgen.fit(story.model, **data, using=Gibbs(chains=4, draws=50, keep=("z",)))
    assert bool((posterior["mu"][..., 0].diff() >= 0).all())
    assert "canonical order" in posterior.headline()
    assert posterior["z"].shape == (4, 50, 30)
    # 18 points on the left, 12 on the right, 4 sd apart: the labels follow the order
    assert float(posterior["z"][..., :15].double().mean()) < 0.1
    assert float(posterior["z"][..., -10:].double().mean()) > 0.9
    assert "z" in posterior.deterministic
    assert posterior.predict(story.model, **data, draws=3)["x"].shape == (3, 30, 1)


def test_runs_under_mcmc():
    story, data = EXACT["NormalGamma"]
    kernel = ConditionalGibbs(story.model, *data, chains=500)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["mu"]
    assert draws.shape == (20, 500)
    law = story.exact_posterior(*data)["mu"]
    # chains are independent: the error of the mean is that of 500 chain means
    error = float(draws.mean(0).std()) / math.sqrt(500)
    assert abs(float(draws.mean() - law.mean)) < 4.3 * error
    assert set(mcmc.diagnostics()) >= {"mu", "tau"}


def test_the_same_seed_gives_the_same_draws():
    story, data = EXACT["NormalGamma"]
    one, two = (ppgen.fit(story.model, *data, using=Gibbs(chains=2, draws=5)) for _ in range(2))
    assert torch.equal(one["mu"], two["mu"])


def test_wrong_options_and_stories_are_refused():
    story, data = EXACT["NormalGamma"]
    with pytest.raises(ValueError, match="Gibbs needs a story that declares"):
        ppgen.fit(eight_schools, **schools(), using=Gibbs())
    with pytest.raises(ValueError, match="no auxiliary block 'z'"):
        ppgen.fit(story.model, *data, using=Gibbs(keep=("z",)))
    with pytest.raises(ValueError, match="chains"):
        Gibbs(chains=0)
    with pytest.raises(ValueError, match="sweeps"):
        ConditionalGibbs(story.model, *data, sweeps=0)


@pytest.mark.slow  # 10 s
@pytest.mark.usefixtures("silent")
def test_hmc_and_nuts_are_not_led_astray_by_components_that_change_their_numbers():
    """Two normals 5 apart: chains that began in all orders looked like a funnel, and gave up."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(30) - 3, torch.randn(20) + 2])
    for engine in (HMC(draws=100), NUTS(draws=100)):
        posterior = ppgen.fit(GaussianMixture(2).model, x, using=engine)
        assert posterior.converged, posterior.headline()
        assert bool((posterior["mu"][..., 0].diff() > 0).all())
