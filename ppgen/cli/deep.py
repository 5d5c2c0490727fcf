"""``ppgen train``, ``resume``, ``evaluate``, ``sample`` and ``report``: deep stories."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ppgen.cli.exits import DONE, INTERRUPTED, NOT_PASSED
from ppgen.cli.options import Common, note
from ppgen.cli.runs import (
    default_place,
    draw_examples,
    held_out_likelihood,
    latent_sentence,
    load_data,
    picture,
    read_metrics,
    read_settings,
    restored,
    something_to_start_from,
    write_images,
    write_page,
)
from ppgen.cli.sentences import is_text, scores, show_samples, tokenizer_of
from ppgen.cli.stories import BUNDLED
from ppgen.cli.training import LEARNING_RATES, build, hold_out, optimisation, pretrain

if TYPE_CHECKING:
    from ppgen.data import Dataset

Model = Annotated[str, Parameter(help="rbm, dbm, dbn, vae, flow or sentences.")]
Run = Annotated[Path, Parameter(help="A run folder that `ppgen train` wrote.")]
Binarisation = Literal["static", "dynamic", "threshold", "none"]


def train(
    model: Model,
    /,
    *,
    data: str = "digits",
    folder: Path | None = None,
    binarisation: Binarisation | None = None,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float | None = None,
    hidden: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    latent: int = 20,
    convolutional: Annotated[bool, Parameter(negative="")] = False,
    prior: Literal["standard", "mixture", "vampprior", "flow"] = "standard",
    posterior: Literal["normal", "full", "planar", "sylvester"] = "normal",
    flow_layers: int = 10,
    warm_up: int = 0,
    free_bits: float = 0.0,
    word_dropout: float = 0.0,
    characters: Annotated[bool, Parameter(negative="")] = False,
    gibbs_steps: int = 1,
    persistent: Annotated[bool, Parameter(negative="")] = False,
    decay: Annotated[bool, Parameter(negative="")] = False,
    averaging: float = 0.0,
    patience: int | None = None,
    out: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    checkpoint_every: int | None = None,
    common: Common | None = None,
) -> int:
    """Train a Boltzmann machine, a VAE or a flow on images, a table of 0 and 1, or text.

    Try:

        ppgen train rbm --data digits --epochs 20 --out runs/rbm
        ppgen train vae --data mnist --folder ~/mnist --hidden 400 --epochs 50
        ppgen train dbn --hidden 200 300 --persistent
        ppgen train sentences --data grammar --latent 8 --free-bits 1

    Args:
        data: digits, mnist, fashion-mnist, or a file (see `ppgen data`); for sentences a .txt
            file, one a line, or grammar.
        folder: where the files of a named data set lie.
        binarisation: of grey images; static for the named data sets.
        epochs: passes over the training data.
        batch_size: examples of one step.
        learning_rate: 0.05 for an RBM, 0.1 for a DBM, 0.02 for a DBN (0.05 for its layers before),
            0.003 for a flow and for sentences, 0.001 for a VAE.
        hidden: units of each hidden layer; 200 for an RBM, 400 for a VAE, 512 for a flow, 128 for
            sentences. One number for a DBM is its first layer's, and its second has half as many;
            a DBN's are alike.
        latent: dimensions of a VAE's code.
        convolutional: a VAE's networks are convolutional; hidden is the encoder's last width.
        prior: of a VAE's code; the mixtures have 50 components.
        posterior: of a VAE's code; planar and sylvester are flows told by the encoder.
        flow_layers: of that posterior.
        warm_up: steps over which the weight of a VAE's divergence rises from 0 to 1.
        free_bits: nats of each unit's divergence that training leaves alone.
        word_dropout: share of the tokens before that the decoder of sentences does not see.
        characters: tokens of sentences are characters instead of words.
        gibbs_steps: of contrastive divergence.
        persistent: chains go on from step to step.
        decay: the learning rate falls linearly, to nothing after the last epoch.
        averaging: decay of an exponential average of the parameters; 0 for none.
        patience: stop after so many epochs without a better validation.
        out: the run folder; runs/MODEL-DATA when not given.
        overwrite: replace the run that is there.
        checkpoint_every: steps between checkpoints; once an epoch when not given.
    """
    common = common or Common()
    if model not in BUNDLED or BUNDLED[model].kind != "deep":
        names = ", ".join(n for n, b in BUNDLED.items() if b.kind == "deep")
        raise ValueError(f"no model {model!r} to train: there are {names}")
    out = out or Path("runs") / f"{model}-{Path(data).stem}"
    settings = {
        "model": model,
        "data": data,
        "folder": None if folder is None else str(folder),
        "binarisation": binarisation,
        "seed": common.seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate or LEARNING_RATES[model],
        "hidden": hidden or [{"vae": 400, "flow": 512, "sentences": 128}.get(model, 200)],
        "latent": latent,
        "convolutional": convolutional,
        "prior": prior,
        "posterior": posterior,
        "flow_layers": flow_layers,
        "warm_up": warm_up,
        "free_bits": free_bits,
        "gibbs_steps": gibbs_steps,
        "persistent": persistent,
        "decay": decay,
        "averaging": averaging,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
    }
    if is_text(settings):
        settings |= {"word_dropout": word_dropout, "characters": characters}
    with common.active():
        if is_text(settings):  # goes into the run, whatever becomes of the file
            settings["tokenizer"] = tokenizer_of(settings).as_dict()
        return _train(settings, load_data(settings, "train"), out, common, overwrite=overwrite)


def resume(run: Run, /, *, epochs: int | None = None, common: Common | None = None) -> int:
    """Go on with a training run that was stopped or killed, bit for bit.

    Try:

        ppgen resume runs/rbm

    Args:
        epochs: in all; as many as were asked for when not given.
    """
    common = common or Common()
    settings = read_settings(run)
    settings["epochs"] = epochs or settings["epochs"]
    with common.active():
        return _train(settings, load_data(settings, "train"), run, common, resume=True)


def evaluate(
    run: Run,
    /,
    *,
    data: str | None = None,
    folder: Path | None = None,
    split: Literal["train", "test"] = "test",
    samples: int = 5000,
    chains: int = 100,
    temperatures: int = 1000,
    common: Common | None = None,
) -> int:
    """Held-out log-likelihood in nats per example, and what kind of number it is.

    Try:

        ppgen evaluate runs/rbm --data digits

    Args:
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        split: of the data.
        samples: of importance sampling, for all but an RBM.
        chains: of annealed importance sampling, for a Boltzmann machine too large to enumerate.
        temperatures: likewise.
    """
    common = common or Common()
    settings = read_settings(run)
    with common.active():
        if data is not None:
            settings |= {"data": data, "folder": None if folder is None else str(folder)}
        examples = load_data(settings, split)
        story = restored(settings, examples, run).to(common.device)
        found = held_out_likelihood(story, examples, common, samples, chains, temperatures)
        code = latent_sentence(story, examples, common)
    more, numbers = scores(found, examples) if is_text(settings) else ("", {})
    what = f"{settings['model']} on {examples.describe()}"
    common.print(f"{what}: {found}{more}{code}", {"story": settings["model"],
                 "data": examples.describe(), **asdict(found), **numbers})  # fmt: skip
    return DONE


def sample(
    run: Run,
    /,
    *,
    count: int = 64,
    gibbs_steps: int = 1000,
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Draw new examples: a picture, text, or numbers where the data are neither.

    Try:

        ppgen sample runs/vae --count 100

    Args:
        count: how many.
        gibbs_steps: of a Boltzmann machine's chains.
        out: a .png or .npy file; samples.png in the run folder when not given. Sentences are
            printed, or written to a .txt file.
    """
    common = common or Common()
    settings = read_settings(run)
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    with common.active():
        examples = something_to_start_from(settings, run)
        story = restored(settings, examples, run).to(common.device)
        x = draw_examples(story, examples, count, gibbs_steps, common.seed)
        if is_text(settings):
            show_samples(x, settings, out, common)
            return DONE
        path = out or default_place(run, "samples", examples)
        write_images(path, x, examples, lambda _: picture(x, examples, settings["model"]))
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
        path = write_page(story, settings, read_metrics(run), run, common)
    common.print(f"report: {path}", {"report": str(path)})
    return DONE


