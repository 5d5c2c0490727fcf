"""``ppgen explain``, ``fit``, ``compare`` and ``calibrate``: Bayesian stories."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ppgen.cli.options import Common, DataFile, Story, new_folder, note
from ppgen.cli.stories import bayes_story
from ppgen.summary import json_ready

Overwrite = Annotated[bool, Parameter(negative="", help="Use --out although it is not empty.")]


Repair = Annotated[
    bool,
    Parameter(negative="", help="Where one does not pass, try other coordinates and guides."),
]
Reparametrise = Annotated[
    bool,
    Parameter(
        negative="",
        help="Where the run as written fails, run again in coordinates that are easier.",
    ),
]
GivenData = Annotated[
    bool,
    Parameter(negative="", help="Calibrate around the data (posterior SBC), not over the prior."),
]


def explain(story: Story, /, *, data: DataFile = None, common: Common | None = None) -> int:
    """Show what a story consists of: sites, shapes, supports, plates, what is recorded.

    The page to look at when shapes do not fit. Try:

        ppgen explain eight_schools
        ppgen explain mystory.py:model --data my.csv
    """
    from ppgen.explanation import explain as explanation

    common = common or Common()
    with common.active():
        model, arguments = bayes_story(story, data)
        found = explanation(model, **arguments)
    common.print(str(found), asdict(found))
    return 0


def fit(
    story: Story,
    /,
    *,
    data: DataFile = None,
    using: str = "HMC",
    reparametrise: Reparametrise = False,
    out: Path | None = None,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Fit a Bayesian story and print its posterior.

    Try:

        ppgen fit eight_schools
        ppgen fit mystory.py:model --data my.csv --using "VI(guide='flow')" --out runs/mine
        ppgen fit eight_schools_centred --reparametrise

    Args:
        using: HMC, NUTS, Gibbs, VI, DADVI, CAVI, Pathfinder, Laplace, ForwardKL, MAP, MLE or
            Exact, with options in brackets.
        out: a folder for the draws (posterior/), posterior.nc for ArviZ, and report.html.
    """
    import ppgen
    from ppgen.cli.engines import engine
    from ppgen.cli.pages import posterior_page

    common = common or Common()
    chosen = engine(using)
    with common.active():
        model, arguments = bayes_story(story, data)
        folder = None if out is None else new_folder(out, overwrite)
        choice = "auto" if reparametrise else False
        args, kwargs = by_position(model, on_device(arguments, common.device))
        posterior = ppgen.fit(
            model, *args, using=chosen, seed=common.seed, reparametrise=choice, **kwargs
        )
        if folder is not None:
            posterior.save(folder / "posterior")
            posterior.to_datatree(model, *args, **kwargs).to_netcdf(
                folder / "posterior.nc", engine="h5netcdf"
            )
            posterior_page(posterior, story).save(folder / "report.html")
            note(f"report: {folder / 'report.html'}")
    summary = posterior.summary()
    common.print(
        str(summary),
        {
            "story": story,
            "engine": posterior.engine,
            "converged": posterior.converged,
            "trusted": posterior.trusted,
            "messages": list(posterior.messages),
            "seconds": posterior.cost.seconds,
            "scalars": [json_ready(asdict(row)) for row in summary.rows],
        },
    )
    return common.code(posterior.trusted)


def compare(
    story: Story,
    /,
    *,
    data: DataFile = None,
    using: str = "HMC,VI",
    reference: str | None = None,
    repair: Repair = False,
    out: Path | None = None,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Fit a story with several engines and say how far each is from the reference.

    Try:

        ppgen compare eight_schools --using HMC,VI
        ppgen compare mystory.py:model --data my.csv --using "HMC, flow=VI(guide='flow')"
        ppgen compare eight_schools_centred --using HMC,VI --repair

    Args:
        using: engines between commas, each with an optional label in front: label=engine.
        reference: the label to trust; the first engine when not given.
        out: a folder for report.html, comparison.json and the draws; runs/STORY-compare when
            not given.
    """
    import ppgen
    from ppgen.cli.engines import engines

    common = common or Common()
    chosen = engines(using)
    if len(chosen) < 2:
        raise ValueError(f"--using {using}: give two engines or more; one alone: ppgen fit {story}")
    trusted = reference or next(iter(chosen))
    if trusted not in chosen:
        raise ValueError(f"--reference {trusted!r} is not among {', '.join(chosen)}")
    with common.active():
        model, arguments = bayes_story(story, data)
        folder = _folder(story, "compare", out, overwrite)
        args, kwargs = by_position(model, on_device(arguments, common.device))
        found = ppgen.compare(
            model,
            *args,
            using=chosen,
            reference=trusted,
            repair=repair,
            seed=common.seed,
            **kwargs,
        )
        page = found.save(folder)
    common.print(f"{found}\n\nreport: {page}", {**found.to_json(), "report": str(page)})
    return common.code(all(v.level == "pass" for v in found.verdicts.values()))


def calibrate(
    story: Story,
    /,
    *,
    data: DataFile = None,
    using: str = "HMC(chains=32, draws=50, warmup=200)",
    simulations: int = 200,
    draws: int = 100,
    level: float = 0.01,
    given_data: GivenData = False,
    out: Path | None = None,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Check an engine on data that the story itself has drawn, whose true parameters are known.

    Try:

        ppgen calibrate eight_schools --using VI --simulations 100
        ppgen calibrate mystory.py:model --data my.csv --given-data

    Args:
        using: the engine, with options in brackets.
        simulations: data sets to draw and to fit.
        draws: of each posterior, at most, among which the true value is ranked.
        level: the chance that a correct engine is flagged.
        out: a folder for report.html, calibration.json and calibration.png;
            runs/STORY-calibrate when not given.
    """
    import ppgen
    from ppgen.cli.engines import engine
    from ppgen.cli.pages import calibration_page
    from ppgen.inference import calibrate_given_data

    common = common or Common()
    chosen = engine(using)
    with common.active():
        model, arguments = bayes_story(story, data)
        folder = _folder(story, "calibrate", out, overwrite)
        run = calibrate_given_data if given_data else ppgen.calibrate
        args, kwargs = by_position(model, on_device(arguments, common.device))
        found = run(
            model,
            chosen,
            *args,
            simulations=simulations,
            draws=draws,
            level=level,
            seed=common.seed,
            **kwargs,
        )
        found.save(folder)
        page = calibration_page(found).save(folder / "report.html")
    common.print(f"{found}\n\nreport: {page}", {**found.to_json(), "report": str(page)})
    return common.code(found.passed)


def _folder(story: str, what: str, out: Path | None, overwrite: bool) -> Path:
    """Where results go; without --out a folder of the story's own, which is used again."""
    name = story.rpartition("/")[2].replace(".py:", "-")
    return new_folder(out or Path("runs") / f"{name}-{what}", overwrite or out is None)


def on_device(arguments: dict, device: str) -> dict:
    """The arguments with their tensors on `device`."""
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}


def by_position(model: Any, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without their names, which options such as ``seed`` have too."""
    bound = inspect.signature(model).bind(**arguments)
    return bound.args, bound.kwargs
