"""The table of commands; each module is imported when its command runs."""

from __future__ import annotations

from cyclopts import App

from ppgen._version import __version__

app = App(
    name="ppgen",
    version=__version__,
    help="Explicit generative models in Pyro: write the story once, fit it with any inference, "
    "know how far each answer is from the truth. Results go to stdout, progress to stderr.",
    result_action="return_value",
)

_COMMANDS = {
    "demo": ("demo:demo", "Everything once, on bundled data: fits, trainings, one page."),
    "models": ("look:models", "List the bundled stories and the engines."),
    "data": ("look:data", "Data sets: what there is, and whether a file is fit for use."),
    "explain": ("bayes:explain", "Show a story's sites, shapes and supports, what is recorded."),
    "fit": ("bayes:fit", "Fit a Bayesian story, yours or a bundled one."),
    "compare": ("bayes:compare", "Fit a story by several methods; say how far each is off."),
    "train": ("deep:train", "Train an RBM, a VAE or a flow."),
    "resume": ("deep:resume", "Go on with a training run, bit for bit."),
    "evaluate": ("deep:evaluate", "Held-out log-likelihood of a run, in nats."),
    "sample": ("deep:sample", "Draw new examples from a run."),
    "report": ("deep:report", "Write a run's report.html anew."),
    "doctor": ("look:doctor", "Versions and devices, and whether the parts work."),
}

for _name, (_place, _help) in _COMMANDS.items():
    app.command(f"ppgen.cli.{_place}", name=_name, help=_help)
