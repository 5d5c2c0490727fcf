"""``ppgen evaluate``, ``sample`` and ``report``: what a training run has come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli import molecules, real_units
from ppgen.cli.autoencoders import annealed, bits_per_dimension
from ppgen.cli.exits import DONE
from ppgen.cli.labels import class_of, classification, label_column
from ppgen.cli.options import Binarisation, Common, Run, Split, a
from ppgen.cli.runs import (
    THOROUGH,
    chosen,
    default_place,
    draw_examples,
    held_out_likelihood,
    latent_sentence,
    load_data,
    opened,
    picture,
    read_metrics,
    read_settings,
    restored,
    write_images,
    write_page,
)
from ppgen.cli.sentences import empty_text, is_text, scores, show_samples
from ppgen.cli.training import MACHINES, has_real_units

if TYPE_CHECKING:
    from ppgen.data import Dataset
    from ppgen.likelihood import Likelihood


def evaluate(
    run: Run,
    /,
    *,
    data: str | None = None,
    folder: Path | None = None,
    binarisation: Binarisation | None = None,
    split: Split = "test",
    samples: int | None = None,
    thorough: int | None = None,
    anneal: int | None = None,
    chains: int | None = None,
    temperatures: int | None = None,
    raise_chains: int | None = None,
    against: Run | None = None,
    common: Common | None = None,
) -> int:
    """Held-out log-likelihood in nats per example, and what kind of number it is.

    The Monte Carlo error is that of the estimate on these very examples; +- over examples says how
    far their mean may be from that of all there could be. Both are one standard error.

    Try:

        ppgen evaluate runs/rbm
        ppgen evaluate runs/vae --against runs/rbm
        ppgen evaluate runs/rbm --binarisation static --temperatures 5000
        ppgen evaluate runs/vae --samples 5000 --thorough 100

    Args:
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        binarisation: other than that of the training.
        split: of the data; validation is the tenth of the training data that was held out.
        samples: draws of importance sampling for each example, for all but an RBM; 5000 when not
            given, 100 for a DBM or a DBN, whose guides leave out less than log Z is uncertain by,
            20 for molecules.
        thorough: so many examples get all the samples, the others a fiftieth, which is many times
            faster; the mean is corrected by what the full number adds on the former. All examples
            get all when not given, of a flow 100 do.
        anneal: on so many examples a VAE is also measured by annealed importance sampling of the
            code, which does not depend on the encoder: it says how far the other bounds are off.
        chains: of annealed importance sampling; 100 when not given for a Boltzmann machine too
            large to enumerate, 16 for the code of each example.
        temperatures: likewise; 1000 and 500.
        raise_chains: of an RBM, so many reverse passes from each example (RAISE): a lower bound for
            the annealing model, which needs no draws from the machine. Where it lies far below the
            others, annealing misses modes.
        against: another run, to be measured on the same examples: the difference and its paired
            error, in which what makes an example hard for both cancels.
    """
    common = common or Common()
    settings = read_settings(run)
    asked = {
        "samples": samples, "thorough": thorough, "anneal": anneal, "chains": chains,
        "temperatures": temperatures, "raise-chains": raise_chains,
    }  # fmt: skip
    _require_measures(settings["model"], asked)
    with common.active():
        settings |= chosen(data, folder)
        if binarisation is not None:
            settings["binarisation"] = binarisation
        examples = load_data(settings, split)
        story = restored(settings, examples, run).to(common.device)
        found = _measured(story, settings, examples, common, asked)
        code = latent_sentence(story, examples, common)
        numbers: dict[str, Any]
        if is_text(settings):
            more, numbers = scores(story, found, examples, settings)
        elif has_real_units(settings):
            more, numbers = real_units.density(found, settings)
        elif settings.get("labels"):
            more, numbers = classification(story, found, examples.x, examples.split)
        else:
            numbers = bits_per_dimension(found, settings, examples.x.shape[1])
            more = "".join(f"\nat most {bits:.3f} bits per dimension" for bits in numbers.values())
        if raise_chains is not None:
            numbers["raise"] = found.details.pop("raise")["bound"]
            more += (
                f"\nRAISE, {raise_chains} reverse passes from each: >= {numbers['raise']:.2f} nats"
            )
        if settings["model"] == "vae":
            more = f"\nELBO {found.details['elbo']:.2f} nats per example{more}"
        if anneal is not None:
            looseness = annealed(story, examples, common, anneal, chains or 16, temperatures or 500)
            more, numbers = more + looseness[0], numbers | looseness[1]
        if against is not None:
            other = _measured_alike(against, settings, examples, split, common, asked)
            gap = found.minus(other)
            more += f"\n{against}: {other}\nby how much the first is better: {gap}"
            numbers["against"] = {"run": str(against), **other.to_json(), **gap._asdict()}
    what = f"{settings['model']} on {examples.describe()}"
    common.print(f"{what}: {found}{more}{code}", {"story": settings["model"],
                 "data": examples.describe(), **found.to_json(), **numbers})  # fmt: skip
    return common.code(not found.disagrees)


def _measured(
    story: Any, settings: dict[str, Any], examples: Dataset, common: Common, asked: dict[str, Any]
) -> Likelihood:
    """By what was asked for, and where nothing was by what suits the model."""
    model, samples, thorough = settings["model"], asked["samples"], asked["thorough"]
    if samples is None and model not in MACHINES:
        samples = molecules.SAMPLES if model == "molecules" else 5000
    if thorough is None and model == "flow":
        thorough = THOROUGH  # some layers take many minutes else
    return held_out_likelihood(
        story, examples, common, samples, asked["chains"] or 100, asked["temperatures"] or 1000,
        thorough, raise_chains=asked["raise-chains"] or 0,
    )  # fmt: skip


def _measured_alike(
    run: Path,
    named: dict[str, Any],
    examples: Dataset,
    split: Split,
    common: Common,
    asked: dict[str, Any],
) -> Likelihood:
    """The likelihood of the same examples under another run; `named` has the data's settings.

    Raises:
        ValueError: where that run is told other numbers of these data, as a standardised one is.
    """
    of_data = ("data", "folder", "binarisation", "seed")
    settings = read_settings(run)
    settings.update({name: named[name] for name in of_data})
    same = load_data(settings, split)
    if same.x.shape != examples.x.shape or not bool((same.x == examples.x).all()):
        raise ValueError(
            f"--against {run}: it takes these data as other numbers (standardised, with labels, as "
            "tokens): two densities of different things have no difference"
        )
    story = restored(settings, same, run).to(common.device)
    return _measured(story, settings, same, common, asked | {"raise-chains": None})


def _require_measures(model: str, given: dict[str, int | None]) -> None:
    """Refuse what is no number of them, and what a likelihood of this model does not look at."""
    asked = {name: number for name, number in given.items() if number is not None}
    only = {"anneal": ("vae", "the code of a vae"), "raise-chains": ("rbm", "an rbm")}
    idle = {"rbm": ("samples", "thorough"), "dbm": ("thorough",), "dbn": ("thorough",)}
    why = f"{a(model)} is not measured by it"
    if model not in MACHINES and "anneal" not in asked:
        idle[model] = ("chains", "temperatures")
        why = "nothing is annealed here" + (" without --anneal" if model == "vae" else "")
    for name, number in asked.items():
        if name in only and model != only[name][0]:
            raise ValueError(f"--{name} {number}: it is of {only[name][1]}; this is {a(model)}")
        if name in idle.get(model, ()):
            raise ValueError(f"--{name} {number}: {why}; leave it out")
        if number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")


def sample(
    run: Run,
    /,
    *,
    count: int = 64,
    gibbs_steps: int = 1000,
    label: str | None = None,
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Draw new examples: a picture, text, or numbers where the data are neither.

    Try:

        ppgen sample runs/vae --count 100
        ppgen sample runs/labelled --label 3

    Args:
        count: how many. Real units of a machine are shown as their means, without noise.
        gibbs_steps: of a Boltzmann machine's chains, which begin at examples of the training data.
        label: of a run with --labels, a number or a word, draw given it: its units stay where they
            are in every chain.
        out: a .png or .npy file; samples.png in the run folder when not given. Sentences are
            printed, or written to a .txt file. With --labels a .npy file has the label drawn with
            each example as its last column, a word as its place in the order of the alphabet.
    """
    common = common or Common()
    settings = read_settings(run)
    for name, number in (("count", count), ("gibbs-steps", gibbs_steps)):
        if number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    place = None if label is None else class_of(label, settings)
    with common.active():
        if is_text(settings):
            examples = empty_text(settings)
            story = restored(settings, examples, run).to(common.device)
        else:
            story, examples = opened(settings, run, common)
        path = out or default_place(run, "samples", examples)
        means = path.suffix != ".npy"  # numbers are draws, a picture shows what noise lies around
        x = draw_examples(
            story, examples, count, gibbs_steps, common.seed, means=means, label=place
        )
        if is_text(settings):
            show_samples(x, settings, out, common)
            return DONE
        real = has_real_units(settings)
        found = real_units.own_units(x, settings) if real else label_column(x, settings)
        told = "" if label is None else f"Given the label {label}."
        write_images(path, found, examples, lambda _: picture(x, examples, settings, told))
    common.print(f"{count} samples: {path}", {"samples": count, "path": str(path)})
    return DONE


def report(run: Run, /, *, common: Common | None = None) -> int:
    """Write a run's report.html anew: curves, likelihood, samples.

    Try:

        ppgen report runs/rbm
    """
    common = common or Common()
    settings = read_settings(run)
    with common.active():
        examples = load_data(settings, "train")
        story = restored(settings, examples, run)
        path, _ = write_page(story, settings, read_metrics(run), run, common)
    common.print(f"report: {path}", {"report": str(path)})
    return DONE
