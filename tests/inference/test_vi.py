"""Variational inference against known optima."""

import math
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, pyro_method
from scipy import stats
from torch.distributions import constraints
from torch.distributions.transforms import SigmoidTransform

from ppgen.inference.flow_guides import flow_guide
from ppgen.inference.frame import Frame
from ppgen.inference.guides import full_rank_guide, low_rank_guide, mean_field_guide
from ppgen.inference.mode import Batched
from ppgen.inference.stochastic_ascent import Ascent, Schedule, Step, _rising, ascend
from ppgen.inference.vi import VI, _disagreement
from ppgen.inference.vi_fit import Fit
from ppgen.inference.vi_pyro import _Fit
from ppgen.inference.vi_start import _frames, low_rank_optimum
from ppgen.models.rbm import RBM
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress
from ppgen.story import sandbox

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # its two-sided normal quantile: 4.26
# A fit that stops within the tolerance of 1e-3 nats of the optimum has a mean within
# sqrt(2 * 1e-3) = .045 sd and a log sd within sqrt(1e-3) = .032; the draws add Z / sqrt(4000).
SHIFT = 0.045 + Z / math.sqrt(4000)
STRETCH = 0.032 + Z / math.sqrt(2 * 4000)


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


class Conjugate:
    """A regression whose posterior is normal, badly scaled and correlated."""

    def __init__(self):
        self.x = torch.randn(30, 3) * torch.tensor([1.0, 0.01, 50.0])
        self.x[:, 1] += 0.02 * self.x[:, 0]  # correlation about .9
        self.y = self.x @ torch.tensor([1.0, -20.0, 0.03]) + 0.5 * torch.randn(30)
        self.precision = self.x.T @ self.x / 0.25 + torch.eye(3) / 100
        self.mean = torch.linalg.solve(self.precision, self.x.T @ self.y / 0.25)
        marginal = 100.0 * self.x @ self.x.T + 0.25 * torch.eye(30)
        self.evidence = dist.MultivariateNormal(torch.zeros(30), marginal).log_prob(self.y)

    def fit(self, **options):
        return VI(**options).run(regression, self.x, self.y)


def test_mean_field_finds_the_known_optimum():
    case = Conjugate()
    posterior = case.fit()
    beta = posterior["beta"][0]
    sd = case.precision.diagonal().rsqrt()
    assert ((beta.mean(0) - case.mean) / sd).abs().max() < SHIFT
    assert (beta.std(0) / sd).log().abs().max() < STRETCH
    # KL(q || p) of the optimum: (sum log P_ii - log |P|) / 2
    gap = 0.5 * (case.precision.diagonal().log().sum() - torch.logdet(case.precision))
    weights = (posterior.log_density - posterior.log_guide).flatten()
    error = Z * weights.std() / math.sqrt(4000) + 2e-3
    assert (weights.mean() - (case.evidence - gap)).abs() < error
    assert posterior.converged


@pytest.mark.slow
@pytest.mark.parametrize("guide", [full_rank_guide(), autoguide.AutoMultivariateNormal])
def test_full_rank_is_exact_on_a_normal_posterior(guide):
    case = Conjugate()
    posterior = case.fit(guide=guide)
    weights = posterior.log_density - posterior.log_guide
    assert (weights.mean() - case.evidence).abs() < 0.01
    assert weights.std() < 0.01
    beta = posterior["beta"][0]
    white = torch.linalg.cholesky(case.precision).T @ (beta - case.mean).T
    assert white.mean(1).abs().max() < SHIFT
    assert (white @ white.T / 4000 - torch.eye(3)).abs().max() < 0.1 + Z * math.sqrt(2 / 4000)
    assert posterior.diagnosis()["relative_is_ess"] > 0.99


@pytest.mark.slow
def test_low_rank_with_enough_columns_is_exact():
    case = Conjugate()
    posterior = case.fit(guide=low_rank_guide(3))
    assert abs(posterior.diagnosis()["elbo"] - float(case.evidence)) < 0.02
    assert posterior.converged


def factors(columns):
    """A covariance of five sites and that many columns, correlations up to .999."""
    scale = torch.tensor([0.01, 1.0, 3.0, 0.2, 40.0])
    columns = 30.0 * torch.randn(5, columns)
    return scale[:, None] * (torch.eye(5) + columns @ columns.mT) * scale