def _train(
    settings: dict[str, Any],
    examples: Dataset,
    out: Path,
    common: Common,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    import ppgen
    from ppgen.data import check_binary

    if examples.x.ndim != 2:
        raise ValueError(f"{examples.name}: expected one example a row, got {examples.x.shape}")
    if not is_text(settings):
        check_binary(examples.x, examples.name)
    kept, validation = hold_out(examples)
    story = build(settings, kept)
    if settings["model"] == "dbn" and not resume:
        pretrain(story, settings, kept, common.device)
    result = ppgen.train(
        story,
        kept,
        epochs=settings["epochs"],
        batch_size=min(settings["batch_size"], len(kept)),
        learning_rate=settings["learning_rate"],
        averaging=settings["averaging"],
        validation=validation,
        patience=settings["patience"],
        seed=settings["seed"],
        device=common.device,
        out=out,
        resume=resume,
        overwrite=overwrite,
        checkpoint_every=settings["checkpoint_every"],
        config={"story": {"name": settings["model"]}, "command": settings},
        **optimisation(settings),
    )
    if not _first_rank():
        return DONE if result.stopped != "diverged" else NOT_PASSED
    if result.message:
        note(f"ppgen: {result.message}")
    if result.stopped == "interrupted":
        return INTERRUPTED
    if result.stopped == "diverged":
        return NOT_PASSED
    page = write_page(result.story, settings, result.history, out, common)
    text = (
        f"{settings['model']}: {result.epochs} epochs, {result.steps} steps, {result.seconds:.1f} s"
        f"{latent_sentence(result.story, validation, common)}"
    )
    common.print(
        f"{text}\nrun: {out}\nreport: {page}",
        {"run": str(out), "report": str(page), "epochs": result.epochs, "steps": result.steps,
         "seconds": result.seconds, "stopped": result.stopped},
    )  # fmt: skip
    return DONE


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"
