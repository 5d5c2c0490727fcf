"""The table of commands. They import what they need when they run, so that help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter, convert

from ppgen._version import __version__
from ppgen.cli.bayes import calibrate, compare, explain, fit
from ppgen.cli.benchmark import benchmark
from ppgen.cli.deep import evaluate, report, sample
from ppgen.cli.demo import demo
from ppgen.cli.inpainting import inpaint
from ppgen.cli.latent import interpolate, reconstruct
from ppgen.cli.look import data, doctor, models
from ppgen.cli.train import resume, train


def _whole(kind: Any, text: str) -> Any:
    """One value from the shell; of whole numbers no others, which cyclopts would round."""
    if kind is int and "." in text and not float(text).is_integer():
        raise ValueError
    try:
        return convert(kind, [text])
    except CycloptsError as error:
        if kind in (int, float):  # cyclopts then says of which option
            raise ValueError from error
        raise


def _converted(kind: Any, tokens: Sequence[Any]) -> Any:
    return convert(kind, tokens, converter=_whole)


app = App(
    name="ppgen",
    version=__version__,
    help="Explicit generative models in Pyro: write the story once, fit it with any inference, "
    "know how far each answer is from the truth. Results go to stdout, progress to stderr.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # it has an exit code of ours
    default_parameter=Parameter(converter=_converted),
)

for _command in (
    demo,
    models,
    data,
    explain,
    fit,
    compare,
    calibrate,
    train,
    resume,
    evaluate,
    sample,
    inpaint,
    interpolate,
    reconstruct,
    report,
    doctor,
    benchmark,
):
    app.command(_command)
