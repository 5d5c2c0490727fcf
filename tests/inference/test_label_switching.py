"""Chains apart by numbers alone are told from chains apart, and numbered in one order."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.components import Components
from ppgen.inference import HMC
from ppgen.inference.comparison.joint import joint
from ppgen.inference.label_switching import Numbered, label_switching
from ppgen.posterior import Posterior
from ppgen.program import Program
from tests.support.mixtures import InOrder, X, exact, mixture

CHAINS, DRAWS = 8, 200


def chains(program, values):
    """Exact draws as chains."""
    z = program.unconstrain(values).reshape(CHAINS, DRAWS, -1)
    return Posterior.from_program(program, z, engine="test", kind="chains")


def stuck(values):
    """The same, each chain in one order of the means: half of them in each."""
    order = values["mu"].argsort(-1)
    odd = torch.arange(CHAINS).repeat_interleave(DRAWS) % 2 == 1
    order = torch.where(odd[:, None], order.flip(-1), order)
    return {name: value.gather(-1, order) for name, value in values.items()}


def test_chains_apart_by_numbers_alone_are_told_so():
    program = Program(mixture, X)
    values, _ = exact(CHAINS * DRAWS)
    posterior = chains(program, stuck(values))
    found = label_switching(program, posterior)
    assert found is not None
    assert (found.site, found.index, found.components.count) == ("mu", (), 2)
    assert found.rhat < 1.05
    ordered = found.renumbered(posterior, program)
    assert ordered.converged
    # of the exact posterior in this order: the same draws, sorted
    assert torch.allclose(ordered["mu"].flatten(0, 1), values["mu"].sort(-1).values)


def test_the_order_is_that_of_one_scalar_of_a_component():
    numbered = Numbered(mixture, Components(3, (("mu", -2), ("w", -1))), "mu", (1,), 1.0)
    assert numbered.key == "mu[.,1]"
    assert Numbered(mixture, Components(3, (("mu", -1),)), "mu", (1,), 1.0).key == "mu[1,.]"
    mu = torch.tensor([[[0.0, 5.0], [1.0, 4.0], [2.0, 6.0]]])
    ordered = numbered.canonical({"mu": mu, "w": torch.tensor([[0.2, 0.3, 0.5]])})
    assert ordered["mu"][..., 1].tolist() == [[4.0, 5.0, 6.0]]
    assert torch.allclose(ordered["w"], torch.tensor([[0.3, 0.2, 0.5]]))


def test_chains_that_hop_or_are_apart_for_another_reason_are_not():
    program = Program(mixture, X)
    values, _ = exact(CHAINS * DRAWS)
    assert label_switching(program, chains(program, values)) is None
    away = torch.linspace(-2.0, 2.0, CHAINS).repeat_interleave(DRAWS)[:, None]
    apart = {**values, "mu": values["mu"] + away}
    assert label_switching(program, chains(program, apart)) is None


def test_leaves_of_a_hierarchy_are_no_components():
    """They may change places too, but nothing is gained by an order."""

    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(4), (v / 2).exp()).to_event(1))

    program = Program(funnel)
    v = 3.0 * torch.randn(CHAINS * DRAWS) + torch.arange(CHAINS).repeat_interleave(DRAWS)
    x = (v / 2).exp()[:, None] * torch.randn(CHAINS * DRAWS, 4)
    posterior = chains(program, {"v": v, "x": x})
    assert not posterior.converged
    assert label_switching(program, posterior) is None


class Stuck(HMC):
    """Exact draws, each chain in one order of its own."""

    def run(self, model, *args, **kwargs):
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        return chains(program, stuck(exact(CHAINS * DRAWS)[0]))


class OneOrder(HMC):
    """Exact draws with the larger mean first, as an approximation that found one of the modes."""

    def run(self, model, *args, **kwargs):
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        values, _ = exact(4000)
        order = values["mu"].argsort(-1, descending=True)
        z = program.unconstrain({n: v.gather(-1, order) for n, v in values.items()})
        return Posterior.from_program(program, z[None], engine="test", kind="independent")


def test_a_fit_says_it_and_runs_again_in_one_order():
    said = ppgen.fit(mixture, X, using=Stuck())
    assert not said.converged
    assert "label switching: the 2 components of weights and mu" in said.headline()
    assert "reparametrise=True" in said.headline()
    again = ppgen.fit(mixture, X, using=Stuck(), reparametrise=True)
    assert again.converged
    assert "in the order of mu they agree" in again.headline()
    assert bool((again["mu"][..., 0] < again["mu"][..., 1]).all())


def funnels(x):
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(torch.zeros(4), (v / 2).exp()).to_event(1))
    mixture(x)


class StuckTwice(HMC):
    """Exact draws, each chain in one order; of a centred funnel its wide half, in other places."""

    apart = 0.5

    def run(self, model, *args, **kwargs):
        program = Program(model, *args, **kwargs)
        v, e = 3.0 * torch.randn(CHAINS * DRAWS), torch.randn(CHAINS * DRAWS, 4)
        parts = {"v": v, "y_decentred": e}
        if "y" in program.sites:
            v = v.abs() + self.apart * torch.arange(CHAINS).repeat_interleave(DRAWS)
            parts = {"v": v, "y": (v / 2).exp()[:, None] * e}
        return chains(program, {**stuck(exact(CHAINS * DRAWS)[0]), **parts})


class NearlyMet(StuckTwice):
    apart = 0.25


@pytest.mark.parametrize(
    ("choice", "engine"),
    [
        (True, StuckTwice()),
        pytest.param("auto", StuckTwice(), marks=pytest.mark.slow),  # 2 s: first non-centred
        ("auto", NearlyMet()),  # first numbered
    ],
)
def test_a_hierarchy_is_written_non_centred_and_components_are_numbered_at_once(choice, engine):
    """Each by itself leaves the chains apart."""
    posterior = ppgen.fit(funnels, X, using=engine, reparametrise=choice)
    assert posterior.converged, posterior.messages
    assert "non-centred: y" in posterior.headline()
    assert bool((posterior["mu"][..., 0] < posterior["mu"][..., 1]).all())
    # 4.3 standard errors of the mean
    assert abs(posterior["v"].mean()) < 4.3 * 3.0 / (CHAINS * DRAWS) ** 0.5
    assert len(set(posterior.messages)) == len(posterior.messages)


@pytest.mark.slow  # 3 s
def test_a_comparison_numbers_the_components_of_all_methods_alike():
    ready = OneOrder().run(mixture, X)
    used = {"ready": ready, "run": OneOrder(), "HMC": Stuck()}
    plain = ppgen.compare(mixture, X, using=used, reference="HMC")
    assert plain.verdicts["run"].level == "unknown"
    found = ppgen.compare(mixture, X, using=used, reference="HMC", repair=True)
    assert list(found.posteriors) == list(used)
    assert [found.verdicts[label].level for label in used] == ["pass"] * 3, str(found)


def test_the_evidence_of_a_mixture_lies_between_bounds_that_count_all_orders():
    program = Program(InOrder().model, X)
    values, log_evidence = exact(CHAINS * DRAWS)
    reference = chains(program, values)
    z = reference.unconstrained.flatten(0, 1)
    q = dist.MultivariateNormal(z.mean(0), z.mT.cov())
    draws = q.sample((2000,))
    posterior = Posterior.from_program(
        program,
        draws[None],
        engine="test",
        kind="independent",
        log_density=program.log_density(draws)[None],
        log_guide=q.log_prob(draws)[None],
        guide_log_prob=q.log_prob,
    )
    compared = joint(posterior, reference, program)
    assert {name for name, _ in compared.worst.weights} == {"weights[0]", "mu[0]", "mu[1]"}
    found = compared.sandwich
    # the far modes of one order hold nearly all mass, so that both bounds are tight; log 2 apart
    # where either forgets the other order
    assert found.elbo - 4.3 * found.elbo_error < log_evidence
    assert found.eubo + 4.3 * found.eubo_error > log_evidence
    assert found.gap < 0.3


def test_components_of_too_many_orders_have_no_bounds():
    class Six:
        def model(self):
            with pyro.plate("component", 6):
                pyro.sample("mu", dist.Normal(0.0, 1.0))

        def canonical(self, values):
            return {"mu": values["mu"].sort(-1).values}

    program = Program(Six().model)
    z = torch.randn(1, 200, 6)
    posterior = Posterior.from_program(
        program,
        z,
        engine="test",
        kind="independent",
        log_density=program.log_density(z),
        log_guide=program.log_density(z),
        guide_log_prob=program.log_density,
    )
    found = joint(posterior, posterior, program)
    assert found.sandwich is None
    assert any("6 components have too many orders" in said for said in found.missing)
