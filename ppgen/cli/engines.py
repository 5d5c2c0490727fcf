"""Engines by name: the command line alone maps words to objects."""

from __future__ import annotations

import ast
from typing import Any

from ppgen.types import Engine

# name: what it is, paper
ENGINES = {
    "HMC": ("many chains, adapted metric, step size and trajectory", "Hoffman et al. 2021"),
    "NUTS": ("no-U-turn sampler, all chains at once", "Hoffman & Gelman 2014"),
    "VI": (
        "stochastic variational inference, any guide",
        "Hoffman et al. 2013; Kingma & Welling 2014",
    ),
    "DADVI": ("mean-field with fixed draws, widths by linear response", "Giordano et al. 2024"),
    "Pathfinder": ("normals along the way up, pooled and resampled", "Zhang et al. 2022"),
    "Laplace": ("Gaussian at the mode", "Tierney & Kadane 1986"),
    "ForwardKL": ("normal with the moments of the posterior, adaptive", "Cappe et al. 2008"),
    "CAVI": ("mean field by coordinate ascent, declared updates", "Bishop 2006"),
    "Gibbs": ("block Gibbs; discrete units, with HMC for the rest", "Gelfand & Smith 1990"),
    "Exact": ("the formula of a conjugate story", "-"),
    "MAP": ("the mode of the posterior", "-"),
    "MLE": ("the maximum of the likelihood", "-"),
}
_GUIDES = ("mean-field", "full-rank", "low-rank", "flow")


def engine(text: str) -> Engine:
    """An engine from a word: ``HMC``, ``HMC(chains=32, draws=500)``, ``VI(guide="flow")``.

    Raises:
        ValueError: for an unknown engine, option or guide, listing those there are.
    """
    import dataclasses

    from ppgen import inference

    known = {n: getattr(inference, n) for n in ENGINES}
    name, options = _parse(text)
    matches = [n for n in known if n.lower() == name.lower()]
    if not matches:
        raise ValueError(f"no engine {name!r}: there are {', '.join(known)}")
    kind = known[matches[0]]
    allowed = [f.name for f in dataclasses.fields(kind)]
    for option in options:
        if option not in allowed:
            raise ValueError(f"{matches[0]} has no option {option!r}: {', '.join(allowed)}")
    if "guide" in options:
        options["guide"] = _guide(options["guide"])
    return kind(**options)


def written(engine: Engine) -> str:
    """An engine by the options that are not the defaults: ``HMC(chains=32)``.

    An option that a later version adds does not change it, as it would change ``repr``.
    """
    import dataclasses

    fields: Any = dataclasses.fields(engine)  # pyright: ignore[reportArgumentType]
    given = {f.name: getattr(engine, f.name) for f in fields if f.init}
    plain = {f.name: f.default for f in fields}
    inside = ", ".join(f"{n}={v!r}" for n, v in given.items() if repr(v) != repr(plain[n]))
    return f"{type(engine).__name__}({inside})"


def engines(text: str) -> dict[str, Engine]:
    """Several engines from one line, by label: ``HMC, flow=VI(guide="flow")``.

    Raises:
        ValueError: where there is none; where two have one label, and the first would be lost.
    """
    found = {}
    for part in split(text):
        label, equals, rest = part.partition("=")
        if not equals or "(" in label:
            label, rest = part, part
        if label.strip() in found:
            raise ValueError(f"two engines are called {label.strip()}: write a={rest}, b={rest}")
        found[label.strip()] = engine(rest.strip())
    if not found:
        raise ValueError("no engine: write one, as HMC, or several between commas")
    return found


def split(text: str) -> list[str]:
    """Parts between commas that stand in no bracket and no quote."""
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """``Name(key=value, ...)`` with literal values only; nothing is executed."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            return tree.func.id, {
                keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in tree.keywords
            }
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"{text!r} is no engine: write HMC, HMC(chains=32) or VI(guide='flow'), with quotes "
        "around words"
    )


def _guide(word: Any) -> Any:
    from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal

    from ppgen.inference import flow_guide

    makers = dict(
        zip(
            _GUIDES,
            (None, AutoMultivariateNormal, AutoLowRankMultivariateNormal, flow_guide()),
            strict=True,
        )
    )
    if word not in makers:
        raise ValueError(f"no guide {word!r}: there are {', '.join(_GUIDES)}")
    return makers[word]
