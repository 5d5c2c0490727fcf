"""``ppgen demo``: the main job on the data inside the package, on one page."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.options import Common, new_folder
from ppgen.progress import Interrupt, interruptible

if TYPE_CHECKING:
    from torch import nn

    from ppgen.inference import Comparison
    from ppgen.likelihood import Likelihood
    from ppgen.report import Section

_MACHINE: dict[str, Any] = {"hidden": 200, "averaging": 0.99, "gibbs_steps": 5,
                            "persistent": True, "decay": True}  # fmt: skip
_SETTINGS: dict[str, dict[str, Any]] = {  # chosen on a tenth of the training data, held out
    "rbm": {**_MACHINE, "epochs": 100, "learning_rate": 0.2, "weight_scale": 0.05},
    "dbm": {**_MACHINE, "epochs": 100, "learning_rate": 0.2},
    "dbn": {**_MACHINE, "epochs": 60, "learning_rate": 0.05, "pretraining_rate": 0.2},
    "vae": {"hidden": 400, "latent": 20, "epochs": 60, "learning_rate": 2e-3, "averaging": 0.0,
            "decay": True},
    "flow": {"hidden": 512, "epochs": 100, "learning_rate": 3e-3, "averaging": 0.0,
             "decay": True},
}  # fmt: skip
_BATCH = 64
_ERRORS = (
    "+- MC: Monte Carlo error of the computation.",
    "+- images: error of the mean over these 360 images, as a sample of others.",
    "+- paired: error of the difference to the best, image by image.",
)


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard."""

    name: str
    likelihood: Likelihood
    seconds: float
    story: nn.Module


def demo(*, out: Path = Path("runs/demo"), common: Common | None = None) -> int:
    """Run everything once on bundled data, in under three minutes, and write one page.

    Eight schools is fitted by mean-field VI, a flow guide and HMC, and compared; three
    Boltzmann machines (RBM, DBM, DBN), a VAE and a flow are trained on 8x8 digits, their held-out
    log-likelihoods bounded, and sampled from.

    Try:

        ppgen demo
        ppgen demo --out /tmp/demo --seed 3

    Args:
        out: folder for report.html and the draws.
    """
    common = common or Common()
    start = time.perf_counter()
    new_folder(out, overwrite=True)
    with common.active(), interruptible() as interrupt:
        _say(common, "1/3  Eight schools: mean-field, a flow and HMC")
        found = compare_schools(common.seed, interrupt)
        found.save(out / "eight_schools")
        _say(common, "2/3  Boltzmann machines, a VAE and a flow on 8x8 digits")
        entries = train_digits(common.seed, interrupt)
        _say(common, "3/3  Samples, reconstructions, the page")
        page = _page(found, entries, out, common.seed)
    seconds = time.perf_counter() - start
    board = leaderboard_text(entries)
    text = f"{found}\n\n{board}\n\n{seconds:.0f} s in all; everything on one page: {page}"
    rows = [{"model": e.name, "seconds": e.seconds, **e.likelihood.to_json()} for e in entries]
    data = {"comparison": found.to_json(), "leaderboard": rows, "report": str(page)}
    common.print(text, data)
    tau = next(r for r in found.marginals["mean-field"] if r.name == "tau")
    return common.code(tau.level == "fail")


def compare_schools(seed: int, interrupt: Interrupt) -> Comparison:
    """Centred eight schools by mean-field VI and by a flow, against HMC on the non-centred form.

    Both forms are the same posterior over mu, tau and theta; the centred one has a funnel, in
    which no Markov chain converges, and HMC says so.
    """
    import ppgen
    from ppgen.inference import HMC, VI, flow_guide
    from ppgen.inference.compare import comparison
    from ppgen.models.eight_schools import data, eight_schools, eight_schools_centred

    schools: dict[str, Any] = {**data()}
    reference = ppgen.fit(eight_schools, **schools, using=HMC(), seed=seed)
    posteriors = {"HMC": reference.only("mu", "tau", "theta")}
    for label, engine in {"mean-field": VI(), "flow": VI(guide=flow_guide())}.items():
        posteriors[label] = ppgen.fit(eight_schools_centred, **schools, using=engine, seed=seed)
        _go_on(interrupt)
    return comparison(posteriors, "HMC", "eight schools, centred")


