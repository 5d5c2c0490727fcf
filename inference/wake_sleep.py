"""Wake-sleep as a loss of any Pyro pair whose data are its arguments."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen.inference.importance_weighted import WeightedLoss
from ppgen.inference.importance_weights import Pair, Weights, weigh
from ppgen.inference.pair import Record, Site, lean


class WakeSleep(WeightedLoss):
    r"""Wake-sleep: the model learns from what the guide sees in data, the guide from dreams.

    .. math:: \nabla_\theta: E_{q(z \mid x)} \nabla \log p(x, z), \quad
        \nabla_\phi: E_{p(x', z')} \nabla \log q(z' \mid x')

    A dream is drawn from the model, one for each example; the guide is shown its data and asked
    for its latents. No gradient goes through a draw, so that discrete latents are as good as
    others. The two phases have no objective in common: the guide comes near the posterior by
    ``KL(p || q)``, over what the model dreams and not over the data. The number is the negative
    ELBO of the data. `ReweightedWakeSleep` teaches the guide on the data.

    Args:
        draws: from the guide for each example, averaged.

    Raises:
        ValueError: when an observed site's value is no argument of the model, so that the guide
            could not be shown another.

    References:
        | The Wake-Sleep Algorithm for Unsupervised Neural Networks (Hinton et al., 1995)
    """

    def __init__(self, draws: int = 1) -> None:
        super().__init__(draws)

    def _bound(self, weights: Weights) -> Tensor:
        return weights.elbo()

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        with torch.no_grad():
            drawn = pair.run_guide()
            dreamed, latents = _dream(pair)
        weights = weigh(pair, drawn)
        wake = weights.scale * weights.log_p.mean(0).sum()
        return weights, wake + _log_prob(pair._replace(args=dreamed[0], kwargs=dreamed[1]), latents)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _dream(pair: Pair) -> tuple[Arguments, dict[str, Tensor]]:
    """The arguments with data that the model drew in the place of those it was given, and the rest.

    Raises:
        ValueError: for data that are no argument.
    """
    (model,) = lean(pair.model)
    record = Record()
    with pyro.validation_enabled(False), record:
        poutine.uncondition(model)(*pair.args, **pair.kwargs)
    args, latents = [*pair.args, *pair.kwargs.values()], dict(record.values)
    for name, site in record.sites.items():
        if "was_observed" in site.options:
            seen, value = site.options["obs"], latents.pop(name)
            args[_place(name, seen, args)] = value.to(seen)
    count = len(pair.args)
    return (tuple(args[:count]), dict(zip(pair.kwargs, args[count:], strict=True))), latents


def _place(name: str, seen: Tensor, args: list[Any]) -> int:
    for i, arg in enumerate(args):
        alike = isinstance(arg, Tensor) and arg.shape == seen.shape
        if alike and (arg is seen or torch.equal(arg.to(seen), seen)):
            return i
    raise ValueError(
        f"wake-sleep shows the guide data that the model dreamed, in the place of the argument "
        f"that the observed site {name!r} is; no argument is its value, {tuple(seen.shape)}: use "
        "ReweightedWakeSleep"
    )


def _log_prob(pair: Pair, values: dict[str, Tensor]) -> Tensor:
    """``log q(values | arguments)``, summed and scaled, nats."""
    (guide,) = lean(pair.guide)
    record = Record(values)
    with pyro.validation_enabled(False), record:
        guide(*pair.args, **pair.kwargs)

    def term(site: Site) -> Any:
        return scale_and_mask(site.fn.log_prob(site.value), site.scale, site.mask).sum()

    return sum(map(term, record.sites.values()), torch.zeros(()))