def test_the_default_rank_is_the_root_of_the_dimensions():
    for rank, dim, columns in ((None, 9, 3), (None, 1, 1), (5, 9, 5), (5, 3, 3)):
        assert low_rank_guide(rank).build(dim).columns.shape == (dim, columns)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_low_rank_normal_begins_as_the_nearest_to_the_local_one(columns):
    covariance = factors(columns)
    log_scale, found = low_rank_optimum(covariance, columns)
    scale = log_scale.exp()
    normal = scale[:, None] * (torch.eye(5) + found @ found.mT) * scale
    ratio = torch.linalg.solve(covariance, normal)
    divergence = 0.5 * (ratio.trace() - torch.logdet(ratio) - 5)
    assert -1e-9 < divergence < 0.1  # nats; of independent normals 3.8 and 6.4


def test_a_mode_at_a_wall_leaves_a_frame_to_start_from():
    """An exponential law: beyond the wall there is no density, and at it no curvature."""

    def value_and_grad(z):
        beyond = (z < 0).any(-1)
        value = torch.where(beyond, torch.nan, -z.sum(-1))
        return value, torch.where(beyond[:, None], torch.nan, -torch.ones_like(z))

    (frame,) = _frames(value_and_grad, torch.zeros(2), dense=True)
    assert frame.centre.tolist() == [0.0, 0.0]
    assert frame.factor.isfinite().all()


@pytest.mark.slow  # 2 s
def test_a_low_rank_normal_fits_badly_scaled_sites():
    covariance = factors(2)

    def story():
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(5), covariance))

    posterior = VI(guide=low_rank_guide(2), max_steps=2000).run(story)
    ratio = posterior["x"][0].std(0) / covariance.diagonal().sqrt()
    assert posterior.converged
    assert ratio.log().abs().max() < STRETCH


FAMILIES = [mean_field_guide(), full_rank_guide(), low_rank_guide(2), flow_guide(layers=2)]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", [True, False])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_recorded_step_is_the_step(family, path, compile):
    case = Conjugate()
    function = Batched(Program(regression, case.x, case.y), 8)
    flat = family.build(3).double()
    for parameter in flat.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    plain, recorded = (
        Fit(flat, Frame(case.mean, torch.tensor([0.5, 1.0, 2.0])), function, path) for _ in "ab"
    )
    recorded.record(compile=compile)
    assert recorded._recorded is not None
    assert (recorded.seconds_compiling > 0) == compile
    for parameter in flat.parameters():  # they are inputs, not constants
        parameter.data += 0.2 * torch.randn_like(parameter)
    z, log_q = plain.sample(5)
    torch.testing.assert_close(plain.log_prob(z), log_q, rtol=1e-8, atol=1e-8)
    steps = []
    for fit in (plain, recorded):
        torch.manual_seed(5)
        steps.append(fit.step(8))
    (slopes, value), (found, elbo) = steps
    assert elbo == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(list(found), list(slopes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["affine", "spline", "autoregressive"])
def test_a_flow_with_networks_starts_as_the_standard_normal(kind):
    guide, noise = flow_guide(kind).build(3).double(), torch.randn(20, 3)
    u, log_q = guide(noise)
    assert torch.allclose(u, noise)
    assert torch.allclose(log_q, dist.Normal(0.0, 1.0).log_prob(noise).sum(-1))


def test_the_bounds_of_an_exact_guide_are_the_evidence():
    def story():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("evidence", torch.tensor(3.0))

    frame = Frame(torch.zeros(2), torch.ones(2))
    fit = Fit(mean_field_guide().build(2).double(), frame, Batched(Program(story), 8), True)
    bounds = fit.bounds()
    torch.testing.assert_close(bounds, torch.full_like(bounds, 3.0))
    assert fit.spread() < 1e-9


def test_compiling_is_for_families_on_all_rows():
    case = Conjugate()
    with pytest.raises(ValueError, match="all rows at once"):
        VI(compile=True, batch_size=2).run(regression, case.x, case.y)
    with pytest.raises(ValueError, match="is for families"):
        VI(compile=True, guide=lambda x, y: None).run(regression, case.x, case.y)


@pytest.mark.slow
@pytest.mark.parametrize("guide", [mean_field_guide(), full_rank_guide(), low_rank_guide(2)])
def test_the_path_derivative_is_an_unbiased_gradient(guide):
    case = Conjugate()
    program = Program(regression, case.x, case.y)
    flat = guide.build(3).double()
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    frame = Frame(case.mean, case.precision.diagonal().rsqrt())
    function = Batched(program, 16)

    def gradients(path):
        fit = Fit(flat, frame, function, path)
        rows = [
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(fit.step(16).gradients, fit.parameters, strict=True)
                ]
            )
            for _ in range(300)
        ]
        return torch.stack(rows)

    path, total = gradients(True), gradients(False)
    error = (path.var(0) / 300 + total.var(0) / 300).sqrt()
    # up to 15 components
    limit = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - FAILURE_RATE / 30)))
    assert ((path.mean(0) - total.mean(0)).abs() <= limit * error + 1e-9).all()


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(0.5 * x * x, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "layers"),
    [("affine", 4), ("autoregressive", 4), ("planar", 16), ("sylvester", 8)],
)
def test_a_flow_bends_where_a_normal_cannot(transform, layers):
    normal = VI(guide=full_rank_guide()).run(banana).diagnosis()
    flow = VI(guide=flow_guide(transform, layers=layers)).run(banana).diagnosis()
    # log Z = 0: the ELBO is minus the KL divergence
    assert normal["elbo"] < -0.5
    assert -0.1 < flow["elbo"] < 0.02
    assert flow["relative_is_ess"] > 0.7


