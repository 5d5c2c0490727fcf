"""How far an approximation is from a reference posterior, scalar by scalar, and what follows.

The thresholds are starting points, printed with every verdict. A difference below twice its own
Monte Carlo error never fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ppgen import diagnostics
from ppgen.diagnosis import WEIGHT_ESS_LIMIT, distrust
from ppgen.diagnostics import ESS_LIMIT
from ppgen.diagnostics.arrays import varies
from ppgen.posterior import Posterior

if TYPE_CHECKING:
    from ppgen.inference.comparison.joint import Joint
    from ppgen.inference.comparison.trust import Trust

Level = Literal["pass", "warn", "fail", "unknown"]

SHIFT_PASS, SHIFT_FAIL = 0.1, 0.3  # |mean shift| in reference sd
RATIO_PASS, RATIO_FAIL = (0.9, 1.1), (0.75, 1.33)  # sd over reference sd
DIRECTION_PASS, DIRECTION_FAIL = (0.75, 1.33), (0.5, 2.0)  # sd ratio of the worst combination
CORRELATION_PASS, CORRELATION_FAIL = 0.1, 0.3
JOINT_LEVEL = 0.01  # at which MMD and C2ST together warn, where nothing else does
FALSE_ALARMS = 0.03  # of a correct method against a reference, both worth 5,000 draws
NOISE = 2.0  # Monte Carlo standard errors
SEVERITY: tuple[Level, ...] = ("pass", "warn", "unknown", "fail")

THRESHOLDS = (
    f"mean shift: pass within {SHIFT_PASS} reference sd, fail beyond {SHIFT_FAIL}; sd ratio: pass "
    f"within {RATIO_PASS[0]}-{RATIO_PASS[1]}, fail outside {RATIO_FAIL[0]}-{RATIO_FAIL[1]}; sd "
    f"ratio of any linear combination: {DIRECTION_PASS[0]}-{DIRECTION_PASS[1]} and "
    f"{DIRECTION_FAIL[0]}-{DIRECTION_FAIL[1]:g}; correlations: {CORRELATION_PASS} and "
    f"{CORRELATION_FAIL}; MMD and C2ST warn at p <= {JOINT_LEVEL / 2} each; importance "
    f"weights fail where IS-ESS/S < {WEIGHT_ESS_LIMIT} and k-hat is above its limit or IS-ESS < "
    f"{ESS_LIMIT:g}; a difference below {NOISE:g} Monte Carlo errors, or within that of halves of "
    "either sample, never fails, and bounds of means and sds "
    "that pass are wider by one such error; a correct method is flagged in at most "
    f"{FALSE_ALARMS:.0%} of comparisons where it and the reference are worth 5,000 draws each"
)


@dataclass(frozen=True)
class Marginal:
    """One scalar against the reference, in units of the reference's standard deviation."""

    name: str
    shift: float  # (mean - reference mean) / reference sd
    shift_z: float  # the same in Monte Carlo standard errors
    ratio: float  # sd / reference sd; NaN for a point estimate
    ratio_error: float  # Monte Carlo standard error of the ratio
    w1: float  # Wasserstein-1 distance / reference sd
    q5: float  # (5 % quantile - the reference's) / reference sd
    q95: float
    coverage: float  # share of the reference within the central 90 % interval
    level: Level

    @property
    def shift_error(self) -> float:
        """Monte Carlo error of the shift / reference sd."""
        return abs(self.shift / self.shift_z) if self.shift_z else 0.0

    @property
    def badness(self) -> float:
        """How far outside its thresholds; 1 is where it fails."""
        width = abs(math.log(self.ratio)) / math.log(RATIO_FAIL[1]) if self.ratio > 0 else 0.0
        return max(abs(self.shift) / SHIFT_FAIL, width)


@dataclass(frozen=True)
class Verdict:
    """What may be claimed, in one sentence, and the cheapest repair that passes."""

    level: Level
    sentence: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.level.upper()}: {self.sentence}{remedy}"