def train_digits(
    seed: int, interrupt: Interrupt, names: Collection[str] = tuple(_SETTINGS)
) -> list[Entry]:
    """The deep stories of these names and base rates, each with its held-out likelihood."""
    import ppgen
    from ppgen.cli.starts import pretrain
    from ppgen.cli.training import build, optimisation
    from ppgen.data import load
    from ppgen.models import BaseRate

    train, test = load("digits", "train", seed=seed), load("digits", "test", seed=seed)
    base = BaseRate(train.x)
    entries = [Entry("base rates", ppgen.log_likelihood(base, test.x), 0.0, base)]
    for name in names:
        own = _SETTINGS[name]
        settings: dict[str, Any] = {"model": name, "seed": seed, "batch_size": _BATCH, **own}
        start = time.perf_counter()
        story = build(settings, train)
        if name == "dbn":
            pretrain(story, settings, train, "cpu", own["epochs"], None)
        result = ppgen.train(
            story,
            train,
            epochs=own["epochs"],
            batch_size=_BATCH,
            learning_rate=own["learning_rate"],
            averaging=own["averaging"],
            seed=seed,
            **optimisation(settings),
        )
        _go_on(interrupt)
        seconds = time.perf_counter() - start
        story = result.story.eval()
        options = {} if name == "rbm" else {"samples": 1000}
        found = ppgen.log_likelihood(story, test.x, seed=seed, **options)
        entries.append(Entry(name, found, seconds, story))
    return entries


def leaderboard_text(entries: list[Entry]) -> str:
    """The table, and what its numbers are."""
    from ppgen.summary import columns

    best = max(entries, key=lambda e: e.likelihood.lower).likelihood
    cells = [["model", "at least", "at most", "+- MC", "+- images", "to the best", "+- paired",
              "which is", "seconds to train"]]  # fmt: skip
    for e in entries:
        found = e.likelihood
        numbers = [found.lower, found.upper, found.lower_error, found.examples_error]
        numbers += ["-", "-"] if found is best else found.minus(best)[:2]
        shown = [("-" if v is None else v if isinstance(v, str) else f"{v:.2f}") for v in numbers]
        cells.append([e.name, *shown, found.kind, f"{e.seconds:.0f}"])
    title = "8x8 digits: nats per image, 360 held-out images, static binarisation"
    return "\n".join([title, columns(cells), *_ERRORS])


def _page(found: Comparison, entries: list[Entry], out: Path, seed: int) -> Path:
    import platform

    import torch

    import ppgen
    from ppgen.inference.compare_report import sections
    from ppgen.report import Report, Verdict

    tau = next(r for r in found.marginals["mean-field"] if r.name == "tau")
    best = max(entries, key=lambda e: e.likelihood.lower)
    found_out = tau.level == "fail"
    verdict = Verdict(
        "pass" if found_out else "warn",
        f"{'As it has to be' if found_out else 'Unlike what is known'}, "
        f"mean-field VI on the centred story is called {tau.level} for tau "
        f"(mean {tau.shift:+.2f} sd, sd ratio {tau.ratio:.2f}). On the digits {best.name} is "
        f"ahead: {best.likelihood}.",
    )
    facts = {
        "ppgen": ppgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    page = Report(
        title="ppgen demo",
        subtitle="One story by several methods, and several stories on one data set.",
        verdict=verdict,
        sections=[*sections(found), _leaderboard(entries), _digits(entries, seed)],
        facts=facts,
    )
    return page.save(out / "report.html")


def _leaderboard(entries: list[Entry]) -> Section:
    from ppgen import plots
    from ppgen.cli.pages import LIKELIHOOD_HEADS, likelihood_row
    from ppgen.report import Picture, Section, Table

    best = max(entries, key=lambda e: e.likelihood.lower).likelihood
    rows = [likelihood_row(e.name, e.likelihood, e.seconds, best) for e in entries]
    caption = f"Held-out log-likelihood in nats per image; static binarisation. {' '.join(_ERRORS)}"
    picture = plots.leaderboard({e.name: e.likelihood for e in entries})
    text = "Larger is better. An arrow is a lower bound, not a value."
    return Section(
        "Digits: the leaderboard",
        tables=[Table(LIKELIHOOD_HEADS, rows, caption)],
        pictures=[Picture(picture, text)],
    )


def _digits(entries: list[Entry], seed: int) -> Section:
    import torch

    from ppgen import plots
    from ppgen.cli.runs import draw_examples
    from ppgen.data import load
    from ppgen.report import Picture, Section

    train, test = load("digits", "train", seed=seed), load("digits", "test", seed=seed)
    shape = test.image_shape or (8, 8)
    pictures = []
    for entry in entries[1:]:
        x = draw_examples(entry.story, train, 40, 1000, seed)
        figure = plots.images(x, shape, title=f"Samples of the {entry.name}")
        pictures.append(Picture(figure, f"New digits drawn from the {entry.name}."))
    stories: dict[str, Any] = {e.name: e.story for e in entries}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        again = stories["vae"].reconstruct(test.x[:20])
    figure = plots.reconstructions(test.x[:20], again, shape)
    pictures.append(Picture(figure, "Held-out digits, and what the VAE makes of their codes."))
    weights = stories["rbm"].weight.detach().T[:64]
    pictures.append(Picture(plots.filters(weights, shape), "What 64 of the RBM's units look for."))
    return Section("Digits: samples and reconstructions", pictures=pictures)


def _go_on(interrupt: Interrupt) -> None:
    if interrupt:
        raise KeyboardInterrupt


def _say(common: Common, text: str) -> None:
    if not common.quiet:
        print(text, file=sys.stderr)