@pytest.mark.slow
def test_a_flow_widens_the_scale_of_a_centred_hierarchy():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def schools():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    normal, flow = VI().run(schools), VI(guide=flow_guide()).run(schools)
    # the reference's sd of log tau is about 1.14; mean-field reaches about .21 of it
    assert normal["tau"].log().std() < 0.35
    assert flow["tau"].log().std() > 0.6
    assert flow.diagnosis()["elbo"] > normal.diagnosis()["elbo"] + 1


# -- Pyro guides -------------------------------------------------------------------------------


def waiting(k):
    rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Exponential(rate), obs=k)


WAITS = torch.tensor([0.5, 1.5, 0.2])
# posterior Gamma(2 + 3, 3 + 2.2); evidence of the conjugate pair
WAITS_EVIDENCE = 2 * math.log(3) - math.lgamma(2) + math.lgamma(5) - 5 * math.log(5.2)


def gamma_guide(k):
    a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(a, b))


@pytest.mark.slow
def test_a_hand_written_guide_finds_the_conjugate_posterior():
    store = pyro.get_param_store()
    posterior = VI(guide=gamma_guide).run(waiting, WAITS)
    weights = posterior.log_density - posterior.log_guide
    # with q = p each weight is the evidence, if the Jacobian is in both
    assert (weights.mean() - WAITS_EVIDENCE).abs() < 0.01
    assert weights.std() < 0.1
    assert posterior["rate"].mean() == pytest.approx(5 / 5.2, rel=0.05)
    assert posterior.converged
    assert not list(store.keys())  # the fit leaves nothing behind


def test_many_draws_of_a_guide_at_once_have_its_laws():
    """Random numbers come out of place under vmap, whatever way a distribution asks for them."""
    laws = {
        "a": dist.Normal(torch.tensor([1.0, 2.0]), 3.0).to_event(1),
        "b": dist.Uniform(-1.0, 2.0),
        "c": dist.Exponential(4.0),
        "d": dist.Laplace(1.0, 2.0),
    }

    def guide():
        shift = pyro.param("shift", torch.tensor(0.0))
        for name, law in laws.items():
            pyro.sample(name, law)
        pyro.sample("e", dist.Normal(shift, 1.0))

    def story():
        for name, law in (*laws.items(), ("e", dist.Normal(0.0, 1.0))):
            pyro.sample(name, law)

    with sandbox(torch.float64):
        fit = _Fit(story, guide, (), {}, Program(story), particles=1)
        values, log_q = fit.sample(2000)
    parts = [law.log_prob(values[name]) for name, law in laws.items()]
    parts.append(dist.Normal(0.0, 1.0).log_prob(values["e"]))
    torch.testing.assert_close(log_q, sum(parts).detach())
    known = {
        "a": stats.norm([1.0, 2.0], 3.0), "b": stats.uniform(-1, 3), "c": stats.expon(scale=0.25),
        "d": stats.laplace(1, 2), "e": stats.norm(),
    }  # fmt: skip
    for name, law in known.items():
        ranks = law.cdf(values[name].detach().numpy()).reshape(2000, -1)
        for column in ranks.T:
            assert stats.kstest(column, "uniform").pvalue > FAILURE_RATE / 6


