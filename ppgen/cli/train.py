"""``ppgen train`` and ``resume``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ppgen.cli import flows, molecules
from ppgen.cli.autoencoders import GREY, check_pixels
from ppgen.cli.bundled import BUNDLED
from ppgen.cli.exits import DONE, INTERRUPTED, NOT_PASSED
from ppgen.cli.measurements import measuring
from ppgen.cli.model_options import CodeOptions, FlowOptions, MachineOptions, refuse_unused
from ppgen.cli.options import Binarisation, Common, Run, a, note
from ppgen.cli.runs import (
    held_out_likelihood,
    latent_sentence,
    load_data,
    read_settings,
    write_page,
)
from ppgen.cli.sentences import beside_ngrams, is_text, tokenizer_of
from ppgen.cli.starts import first_rank, prepare, run_config, trains_top_alone
from ppgen.cli.training import (
    MACHINES,
    arguments,
    build,
    has_real_units,
    held_out,
    hold_out,
    optimisation,
    quick_mean_field,
    usual_epochs,
    usual_rate,
)

if TYPE_CHECKING:
    from ppgen.data import Dataset

Model = Annotated[str, Parameter(help="rbm, dbm, dbn, vae, flow, sentences or molecules.")]

_HIDDEN = {"vae": 400, "sentences": 128, "molecules": 256}
# of one kind of text alone
_OF_TEXT = {
    "word_dropout": "sentences",
    "least": "sentences",
    "characters": "sentences",
    "notation": "molecules",
}
_TEXT_DRAWS = 100  # of importance sampling, for the line at the end


def train(
    model: Model,
    /,
    *,
    data: str = "digits",
    folder: Path | None = None,
    binarisation: Binarisation | None = None,
    epochs: int | None = None,
    batch_size: int = 100,
    learning_rate: float | None = None,
    hidden: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    decay: Annotated[bool, Parameter(negative="")] = False,
    averaging: float = 0.0,
    start_from: Path | None = None,
    patience: int | None = None,
    out: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    checkpoint_every: int | None = None,
    machine: MachineOptions | None = None,
    code: CodeOptions | None = None,
    flow: FlowOptions | None = None,
    common: Common | None = None,
) -> int:
    """Train a Boltzmann machine, a VAE or a flow on images, a table of 0 and 1, text or molecules.

    Try:

        ppgen train rbm --data digits --epochs 20 --out runs/rbm
        ppgen train rbm --visible-units gaussian --epochs 60 --averaging 0.99
        ppgen train rbm --labels --gibbs-steps 5 --learning-rate 0.2 --batch-size 20 --epochs 100
        ppgen train dbm --hidden 200 300 --start-from runs/rbm --persistent
        ppgen train vae --data mnist --folder ~/mnist --hidden 400 --epochs 50
        ppgen train vae --convolutional --channels 16 32 --refine 0 --pixels causal
        ppgen train flow --layer coupling --flow-layers 8 --hidden 64 64
        ppgen train sentences --data grammar --latent 8 --free-bits 1
        ppgen train molecules --data molecules --epochs 10 --decay

    Args:
        data: digits, mnist, fashion-mnist, or a file (see `ppgen data`); for sentences a .txt
            file, one a line, or grammar; for molecules a .smi file, one a line, or molecules, the
            ones that ship.
        folder: where the files of a named data set lie.
        binarisation: how grey images become 0 and 1: static draws each pixel once, with its grey
            level as probability, dynamic anew each epoch; threshold cuts at a half. Static for the
            named data sets, none for grey --pixels, when not given.
        epochs: passes over the training data; 20 when not given, and on few examples as many as
            make 2,000 steps, up to 200.
        batch_size: examples of one step; all of them, where there are fewer.
        learning_rate: 0.05 for an RBM, 0.1 for a DBM, 0.02 for a DBN (0.05 for its layers before),
            0.003 for a flow, for sentences and for an RBM of real numbers, 0.002 for molecules,
            0.001 for a VAE.
        hidden: units of each hidden layer; 200 for an RBM, 400 for a VAE, 512 for a flow (128 and
            32 for its other layers), 128 for sentences, 256 for molecules. One number for a DBM is
            its first layer's, and its second has half as many; a DBN's are alike.
        decay: the learning rate falls linearly, to nothing after the last epoch.
        averaging: decay, a little below 1, of an exponential average of the parameters over the
            steps, which is what the run keeps; 0 for none.
        start_from: an earlier run. A VAE begins with its parameters, by name and shape. The layers
            of an RBM, or of a DBM or DBN with no more layers, become the lowest of a DBM or DBN; a
            DBN then trains its top layer alone, but all of them where the run has as many.
        patience: stop after so many epochs without a better validation, and keep the best; not of
            a Boltzmann machine, whose validation, the free-energy gap, begins at its smallest.
        out: the run folder; runs/MODEL-DATA when not given.
        overwrite: replace the run that is there.
        checkpoint_every: steps between checkpoints; once an epoch when not given.
    """
    common = common or Common()
    if model not in BUNDLED or BUNDLED[model].kind != "deep":
        names = ", ".join(n for n, b in BUNDLED.items() if b.kind == "deep")
        fits = f"; that one is fitted: ppgen fit {model}" if model in BUNDLED else ""
        raise ValueError(f"no model {model!r} to train: there are {names}{fits}")
    _check_patience(model, patience)
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: expected a whole number, at least 1")
    if hidden is not None and not hidden:
        raise ValueError("--hidden: give it a number, or leave it out")
    machine, code, flow = machine or MachineOptions(), code or CodeOptions(), flow or FlowOptions()
    units = flows.usual_hidden(flow.layer) if model == "flow" else _HIDDEN.get(model, 200)
    out = out or Path("runs") / f"{model}-{Path(data).stem}"
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "folder": None if folder is None else str(folder),
        "binarisation": binarisation,
        "seed": common.seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "hidden": hidden or [units],
        "decay": decay,
        "averaging": averaging,
        "start_from": None if start_from is None else str(start_from),
        "patience": patience,
        "checkpoint_every": checkpoint_every,
    }
    settings |= _of_its_kind(model, machine, code)
    refuse_unused(model, machine, code, flow)
    if model in ("flow", "vae"):
        settings |= flows.options(model, flow, settings.get("posterior", "normal"))
    if learning_rate is None:
        settings["learning_rate"] = usual_rate(settings)
    if settings.get("pixels") in GREY or has_real_units(settings):
        settings["binarisation"] = binarisation or "none"
    if model in MACHINES:
        settings["top_alone"] = trains_top_alone(settings)
    with common.active():
        if is_text(settings):  # goes into the run, whatever becomes of the file
            settings["tokenizer"] = tokenizer_of(settings).as_dict()
        examples = load_data(settings, "train")
        if epochs is None:
            settings["epochs"] = usual_epochs(len(examples) - held_out(examples), batch_size)
        _check_gibbs_steps(machine.gibbs_steps, settings["epochs"], machine.compile)
        return _train(settings, examples, out, common, overwrite=overwrite)


def resume(
    run: Run,
    /,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    common: Common | None = None,
) -> int:
    """Go on with a training run that was stopped or killed, bit for bit.

    Its random numbers are those of the run; --seed here is that of the draws on the report alone.

    Try:

        ppgen resume runs/rbm
        ppgen resume runs/vae --epochs 200 --patience 20

    Args:
        epochs: in all; as many as were asked for last when not given.
        patience: stop after so many epochs without a better validation, counted from the best one
            so far, and keep that one; as was asked for last when not given.
    """
    common = common or Common()
    settings = read_settings(run)
    _check_patience(settings["model"], patience)
    settings["epochs"] = settings["epochs"] if epochs is None else epochs
    settings["patience"] = settings["patience"] if patience is None else patience
    with common.active():
        return _train(settings, load_data(settings, "train"), run, common, resume=True)


def _check_patience(model: str, patience: int | None) -> None:
    if patience is not None and model in MACHINES:
        raise ValueError(
            f"--patience {patience}: the validation of {a(model)} is its free-energy gap, which is "
            "smallest before training; watch the likelihood itself with --likelihood-every"
        )


def _check_sampler(machine: MachineOptions) -> None:
    tempering = machine.sampler == "tempering"
    if machine.temperatures is not None and (not tempering or machine.temperatures < 1):
        raise ValueError(
            f"--temperatures {machine.temperatures}: 1 or more, of --sampler tempering; this is "
            f"--sampler {machine.sampler}"
        )
    if tempering and not machine.persistent:
        raise ValueError(
            "--sampler tempering: its replicas find other modes over many updates, and would begin "
            "at the data at each; give --persistent too"
        )
    if machine.sampler == "langevin" and machine.visible_units != "gaussian":
        raise ValueError(
            "--sampler langevin: its steps are of real numbers, --visible-units gaussian; binary "
            "units are drawn anew (gibbs), or swapped with their past (trajectory)"
        )
    if machine.sampler == "trajectory" and machine.compile:
        raise ValueError(
            "--compile: --sampler trajectory decides on its way what to do next, which no graph "
            "can; leave one of them out"
        )


def _check_gibbs_steps(steps: tuple[int, ...], epochs: int, compile: bool) -> None:
    given = f"--gibbs-steps {' '.join(map(str, steps))}"
    if min(steps) < 1:
        raise ValueError(f"{given}: each at least 1")
    if len(steps) > epochs:
        raise ValueError(f"{given}: {len(steps)} parts of {epochs} epochs; give fewer numbers")
    if len(steps) > 1 and compile:
        raise ValueError(f"{given}: under --compile an update has one number of them for good")


def _check_sparsity(machine: MachineOptions) -> None:
    target = machine.sparsity_target
    if machine.sparsity < 0:
        raise ValueError(f"--sparsity {machine.sparsity:g}: 0, for none, or more")
    if target is not None and not (machine.sparsity and 0 < target < 1):
        raise ValueError(
            f"--sparsity-target {target:g}: between 0 and 1, with a --sparsity above 0 that drives "
            "the units towards it"
        )
    if machine.sparsity and machine.hidden_units == "gaussian":
        raise ValueError("--sparsity: gaussian hidden units are never off; take binary or relu")


def _of_its_kind(model: str, machine: MachineOptions, code: CodeOptions) -> dict[str, Any]:
    """The options that the model looks at."""
    if model in MACHINES:
        for side in ("visible", "hidden"):
            units = getattr(machine, f"{side}_units")
            if model != "rbm" and units != "binary":
                raise ValueError(f"--{side}-units {units}: {model} has binary ones only")
        if machine.visible_units == "gaussian" and machine.hidden_units != "binary":
            raise ValueError(
                f"--hidden-units {machine.hidden_units}: with gaussian visible ones there is no "
                "density once weights are large; leave it out, or train in Python: GaussianRBM"
            )
        if code.pixels != "binary":
            raise ValueError(f"--pixels {code.pixels}: of a vae; an rbm takes real numbers, as "
                             "grey levels, by --visible-units gaussian")  # fmt: skip
        if machine.labels and (machine.visible_units, machine.hidden_units) != ("binary", "binary"):
            raise ValueError("--labels: beside binary visible units and over binary hidden ones; "
                             "leave --visible-units and --hidden-units out")  # fmt: skip
        _check_sampler(machine)
        _check_sparsity(machine)
        if machine.posterior_sweeps < 0:
            raise ValueError(f"--posterior-sweeps {machine.posterior_sweeps}: 0 or more")
        steps = machine.gibbs_steps
        return {
            **asdict(machine),
            "gibbs_steps": steps[0] if len(steps) == 1 else list(steps),
            "weight_decay": code.weight_decay,
        }
    if model != "vae" and code.pixels != "binary":
        hint = "; of real numbers: ppgen.models.Flow, in Python" if model == "flow" else ""
        raise ValueError(f"--pixels {code.pixels}: of a vae, not of {model}{hint}")
    found = {k: v for k, v in asdict(code).items() if _OF_TEXT.get(k, model) == model}
    found["latent"] = code.latent or (128 if model == "molecules" else 20)
    if code.beta is None:
        found["beta"] = 0.02 if model == "molecules" else 1.0
    if code.warm_up and found["beta"] != 1:
        raise ValueError("--warm-up ends at a weight of 1: give it with --beta 1, or leave it out")
    return found


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

    if examples.x.ndim != 2:
        raise ValueError(f"{examples.name}: expected one example a row, got {examples.x.shape}")
    if not (is_text(settings) or has_real_units(settings)):  # those were looked at when read
        check_pixels(examples, settings)
    if settings["model"] == "molecules":
        properties = molecules.properties(settings)
        settings.setdefault("properties", molecules.scales(properties))
        examples = replace(examples, labels=properties)
    kept, validation = hold_out(examples)
    story = build(settings, kept)
    again, stopped = prepare(
        story, settings, kept, common.device, out, resume=resume, overwrite=overwrite
    )
    with quick_mean_field(story, settings):
        result = stopped or ppgen.train(
            story,
            arguments(kept, settings),
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            averaging=settings["averaging"],
            validation=arguments(validation, settings),
            patience=settings["patience"],
            seed=settings["seed"],
            device=common.device,
            out=out,
            resume=again,
            overwrite=overwrite and not again,
            checkpoint_every=settings["checkpoint_every"],
            callbacks=measuring(out, validation, settings, common),
            config=run_config(settings),
            **optimisation(settings),
        )
    if not first_rank():
        return DONE if result.stopped != "diverged" else NOT_PASSED
    if result.message:
        note(f"ppgen: {result.message}")
    if result.stopped == "interrupted":
        return INTERRUPTED
    if result.stopped == "diverged":
        return NOT_PASSED
    page, said = write_page(result.story, settings, result.history, out, common)
    more, numbers = "", {}
    if settings["model"] == "sentences":
        held_out = held_out_likelihood(result.story, validation, common, _TEXT_DRAWS)
        more, numbers = beside_ngrams(held_out, kept, validation, tokenizer_of(settings).vocabulary)
        said = None  # of the same, but words are what counts there
    text = (
        f"{settings['model']}: {result.epochs} epochs, {result.steps} steps, {result.seconds:.1f} s"
        f"{more}{latent_sentence(result.story, validation, common)}"
    )
    if said is not None:
        text, numbers = f"{text}\non {said}", {**numbers, "held_out": said}
    common.print(
        f"{text}\nrun: {out}\nreport: {page}",
        {"run": str(out), "report": str(page), "epochs": result.epochs, "steps": result.steps,
         "seconds": result.seconds, "stopped": result.stopped, **numbers},
    )  # fmt: skip
    return DONE
