"""The verdict against posteriors whose errors are known: Stan's draws as the reference.

What each must say was derived from the reference draws alone: a mean-field normal at its optimum
has the sd ratios ``1 / sqrt(S_ii (S^-1)_ii)`` of their covariance S.
"""

from dataclasses import dataclass
from functools import cache

import pyro
import pytest
import torch
from torch.distributions import biject_to

import ppgen
from ppgen.data import posteriordb
from ppgen.inference import VI, full_rank_guide
from ppgen.inference.compare import comparison
from ppgen.inference.comparison.repairs import DECORRELATED
from ppgen.inference.point import as_program
from ppgen.models.posteriordb import POSTERIORS
from ppgen.posterior import Posterior


def clone_is_there():
    try:
        return bool(posteriordb.find())
    except posteriordb.DataError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("silent"),
    pytest.mark.skipif(not clone_is_there(), reason="needs a clone of posteriordb"),
]


@cache
def arguments(name):
    return POSTERIORS[name].arguments(posteriordb.read_data(name))


@dataclass(frozen=True)
class Stans:
    """An engine that gives Stan's draws."""

    name: str

    def run(self, model, *args, **kwargs):
        program = as_program(model, args, kwargs)
        draws = {n: torch.from_numpy(x) for n, x in posteriordb.read_reference(self.name).items()}
        sites = POSTERIORS[self.name].latent(draws, program.kwargs)
        trace = pyro.poutine.trace(program.model).get_trace(*program.args, **program.kwargs)
        laws = {name: trace.nodes[name]["fn"] for name in program.sites}
        parts = [biject_to(law.support).inv(sites[name]) for name, law in laws.items()]
        z = torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)
        return Posterior.from_program(
            program, z, engine="Stan", kind="chains", log_density=program.log_density(z)
        )


@cache
def against_stan(name, full_rank=False, repair=False):
    guide = full_rank_guide() if full_rank else None
    return ppgen.compare(
        POSTERIORS[name].story,
        using={"Stan": Stans(name), "q": VI(guide=guide)},
        reference="Stan",
        repair=repair,
        **arguments(name),
    )


def levels(found):
    return {row.name: row.level for row in found.marginals["q"]}


def ratios(found):
    """By parameter as Stan names them; sds are on the sites' own scale."""
    return {row.name: row.ratio for row in found.marginals["q"]}


def test_a_gaussian_process_with_three_parameters_passes_by_mean_field():
    found = against_stan("gp_pois_regr-gp_regr")
    assert found.verdicts["q"].level == "pass", found.verdicts["q"]
    assert min(ratios(found).values()) > 0.9
    assert found.joints["q"].khat < 0.7


def test_mesquite_passes_by_full_rank_and_fails_by_mean_field():
    found = against_stan("mesquite-logmesquite", full_rank=True)
    assert found.verdicts["q"].level == "pass", found.verdicts["q"]
    assert found.joints["q"].efficiency > 0.3
    found = against_stan("mesquite-logmesquite")
    assert found.verdicts["q"].level == "fail"
    # .24 to .67 for coefficients, by the sheet's optimum on the unconstrained scale
    assert 0.2 < min(ratios(found).values()) < 0.28


def test_only_the_width_of_tau_is_wrong_in_non_centred_eight_schools_by_mean_field():
    found = against_stan("eight_schools-eight_schools_noncentered")
    found_levels = levels(found)
    assert found_levels["mu"] == "pass"
    # the two effects farthest out lean on tau's tail: sds a little below .9 warn, none fails
    assert {n for n, level in found_levels.items() if level == "fail"} <= {"tau"}
    assert found.marginals["q"][0].name == "tau"
    assert "tau" in found.verdicts["q"].sentence
    # log tau .61 of the reference's
    assert found.joints["q"].worst.weights[0][0] == "tau"
    assert found.joints["q"].worst.ratio == pytest.approx(0.61, abs=0.05)
    assert found.joints["q"].khat < 0.75


def test_centred_eight_schools_fails_by_mean_field_on_tau():
    found = against_stan("eight_schools-eight_schools_centered")
    assert found.verdicts["q"].level == "fail"
    assert levels(found)["tau"] == "fail"
    assert ratios(found)["mu"] == pytest.approx(0.56, abs=0.1)
    assert found.joints["q"].worst.ratio == pytest.approx(0.21, abs=0.05)
    assert found.joints["q"].khat > 0.7


def test_blr_fails_by_mean_field_on_widths_and_correlation_but_not_on_means():
    found = against_stan("sblrc-blr", repair=True)
    assert found.verdicts["q"].level == "fail"
    assert max(abs(row.shift) for row in found.marginals["q"]) < 0.1
    slopes = [ratio for name, ratio in ratios(found).items() if name.startswith("beta")]
    assert all(0.42 < ratio < 0.57 for ratio in slopes), slopes
    assert found.joints["q"].correlation.error > 0.3
    assert found.verdicts["q"].remedy.startswith(f"{DECORRELATED} repairs it")
    assert against_stan("sblrc-blr", full_rank=True).verdicts["q"].level == "pass"


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("kidiq-kidscore_interaction", 0.06),
        ("earnings-logearn_interaction", 0.03),
        ("kilpisjarvi_mod-kilpisjarvi", 0.005),
    ],
)
def test_badly_scaled_predictors_fail_by_mean_field_and_are_repaired_by_coordinates(name, narrow):
    found = against_stan(name, repair=True)
    assert found.verdicts["q"].level == "fail"
    assert max(abs(row.shift) for row in found.marginals["q"]) < 0.1
    assert min(ratios(found).values()) == pytest.approx(narrow, rel=0.2)
    attempt = next(a for a in found.repairs["q"] if a.how == DECORRELATED)
    # kilpisjarvi's k-hat is .83 +- .08 for any normal, on either side of the limit of .7, though
    # IS-ESS/S is .97: that warns or passes
    assert attempt.verdict.level in ("pass", "warn" if name.startswith("kilpis") else "pass")
    assert attempt.before > 5
    assert attempt.after < 1 / 3
    if attempt.verdict.level == "pass":
        assert found.verdicts["q"].remedy.startswith(f"{DECORRELATED} repairs it")


def test_a_poisson_gaussian_process_fails_by_mean_field():
    found = against_stan("gp_pois_regr-gp_pois_regr")
    assert found.verdicts["q"].level == "fail"
    assert found.joints["q"].khat > 0.7


def test_kilpisjarvi_does_not_fail_by_full_rank_whatever_its_khat():
    found = against_stan("kilpisjarvi_mod-kilpisjarvi", full_rank=True)
    assert found.verdicts["q"].level != "fail", found.verdicts["q"]
    assert min(ratios(found).values()) > 0.9
    assert found.joints["q"].efficiency > 0.8


def test_half_of_stans_draws_passes_against_the_other_half():
    """Ten chains of 1,000: of twelve posteriors, at most three are flagged at 3 % (p = 1e-4)."""
    flagged = 0
    for name in POSTERIORS:
        whole = Stans(name).run(POSTERIORS[name].story, **arguments(name))
        program = as_program(POSTERIORS[name].story, (), arguments(name))
        halves = {
            label: Posterior.from_program(
                program, whole.unconstrained[part], engine="Stan", kind="chains"
            )
            for label, part in {"one": slice(0, 5), "q": slice(5, 10)}.items()
        }
        found = comparison(halves, "one")
        assert found.verdicts["q"].level != "fail", (name, found.verdicts["q"])
        flagged += found.verdicts["q"].level != "pass"
    assert flagged <= 3
