"""A mixture of two normals whose posterior is known: by a sum over all assignments."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import torch

X = torch.tensor([-3.1, -2.8, 3.0, 3.2, 2.9])
SPREAD, NOISE = 3.0, 0.5  # of the means, of the data about them


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, SPREAD))
    with pyro.plate("data", len(x)):
        law = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, NOISE))
        pyro.sample("x", law, obs=x)


class InOrder:
    """The same, its components in the order of their means."""

    def model(self, x):
        mixture(x)

    def canonical(self, values):
        order = values["mu"].argsort(-1)
        return {**values, **{n: values[n].gather(-1, order) for n in ("weights", "mu")}}


def assignments():
    """All of them, ``(A, N)``, and the log of the joint mass of each with the data."""
    every = torch.tensor(list(product((0, 1), repeat=len(X))))
    return every, torch.tensor([_log_mass(a) for a in every], dtype=torch.float64)


def _log_mass(assignment):
    """Weights integrated out to factorials of the counts, means to a joint normal of the data."""
    counts = [int((assignment == k).sum()) for k in (0, 1)]
    total = -math.lgamma(2 + len(X)) + sum(math.lgamma(1 + n) for n in counts)
    for k in (0, 1):
        x = X[assignment == k]
        if len(x):
            cov = NOISE**2 * torch.eye(len(x)) + SPREAD**2
            total += float(dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(x))
    return total


def exact(draws):
    """Independent draws of the posterior, components numbered at random, and the log evidence."""
    every, mass = assignments()
    chosen = every[torch.multinomial(mass.softmax(0), draws, replacement=True)]
    member = torch.stack([chosen == 0, chosen == 1], 1).double()  # (draws, K, N)
    count = member.sum(-1)
    precision = SPREAD**-2 + count / NOISE**2
    mu = dist.Normal((member * X).sum(-1) / NOISE**2 / precision, precision.rsqrt()).sample()
    weights = dist.Dirichlet(1.0 + count).sample()
    return {"weights": weights, "mu": mu}, float(mass.logsumexp(0))