def test_an_earlier_fit_is_neither_a_start_nor_touched():
    with torch.no_grad():
        for name in ("a", "b"):
            pyro.param(name, torch.tensor(1e3), constraint=constraints.positive)
    posterior = VI(guide=gamma_guide, draws=10, max_steps=1).run(waiting, WAITS)
    assert posterior["rate"].std() > 0.1  # Gamma(1000, 1000) has .03; the guide's own start .7
    assert pyro.param("a").item() == pytest.approx(1e3)


def exact_guide(k):
    shift = pyro.param("shift", torch.tensor(0.0))  # no effect: the guide is exact already
    pyro.sample("rate", dist.Gamma(5.0, 5.2 + 0 * shift))


def test_the_log_density_of_a_guide_is_on_the_unconstrained_scale():
    posterior = VI(guide=exact_guide, draws=50, max_steps=1).run(waiting, WAITS)
    weights = posterior.log_density - posterior.log_guide
    assert torch.allclose(weights, torch.full_like(weights, WAITS_EVIDENCE), atol=1e-9)


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    @pyro_method
    def guide(self, k):
        pyro.sample("rate", dist.LogNormal(self.loc, self.scale))


@pytest.mark.slow
def test_two_guides_of_one_class_both_train():
    # the optimum is the normal on the log scale of KL-best moments, near log(5 / 5.2)
    for _ in range(2):
        owner = ModuleGuide()
        VI(guide=owner.guide, draws=10, max_steps=300).run(waiting, WAITS)
        assert abs(float(owner.loc.detach()) + 0.14) < 0.1
        assert 0.3 < float(owner.scale.detach()) < 0.6


def test_the_gradient_of_a_reparameterised_guide_is_that_of_the_elbo_in_closed_form():
    def guide(k):
        scale = pyro.param("log_scale", torch.tensor(-0.4)).exp()
        pyro.sample("rate", dist.LogNormal(pyro.param("loc", torch.tensor(0.2)), scale))

    with sandbox(torch.float64):
        fit = _Fit(waiting, guide, (WAITS,), {}, Program(waiting, WAITS), particles=200)
        assert fit.function is not None
        log_scale, loc = (p.detach().clone().requires_grad_() for p in fit.parameters)
        steps = [fit.step() for _ in range(20)]
        assert fit.gradients == 20 * 200
        evaluated = fit.evaluate()
    mean = (loc + (2 * log_scale).exp() / 2).exp()  # of the rate, whose prior is 9 r exp(-3 r)
    joint = math.log(9) + (1 + len(WAITS)) * loc - (3 + WAITS.sum()) * mean
    elbo = joint + loc + log_scale + 0.5 * math.log(2 * math.pi * math.e)
    truth = torch.stack(torch.autograd.grad(elbo, (log_scale, loc)))
    slopes = torch.stack([torch.stack(gradients) for gradients, _ in steps])
    elbos = torch.tensor([value for _, value in steps])
    for found, expected in ((slopes, truth), (elbos, elbo.detach()), (evaluated, elbo.detach())):
        error = found.std(0) / len(found) ** 0.5
        assert bool((error < 0.3).all())  # nats
        assert bool(((found.mean(0) - expected).abs() < 6.2 * error).all())  # t of 19, three times


def test_the_parameters_of_the_story_are_not_trained():
    layer = torch.nn.Linear(1, 1).double()
    before = layer.weight.detach().clone()

    def story(y):
        pyro.module("layer", layer)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(layer(z), 1.0).to_event(1), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.zeros(1))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    VI(guide=guide, draws=10, max_steps=50).run(story, torch.ones(1))
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None


def test_other_autoguides_are_fitted_too():
    case = Conjugate()
    posterior = case.fit(guide=autoguide.AutoGaussian, max_steps=1, draws=200)
    weights = posterior.log_density - posterior.log_guide
    assert torch.isfinite(weights).all()
    assert posterior["beta"].shape == (1, 200, 3)
    assert posterior.options["guide"] == "AutoGaussian"


