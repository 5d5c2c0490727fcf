"""Forward KL: the moments of the posterior, and a warning where weights do not know them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.inference import DADVI, ForwardKL, flow_guide, full_rank_guide, mean_field_guide
from ppgen.inference.importance import Normal, draw, moments, temper
from ppgen.inference.mode import Batched
from ppgen.posterior import Posterior

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26

CORRELATED = [[4.0, 1.8], [1.8, 1.0]]  # correlation .9


def normal():
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor(CORRELATED)))


def covariance(posterior):
    """Of the fitted normal: from the draws that it gave the density of, by least squares.

    ``log q`` is a quadratic form, so six of its values fix it exactly.
    """
    z = posterior.unconstrained[0]
    x, y = z[:, 0], z[:, 1]
    columns = torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], -1)
    a, b, c, *_ = torch.linalg.lstsq(columns, posterior.log_guide[0][:, None]).solution[:, 0]
    precision = -torch.stack([2 * a, b, b, 2 * c]).reshape(2, 2)
    return torch.linalg.inv(precision)


@pytest.mark.parametrize("guide", [None, full_rank_guide()], ids=["mean-field", "full-rank"])
def test_a_normal_keeps_its_variances_whatever_the_correlation(guide):
    """Reverse mean-field takes 1 / Lambda_ii = Sigma_ii (1 - .81), forward Sigma_ii."""
    posterior = ForwardKL(guide=guide).run(normal)
    assert posterior.converged, posterior.messages
    truth = torch.tensor(CORRELATED)
    if guide is None:
        truth = truth.diagonal().diag()
    # weights lie below 1 / .8 of their mean, and so does the mean of their squares
    assert 0.8 < float(posterior.history["ess"][-1]) / posterior.options["particles"] <= 1
    size = float(posterior.history["importance_ess"])
    # sd of a variance over itself: sqrt(2 / n); of a covariance over the sds: at most the same
    unit = truth.diagonal().sqrt()
    off = (covariance(posterior) - truth) / unit / unit[:, None]
    assert float(off.abs().max()) < Z * math.sqrt(2 / size)
    mean = (posterior.history["location"] - torch.tensor([1.0, -2.0])) / unit
    assert float(mean.abs().max()) < Z / math.sqrt(size)


@pytest.mark.slow  # 3 s
def test_points_where_a_matrix_cannot_be_factorised_have_no_weight():
    """Of draws beyond -3 sd, one in 700: the moments are those of the rest, to .01."""

    def story():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        root = torch.linalg.cholesky(torch.diag(torch.stack([x + 3.0, torch.ones(())])))
        pyro.factor("nothing", 0.0 * root[0, 0])
        if kept:
            pyro.deterministic("root", root)

    kept = False
    posterior = ForwardKL().run(story)
    assert posterior.converged, posterior.messages
    assert abs(float(posterior.history["location"])) < 0.01 + Z / math.sqrt(10_000)
    assert 0.95 < float(posterior.history["covariance"]) < 1.03
    kept = True
    with pytest.raises(ValueError, match="a matrix inside the story cannot be factorised"):
        ForwardKL().run(story)


@pytest.mark.slow
def test_reverse_and_forward_disagree_by_the_correlation():
    reverse = DADVI(linear_response=False, fixed=2000).run(normal)
    ratio = covariance(reverse).diagonal() / covariance(ForwardKL().run(normal)).diagonal()
    # 1 - correlation^2; a variance from n draws has the relative error sqrt(2 / n)
    error = Z * (math.sqrt(2 / 2000) + math.sqrt(2 / 19_000))
    torch.testing.assert_close(ratio, torch.full((2,), 0.19), rtol=error, atol=0)


def test_the_divergence_and_the_evidence_are_those_of_the_closed_form():
    def scaled():
        normal()
        pyro.factor("evidence", torch.tensor(3.0))  # the normal integrates to exp(3)

    posterior = ForwardKL().run(scaled)
    # KL(N(m, Sigma) || N(m, diag Sigma)) = -1/2 log(1 - rho^2), nats
    said = next(m for m in posterior.messages if m.startswith("KL"))
    expected = -0.5 * math.log(1 - 0.81)
    # q is fitted: 4 parameters cost 4 / (2 n) nats. The average of log p - log q over n draws has
    # the sd of a quadratic form in two normals, below 2 / sqrt(n)
    size = float(posterior.history["importance_ess"])
    assert float(said.split()[-2]) == pytest.approx(expected, abs=Z * 2 / math.sqrt(size) + 1e-3)
    # weights lie below 1 / .8 of their mean, and their sd below a half
    assert abs(float(posterior.history["log_evidence"]) - 3) < Z * 0.5 / math.sqrt(20_000)


def test_a_posterior_with_a_bound_is_matched_on_the_unconstrained_scale():
    """Log x, x ~ Gamma(3): mean digamma(3), variance trigamma(3)."""

    def story():
        pyro.sample("x", dist.Gamma(3.0, 2.0))

    posterior = ForwardKL().run(story)
    assert posterior.converged, posterior.messages
    three, size = torch.tensor(3.0), float(posterior.history["importance_ess"])
    mean = torch.digamma(three) - math.log(2)
    variance = torch.polygamma(1, three)
    error = Z * float(variance.sqrt()) / math.sqrt(size)
    assert float(posterior.history["location"]) == pytest.approx(float(mean), abs=error)
    found = float(posterior.history["covariance"])
    # excess kurtosis of log Gamma(3): trigamma''(3) / trigamma^2 = 1.2, so 3.2 for 2
    assert found == pytest.approx(float(variance), rel=Z * math.sqrt(3.2 / size))


def test_a_variance_that_does_not_exist_is_not_believed():
    def story():
        pyro.sample("heavy", dist.Cauchy(0.0, 1.0))

    posterior = ForwardKL().run(story)
    assert not posterior.converged
    assert "the variance of heavy is not to be trusted" in " ".join(posterior.messages)


def test_a_proposal_far_away_is_tempered_and_arrives():
    def story():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    program = ppgen.Program(story)
    function = Batched(program, 64)
    proposal = Normal(torch.tensor([12.0]), torch.tensor([[0.5]]))
    powers = []
    for _ in range(15):
        sample = draw(proposal, function, 1000)
        power, weights = temper(sample.log_weights)
        proposal = Normal.of(*moments(sample.z, weights))
        powers.append(power)
    assert powers[0] < 0.5
    assert powers[-1] == 1
    # 1000 draws worth at least a tenth
    assert abs(float(proposal.mean)) < Z / math.sqrt(100)


def test_the_proposal_has_the_density_of_its_draws():
    """Weights p / r average to 1 for p = N(0, 1): both parts of the mixture are normalised."""

    def story():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    function = Batched(ppgen.Program(story), 64)
    factor = torch.tensor([[1.2, 0.0, 0.0], [0.3, 1.1, 0.0], [0.0, -0.2, 1.5]])
    sample = draw(Normal(torch.tensor([0.3, 0.0, -0.3]), factor), function, 40_000)
    weights = sample.log_weights.exp()
    assert float(weights.mean()) == pytest.approx(1, abs=Z * float(weights.std()) / 200)


def test_reference_draws_are_matched():
    z = torch.randn(4, 500, 2) @ torch.tensor([[1.0, 0.0], [0.7, 0.4]]).mT + 3.0
    reference = Posterior({"x": z}, engine="HMC", kind="chains", unconstrained=z, converged=False)
    posterior = ForwardKL(guide=full_rank_guide(), reference=reference).run(normal)
    flat = z.flatten(0, 1)
    torch.testing.assert_close(covariance(posterior), flat.mT.cov(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(posterior.history["location"], flat.mean(0))
    assert not posterior.converged
    assert "the reference, HMC, did not converge" in posterior.headline()
    assert posterior.options["reference"] == "HMC"


def test_a_fit_is_saved_and_repeated_bit_for_bit(tmp_path):
    engine = ForwardKL(guide=mean_field_guide(), particles=500, draws=100)
    first, second = (ppgen.fit(normal, using=engine, seed=3) for _ in range(2))
    assert torch.equal(first["x"], second["x"])
    first.save(tmp_path)
    assert torch.equal(Posterior.load(tmp_path)["x"], first["x"])


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="at least 100, got 10"):
        ForwardKL(particles=10)
    with pytest.raises(ValueError, match="takes None or full_rank_guide"):
        ForwardKL(guide=flow_guide())
    other = Posterior({"y": torch.zeros(1, 9)}, engine="MAP", kind="point")
    with pytest.raises(ValueError, match=r"2 unconstrained dimensions \(x\), got no"):
        ForwardKL(reference=other).run(normal)

    def large():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([501]).to_event(1))

    with pytest.raises(ValueError, match="at most 500"):
        ForwardKL().run(large)