def marginals(posterior: Posterior, reference: Posterior) -> tuple[Marginal, ...]:
    """Every scalar that varies in the reference, worst first.

    Raises:
        ValueError: where the two do not have the same scalars.
    """
    ours, theirs = posterior.scalars(), reference.scalars()
    if set(ours) != set(theirs):
        raise ValueError(
            f"{posterior.engine} and {reference.engine} have different scalars: "
            f"{sorted(set(ours) ^ set(theirs))}"
        )
    names = [n for n in theirs if varies(theirs[n])]
    x, y = (np.stack([s[n] for n in names], -1) for s in (ours, theirs))
    mean, sd, mean_error, sd_error = _moments(posterior, x)
    ref_mean, ref_sd, ref_mean_error, ref_sd_error = _moments(reference, y)
    shift = (mean - ref_mean) / ref_sd
    error = np.hypot(mean_error, ref_mean_error) / ref_sd
    ratio = sd / ref_sd
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_error = ratio * np.hypot(sd_error / sd, ref_sd_error / ref_sd)
        z = shift / error
    flat = [v.reshape(-1, len(names)) for v in (x, y)]
    w1 = np.atleast_1d(diagnostics.wasserstein1(*flat)) / ref_sd
    ends, ref_ends = (np.quantile(v, [0.05, 0.95], axis=0) for v in flat)
    tails = (ends - ref_ends) / ref_sd
    coverage = ((flat[1] >= ends[0]) & (flat[1] <= ends[1])).mean(0)
    rows = [
        Marginal(name, *numbers, level=_judge(numbers[0], error[i], numbers[2], numbers[3]))
        for i, (name, numbers) in enumerate(
            zip(
                names,
                np.stack([shift, z, ratio, ratio_error, w1, *tails, coverage], -1).tolist(),
                strict=True,
            )
        )
    ]
    return tuple(sorted(rows, key=lambda row: -row.badness if math.isfinite(row.badness) else -9e9))