def test_sites_that_do_not_match_are_named():
    def guide(k):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("speed", dist.Normal(loc, 1.0))

    with pytest.raises(ValueError, match=r"lacks \['rate'\].*no \['speed'\]"):
        VI(guide=guide).run(waiting, WAITS)


def test_sites_of_another_shape_are_named():
    def guide(k):
        pyro.sample("rate", dist.LogNormal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"'rate': the guide draws shape \(2,\), the story \(\)"):
        VI(guide=guide).run(waiting, WAITS)


def test_a_guide_without_parameters_is_refused():
    def guide(k):
        pyro.sample("rate", dist.Gamma(5.0, 5.2))

    with pytest.raises(ValueError, match="no parameters"):
        VI(guide=guide).run(waiting, WAITS)


def test_a_subsampled_plate_works_with_a_hand_written_guide():
    y = 3 + torch.randn(50)

    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y), subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def guide(y):
        loc = pyro.param("loc", torch.tensor(3.0))
        pyro.sample("mu", dist.Normal(loc, 0.1))

    posterior = VI(guide=guide, max_steps=20, particles=1, draws=20).run(story, y)
    assert "k-hat" in posterior.headline()
    assert posterior.log_guide is None
    assert posterior["mu"].shape == (1, 20)


def test_subsampled_rows_give_unbiased_estimates_of_the_elbo_of_all():
    """Many particles at once, each with rows of its own, against the ELBO in closed form."""
    y = 3 + torch.randn(50)
    loc, scale = torch.tensor(2.8), 0.3

    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y), subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", loc.clone()), scale))

    with sandbox(torch.float64):
        fit = _Fit(story, guide, (y,), {}, None, particles=40)
        assert fit.paired
        elbos = fit.evaluate()
        slopes = torch.stack([fit.step().gradients[0] for _ in range(20)])
    prior = dist.Normal(0.0, 10.0)
    expected = -torch.distributions.kl_divergence(dist.Normal(loc, scale), prior)
    expected += dist.Normal(loc, 1.0).log_prob(y).sum() - len(y) * scale**2 / 2
    slope = (y - loc).sum() - loc / 100
    for found, truth in ((elbos, expected), (slopes, slope)):
        error = found.std() / len(found) ** 0.5
        assert float((found.mean() - truth).abs()) < 4.3 * float(error)
    assert elbos.std() > 10  # rows differ between particles


def test_the_gradient_of_a_guide_with_discrete_sites_is_that_of_the_enumerated_elbo():
    y = torch.tensor([1.0, 2.5, 0.3])

    def story(y):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + 2 * z, 1.0), obs=y)

    def guide(y):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))
        loc = pyro.param("loc", torch.tensor(0.5)) + z * pyro.param("step", torch.tensor(-1.0))
        pyro.sample("mu", dist.Normal(loc, 0.6))

    with sandbox(torch.float64):
        fit = _Fit(story, guide, (y,), {}, Program(story, y), particles=16)
        assert fit.paired
        logit, loc, step = fit.parameters
        share, expected = torch.sigmoid(logit), torch.zeros(())
        for z, mass in ((0.0, 1 - share), (1.0, share)):
            at, prior = loc + z * step, dist.Normal(0.0, 2.0)
            inside = -torch.distributions.kl_divergence(dist.Normal(at, 0.6), prior)
            inside = inside + dist.Normal(at + 2 * z, 1.0).log_prob(y).sum() - len(y) * 0.6**2 / 2
            prior_of_z = dist.Bernoulli(0.3).log_prob(torch.tensor(z))
            expected = expected + mass * (inside + prior_of_z - mass.log())
        truth = torch.stack(torch.autograd.grad(expected, fit.parameters))
        steps = torch.stack([torch.stack(fit.step().gradients) for _ in range(60)])
        elbos = fit.evaluate()
    error = steps.std(0) / len(steps) ** 0.5
    assert bool(((steps.mean(0) - truth).abs() < 4.6 * error).all())  # three of them
    assert float((elbos.mean() - expected.detach()).abs()) < 4.3 * float(elbos.std()) / 40


