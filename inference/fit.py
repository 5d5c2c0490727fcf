"""One call for every inference method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppgen.inference.hmc_engine import HMC
from ppgen.inputs import slots
from ppgen.posterior import Posterior
from ppgen.types import Engine, Story

_SMALL = 20_000  # numbers in the data and parameters


def fit(
    model: Story,
    *args: Any,
    using: Engine | None = None,
    seed: int | None = 0,
    **kwargs: Any,
) -> Posterior:
    """The posterior of a story given its data.

    Args:
        model: the story, any Pyro callable.
        args: its arguments: the data.
        using: the engine with its options; ``HMC()`` when None.
        seed: of the run; the caller's random state is given back afterwards. None continues
            from the caller's random state.
        kwargs: the story's keyword arguments.

    Raises:
        ValueError: where the story or its data cannot be fitted by this engine; it names the site.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppgen.inference import Laplace
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> posterior = fit(coin, torch.tensor(7.0), using=Laplace())
        >>> posterior["p"].shape
        torch.Size([1, 4000])
    """
    engine = HMC() if using is None else using
    if not callable(getattr(engine, "run", None)) or isinstance(engine, type):
        raise TypeError(
            f"using must be an engine with its options, such as HMC(chains=64); got {using!r}"
        )
    with torch.random.fork_rng(enabled=seed is not None), _threads_for(model, args, kwargs):
        if seed is not None:
            torch.manual_seed(seed)
        return engine.run(model, *args, **kwargs)


@contextmanager
def _threads_for(model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """One thread for a story with little data, and the old number afterwards.

    Its tensors are too small to share: threads that wait for each other made a flow guide ten
    times slower on a busy machine, and no faster on an idle one.
    """
    numbers = sum({id(t): t.numel() for _, t in slots(model, args, kwargs)}.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if numbers < _SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
