"""Import every module of ppgen; fail if that changes a global, draws a random number or is heavy.

Prints where ppgen came from. Runs in the environment of whoever asks: the tests', the wheel's.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import random
import signal
import sys
import warnings

import numpy
import pyro
import torch
from torch import _tensor_str

LATE = ("arviz_base", "arviz_stats", "arviz_plots", "matplotlib.pyplot", "xarray")  # 2 to 5 s


def state() -> dict[str, object]:
    """Everything global that an import might change."""
    return {
        "random": random.getstate(),
        "numpy.random": repr(numpy.random.get_state()),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "torch's print options": repr(_tensor_str.PRINT_OPTS),
        "numpy's errors": numpy.geterr(),
        "torch's validation": torch.distributions.Distribution._validate_args,
        "pyro.settings": pyro.settings.get(),
        "the parameter store": set(pyro.get_param_store()),
        "Pyro's handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "warning filters": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "signal handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "sys.excepthook": sys.excepthook,
    }


def main() -> None:
    """Import all, compare the state before with the state after."""
    before = state()
    package = importlib.import_module("ppgen")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "ppgen.")]
    if not {"ppgen.models", "ppgen.inference", "ppgen.program"} <= set(names):
        sys.exit(f"check_imports: modules are missing: only {names} found")
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    after = state()
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        sys.exit(f"check_imports: importing ppgen changes {', '.join(changed)}")
    early = [name for name in LATE if name in sys.modules]
    if early:
        sys.exit(f"check_imports: to be imported when first used: {', '.join(early)}")
    print(package.__file__)


if __name__ == "__main__":
    main()