def _moments(posterior: Posterior, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, sd and their Monte Carlo standard errors, ``(scalars)`` each."""
    flat = x.reshape(-1, x.shape[-1])
    mean = flat.mean(0)
    if posterior.kind == "point":
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, np.zeros_like(mean), nothing
    sd = flat.std(0, ddof=1)
    if posterior.kind == "chains":
        return mean, sd, diagnostics.mcse_mean(x), diagnostics.mcse_sd(x)
    centred = flat - mean
    # none of a coin, but for rounding
    excess = np.maximum((centred**4).mean(0) / np.maximum(sd, 1e-300) ** 4 - 1, 0)
    return mean, sd, sd / math.sqrt(len(flat)), sd * np.sqrt(excess / (4 * len(flat)))


def _judge(shift: float, shift_error: float, ratio: float, ratio_error: float) -> Level:
    if not math.isfinite(shift) or (math.isnan(ratio) and not math.isnan(ratio_error)):
        return "unknown"
    found: list[Level] = ["pass"]
    if _is_far(shift, shift_error):
        found.append("fail" if abs(shift) > SHIFT_FAIL else "warn")
    if _is_off(ratio, ratio_error):
        found.append("warn" if _within(ratio, RATIO_FAIL) else "fail")
    return worst(found)


def _is_far(shift: float, error: float) -> bool:
    """Whether a shift is no noise, and more than what passes by more than its error."""
    return abs(shift) > NOISE * error and abs(shift) > SHIFT_PASS + error


def _is_off(ratio: float, error: float) -> bool:
    """Likewise of a ratio of sds; not where it is unknown."""
    within = RATIO_PASS[0] - error <= ratio <= RATIO_PASS[1] + error
    return abs(ratio - 1) > NOISE * error and not within


def verdict(
    posterior: Posterior,
    rows: tuple[Marginal, ...],
    joint: Joint | None = None,
    quantities: tuple[Marginal, ...] = (),
) -> Verdict:
    """One sentence on what the posterior may be used for, naming the worst scalar.

    Args:
        posterior: to be judged, against a reference that can be trusted.
        rows: its margins.
        joint: what they do not show.
        quantities: the user's own functions of the draws.
    """
    found = posterior.diagnosis()
    if not posterior.converged:
        why = "; ".join(posterior.messages) or "its own checks"
        return Verdict("fail", f"it has not converged ({why}), so it cannot be judged as a method")
    if posterior.kind == "point":
        first = rows[0]
        return Verdict(
            "fail" if first.level == "fail" else "warn",
            f"a point estimate, without any uncertainty; worst mean: {first.name}, "
            f"{first.shift:+.2f} sd",
        )
    level, parts = _over_rows(rows)
    findings: list[tuple[Level, str]] = [*_over_joint(joint), *_over_quantities(quantities)]
    khat, limit = found.get("khat", math.nan), found.get("khat_limit", math.nan)
    efficiency = found.get("relative_is_ess", math.nan)
    doubt = distrust(posterior)
    if doubt is not None:
        findings.append(("fail", doubt))
    elif khat > limit and level == "pass":
        findings.append(("warn", f"k-hat {khat:.2f} above {limit:.2f}, though IS-ESS/S is "
                         f"{efficiency:.2f}"))  # fmt: skip
    parts += [text for _, text in findings]
    levels: list[Level] = [level, *(found_level for found_level, _ in findings)]
    if "fail" in levels and any(part.startswith("interval of") for part in parts):
        parts.append("not for interval claims")
    return Verdict(worst(levels), "; ".join(parts))


def worst(levels: Iterable[Level]) -> Level:
    """The most serious of them."""
    found = set(levels)
    return next(level for level in reversed(SEVERITY) if level in found)


def reference_verdict(trust: Trust) -> Verdict:
    """What the reference itself is worth."""
    if trust.ok:
        return Verdict("pass", f"the reference: {trust}")
    return Verdict("unknown", f"the reference cannot be trusted, believe no verdict: {trust}")


def no_verdict(reference: Posterior) -> Verdict:
    """Nothing follows from a distance to what is not known to be the posterior."""
    why = "is not confirmed" if reference.converged else "has not converged"
    return Verdict("unknown", f"no verdict: the reference {why}")


def _over_joint(joint: Joint | None) -> list[tuple[Level, str]]:
    if joint is None:
        return []
    found: list[tuple[Level, str]] = []
    axis, pair = joint.worst, joint.correlation
    if axis is not None and axis.beyond_noise and not _within(axis.ratio, DIRECTION_PASS):
        level: Level = "warn" if _within(axis.ratio, DIRECTION_FAIL) else "fail"
        text = f"{axis.ratio:.2f} of the sd along {axis}"
        found.append((level, text))
    if pair is not None and pair.error > max(CORRELATION_PASS, pair.null):
        level = "fail" if pair.error > CORRELATION_FAIL else "warn"
        names = " and ".join(pair.names)
        found.append(
            (level, f"correlation of {names} {pair.ours:.2f} instead of {pair.theirs:.2f}")
        )
    tests = {"MMD": joint.mmd, "C2ST": joint.c2st}
    said = [f"{n} p {t.p:.2g}" for n, t in tests.items() if t and t.p <= JOINT_LEVEL / 2]
    if said and not found:
        found.append(("warn", f"the joint distribution differs ({', '.join(said)})"))
    return found


def _over_quantities(rows: tuple[Marginal, ...]) -> list[tuple[Level, str]]:
    return [
        (row.level, f"quantity {row.name} off by {row.shift:+.2f} sd, sd ratio {row.ratio:.2f}")
        for row in rows
        if row.level != "pass"
    ]


def _on_means(rows: tuple[Marginal, ...]) -> str:
    """The largest shift that is no noise, if there is any beyond what passes."""
    far = [row for row in rows if _is_far(row.shift, row.shift_error)]
    largest = max(far or rows, key=lambda row: abs(row.shift))
    if far:
        return f"mean of {largest.name} off by {largest.shift:+.2f} sd"
    if abs(largest.shift) > SHIFT_PASS:
        rest = f" but for {largest.name}'s {largest.shift:+.2f}, which may be noise"
        return f"means within {SHIFT_PASS} sd{rest}"
    return f"means within {SHIFT_PASS} sd"


def _on_widths(rows: tuple[Marginal, ...]) -> str:
    """Likewise of the ratio of standard deviations."""
    off = [row for row in rows if _is_off(row.ratio, row.ratio_error)]
    most = max(off or rows, key=lambda row: abs(math.log(row.ratio)) if row.ratio > 0 else 0.0)
    if off:
        side = "narrow" if most.ratio < 1 else "wide"
        return f"interval of {most.name} {abs(most.ratio - 1):.0%} too {side}"
    within = f"sds within {RATIO_PASS[0]}-{RATIO_PASS[1]} of the reference's"
    if not _within(most.ratio, RATIO_PASS):
        return f"{within} but for {most.name}'s {most.ratio:.2f}, which may be noise"
    return within


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _over_rows(rows: tuple[Marginal, ...]) -> tuple[Level, list[str]]:
    levels = [row.level for row in rows]
    parts = [_on_means(rows), _on_widths(rows)]
    if "fail" in levels:
        parts.append(f"{levels.count('fail')} of {len(rows)} scalars fail")
        return "fail", parts
    if "unknown" in levels:
        return "unknown", parts
    return ("warn" if "warn" in levels else "pass"), parts