def test_scores_of_the_rows_that_were_taken_are_not_scaled():
    """Rows that are alike: the gradient of all is as many times that of one."""
    y = torch.full((20,), 1.4)

    def story(y):
        with pyro.plate("data", len(y), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y[rows])

    def guide(y):
        logit = pyro.param("logit", torch.tensor(0.4))
        with pyro.plate("data", len(y), subsample_size=5):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    with sandbox(torch.float64):
        fit = _Fit(story, guide, (y,), {}, None, particles=16)
        assert fit.paired
        (logit,) = fit.parameters
        steps = torch.stack([fit.step().gradients[0] for _ in range(60)])
    q, z = torch.sigmoid(logit), torch.tensor([0.0, 1.0])
    share = torch.stack([1 - q, q])
    joint = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(y[0])
    (truth,) = torch.autograd.grad(len(y) * (share * (joint - share.log())).sum(), logit)
    assert float((steps.mean() - truth).abs()) < 4.3 * float(steps.std()) / len(steps) ** 0.5


def test_a_guide_of_rows_is_fitted_with_rows_of_its_own_for_each_particle():
    y = torch.cat([torch.full((20,), -1.0), torch.full((20,), 1.0)])

    def story(y):
        with pyro.plate("data", len(y), subsample_size=8) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def guide(y):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(y), subsample_size=8) as rows:
            pyro.sample("z", dist.Normal(slope * y[rows], math.sqrt(0.5)))

    with sandbox(torch.float64):
        fit = _Fit(story, guide, (y,), {}, None, particles=8)
        assert fit.paired
        (slope,) = fit.parameters
        with torch.no_grad():
            slope.fill_(0.5)  # the exact posterior of each row
        # rows are alike, so that any eight of them, counted five times, give the evidence of all
        evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(y).sum()
        assert torch.allclose(fit.evaluate(), evidence, atol=1e-5)


