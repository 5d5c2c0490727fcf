"""Explicit generative models in Pyro: write the story once, fit it with any inference.

Importing this package changes no global of torch or Pyro and takes no random number; the
names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppgen._version import __version__ as __version__

if TYPE_CHECKING:
    from ppgen.explanation import Explanation as Explanation
    from ppgen.explanation import explain as explain
    from ppgen.inference.calibrate import calibrate as calibrate
    from ppgen.inference.calibration import Calibration as Calibration
    from ppgen.inference.compare import Comparison as Comparison
    from ppgen.inference.compare import compare as compare
    from ppgen.inference.fit import fit as fit
    from ppgen.inference.likelihood import log_likelihood as log_likelihood
    from ppgen.inference.train import train as train
    from ppgen.likelihood import Likelihood as Likelihood
    from ppgen.posterior import Posterior as Posterior
    from ppgen.program import Program as Program

_HOME = {
    "Calibration": "ppgen.inference.calibration",
    "Comparison": "ppgen.inference.compare",
    "calibrate": "ppgen.inference.calibrate",
    "compare": "ppgen.inference.compare",
    "fit": "ppgen.inference.fit",
    "log_likelihood": "ppgen.inference.likelihood",
    "train": "ppgen.inference.train",
    "Explanation": "ppgen.explanation",
    "explain": "ppgen.explanation",
    "Posterior": "ppgen.posterior",
    "Program": "ppgen.program",
    "Likelihood": "ppgen.likelihood",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ppgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
