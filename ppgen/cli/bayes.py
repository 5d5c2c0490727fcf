"""``ppgen explain``, ``fit`` and ``compare``: Bayesian stories."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ppgen.cli.options import Common, DataFile, Story, new_folder, note
from ppgen.cli.stories import bayes_story
from ppgen.summary import json_ready

Overwrite = Annotated[bool, Parameter(negative="", help="Use --out although it is not empty.")]


def explain(story: Story, /, *, data: DataFile = None, common: Common | None = None) -> int:
    """Show what a story consists of: sites, shapes, supports, plates, what is recorded.

    The page to look at when shapes do not fit. Try:

        ppgen explain eight_schools
        ppgen explain mystory.py:model --data my.csv
    """
    from ppgen.explain import explain as explanation

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
    out: Path | None = None,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Fit a Bayesian story and print its posterior.

    Try:

        ppgen fit eight_schools
        ppgen fit mystory.py:model --data my.csv --using "VI(guide='flow')" --out runs/mine

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
        posterior = ppgen.fit(
            model, using=chosen, seed=common.seed, **on_device(arguments, common.device)
        )
        if folder is not None:
            posterior.save(folder / "posterior")
            posterior.to_datatree(model, **arguments).to_netcdf(
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
            "messages": list(posterior.messages),
            "seconds": posterior.cost.seconds,
            "scalars": [json_ready(asdict(row)) for row in summary.rows],
        },
    )
    return common.code(posterior.converged)


def compare(
    story: Story,
    /,
    *,
    data: DataFile = None,
    using: str = "HMC,VI",
    reference: str | None = None,
    out: Path | None = None,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Fit a story with several engines and say how far each is from the reference.

    Try:

        ppgen compare eight_schools --using HMC,VI
        ppgen compare mystory.py:model --data my.csv --using "HMC, flow=VI(guide='flow')"

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
    trusted = reference or next(iter(chosen))
    if trusted not in chosen:
        raise ValueError(f"--reference {trusted!r} is not among {', '.join(chosen)}")
    with common.active():
        model, arguments = bayes_story(story, data)
        name = story.rpartition("/")[2].replace(".py:", "-")
        folder = new_folder(out or Path("runs") / f"{name}-compare", overwrite or out is None)
        found = ppgen.compare(
            model,
            using=chosen,
            reference=trusted,
            seed=common.seed,
            **on_device(arguments, common.device),
        )
        page = found.save(folder)
    common.print(f"{found}\n\nreport: {page}", {**found.to_json(), "report": str(page)})
    return common.code(all(v.level == "pass" for v in found.verdicts.values()))


def on_device(arguments: dict, device: str) -> dict:
    """The arguments with their tensors on `device`."""
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}