@pytest.mark.slow
def test_discrete_sites_are_summed_out_under_a_hand_written_guide():
    def story(x):
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(4 * k, 0.1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        base = dist.Normal(loc, scale)
        pyro.sample("weight", dist.TransformedDistribution(base, SigmoidTransform()))

    x = torch.tensor([4.0, 4.0, 4.0, 0.0])  # three ones, one zero: Beta(4, 2)
    posterior = VI(guide=guide).run(story, x)
    assert posterior["weight"].mean() == pytest.approx(4 / 6, abs=0.05)
    # the integral of w^3 (1 - w) is 1 / 20; a logit-normal comes within .05 nats of Beta(4, 2)
    evidence = -math.log(20) + float(dist.Normal(0.0, 0.1).log_prob(torch.zeros(4)).sum())
    assert evidence - 0.05 < posterior.diagnosis()["elbo"] < evidence + 0.02


def beta_guide(heads):
    a = pyro.param("a", torch.tensor(4.0), constraint=constraints.positive)
    pyro.sample("weight", dist.Beta(a, 2.0))


def test_what_vmap_cannot_draw_goes_through_pyros_own_elbo():
    def story(heads):
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        pyro.sample("heads", dist.Binomial(4, weight), obs=heads)

    guide = VI(guide=beta_guide, max_steps=2, draws=20, learning_rate=1e-9)
    posterior = guide.run(story, torch.tensor(3.0))
    # the guide starts at the posterior, Beta(4, 2); the evidence of each count is 1 / 5
    weights = posterior.log_density - posterior.log_guide
    assert torch.allclose(weights, torch.full_like(weights, -math.log(5)), atol=1e-6)


# -- stopping ----------------------------------------------------------------------------------


def test_too_few_steps_are_not_convergence():
    posterior = Conjugate().fit(guide=flow_guide(), max_steps=20)
    assert not posterior.converged
    assert "max_steps" in posterior.headline()
    assert len(posterior.history["elbo"]) == 20


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(monkeypatch):
    monkeypatch.setattr(Progress, "advance", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    posterior = Conjugate().fit(guide=flow_guide())
    assert not posterior.converged
    assert "interrupted after 100 steps" in posterior.headline()
    assert posterior.count == 4000


def test_a_start_beside_the_optimum_is_left_however_low_the_learning_rate(monkeypatch):
    """Fixed draws that mislead: the steps after them have to notice."""
    case = Conjugate()

    def misled(fit, tolerance):
        fit.guide.begin(torch.tensor([0.3, -0.3, 0.3]), torch.tensor([0.3, -0.2, 0.2]))
        return Ascent([0.0], False, "")  # about .3 nats

    monkeypatch.setattr("ppgen.inference.vi.fixed_draw_ascent", misled)
    posterior = case.fit()
    assert posterior.converged
    beta = posterior["beta"][0]
    sd = case.precision.diagonal().rsqrt()
    assert ((beta.mean(0) - case.mean) / sd).abs().max() < SHIFT
    assert (beta.std(0) / sd).log().abs().max() < STRETCH


def test_restarts_that_disagree_are_not_convergence():
    class Fake:
        def __init__(self, elbo):
            self.elbo = elbo

    assert "do not agree: ELBOs -1.00, -3.00" in _disagreement([Fake(-3.0), Fake(-1.0)])
    assert not _disagreement([Fake(-1.0), Fake(-1.05)])


def run_ascent(objective, evaluate, parameter, max_steps=5000):
    schedule = Schedule(0.05, max_steps, 1e-3)
    return ascend(
        objective, evaluate, [parameter], schedule, Interrupt(), Progress("test", max_steps)
    )


def test_the_ascent_settles_through_noise_that_hides_the_slope():
    x = torch.tensor(12.0, requires_grad=True)  # 240 steps of the first rate away

    def value():
        return -0.5 * x.square() + 1000 * torch.randn(())  # noise in the value, not the gradient

    ascent = run_ascent(
        lambda: Step([-x.detach()], float(value().detach())), lambda: torch.stack([value()] * 2), x
    )
    assert ascent.settled
    # within the tolerance of the optimum: x^2 / 2 < 1e-3, and as much again for the last level
    assert abs(float(x.detach())) < math.sqrt(4e-3)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_windows_rise_where_their_slope_exceeds_its_standard_error(share):
    """Quantiles of a normal around a line: medians err by sqrt(pi / 2) sd / sqrt(n)."""
    sd, size = 3.0, 1001
    grid = dist.Normal(0.0, sd).icdf((torch.arange(size) + 0.5) / size)
    error = math.sqrt(math.pi / 2 / size) * sd / math.sqrt(2)  # of a slope of three windows
    windows = [(-700 + share * error * k + grid).tolist() for k in range(6)]
    assert _rising(windows, tolerance=1e-6) == (share > 1)


def test_an_objective_that_is_not_finite_is_reported():
    x = torch.tensor(1.0, requires_grad=True)
    ascent = run_ascent(lambda: Step([x * torch.nan], math.nan), lambda: torch.zeros(1), x)
    assert not ascent.settled
    assert "not finite" in ascent.message


@pytest.mark.parametrize(("slope", "value"), [(math.nan, 0.0), (1.0, -math.inf)])
def test_a_step_that_is_not_finite_is_left_out(slope, value):
    x = torch.tensor(1.0, requires_grad=True)
    calls = iter(range(100_000))

    def objective():
        if next(calls) == 0:
            return Step([torch.tensor(slope)], value)
        return Step([-x.detach()], float(-x.detach().square() / 2))

    ascent = run_ascent(objective, lambda: (-x.detach().square() / 2).repeat(2), x)
    assert ascent.settled
    assert math.isfinite(min(ascent.history))
    assert abs(float(x.detach())) < math.sqrt(4e-3)


def test_an_objective_without_maximum_does_not_settle():
    x = torch.tensor(0.0, requires_grad=True)
    ascent = run_ascent(
        lambda: Step([torch.ones(())], float(x.detach())), lambda: x.reshape(1), x, 1000
    )
    assert not ascent.settled


def test_the_same_seed_gives_the_same_draws():
    case = Conjugate()
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(case.fit(max_steps=150, draws=50)["beta"])
    assert torch.equal(*runs)


def test_a_guide_that_is_refused_leaves_frozen_parameters_frozen():
    rbm = RBM(4, 3)
    rbm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="'h' is Bernoulli"):
        VI(guide=rbm.guide).run(rbm.model, torch.ones(2, 4))
    assert not rbm.weight.requires_grad
    assert rbm.visible_bias.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"draws": 0},
        {"particles": 0},
        {"learning_rate": -1.0},
        {"tolerance": 0.0},
        {"restarts": 0},
        {"batch_size": 0},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VI(**options)
