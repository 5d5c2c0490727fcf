"""What a story may observe: data that would be misread are refused, by site.

Stories run without validation, as a recording needs; these checks, made once, stand in for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions.constraints import Constraint


def check_observed(msg: Any, name: str, support: str) -> None:
    """Look at the data of an observed site once.

    Args:
        msg: Pyro's message of the site.
        name: its distribution, in words.
        support: its support, in words.

    Raises:
        ValueError: where they are no numbers, do not fit the distribution's shape, or lie outside
            a support that does not depend on other sites; the message names the site.
    """
    site, fn, value = msg["name"], msg["fn"], msg["value"]
    if isinstance(value, (bool, int, float)):
        value = torch.tensor(float(value))
    if not isinstance(value, Tensor):
        raise ValueError(
            f"site '{site}' observes a {type(value).__name__}, where a "
            "tensor is expected: give it torch.as_tensor(...)"
        )
    frames = {f.dim: f.size for f in msg["cond_indep_stack"] if f.vectorized}
    _check_shape(site, fn, value.shape, frames)
    _check_support(site, fn, value, msg["mask"], f"{name} (support: {support})")


def _check_shape(site: str, fn: Any, shape: Size, plates: dict[int, int]) -> None:
    rank = len(fn.event_shape)
    given, event = shape[: len(shape) - rank], shape[len(shape) - rank :]
    # an event dimension of 1 may stand for any length, as in a hidden Markov model
    if len(shape) < rank or any(
        want not in (1, got) for want, got in zip(fn.event_shape, event, strict=True)
    ):
        raise ValueError(
            f"site '{site}' observes data of shape {tuple(shape)}, of which the last {rank} "
            f"dimensions should be one event of shape {tuple(fn.event_shape)}"
        )
    expected = Size(fn.batch_shape)
    try:
        joint = torch.broadcast_shapes(expected, given)
    except RuntimeError as error:
        raise ValueError(
            f"site '{site}' observes data of shape {tuple(shape)}, and its distribution has batch "
            f"shape {tuple(expected)}: they do not fit"
        ) from error
    if given.numel() == 1:
        return  # one value for all, as the 1 of a censored unit
    padded = (1,) * (len(joint) - len(given)) + tuple(given)
    repeated = [
        size
        for dim, size in enumerate(joint, start=-len(joint))
        if size > padded[dim] and plates.get(dim) != size
    ]
    crossed = _stripped(joint) not in (_stripped(expected), _stripped(given))
    if repeated or crossed:
        raise ValueError(
            f"site '{site}' observes data of shape {tuple(shape)}, and its distribution has batch "
            f"shape {tuple(expected)}: together they broadcast to {tuple(joint)}, so that every "
            "value would count several times; bring both to one shape, as with .squeeze(-1)"
        )


def _stripped(shape: Size) -> tuple[int, ...]:
    """Without leading ones, which mean nothing."""
    sizes = list(shape)
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


def _check_support(site: str, fn: Any, value: Tensor, mask: Any, what: str) -> None:
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return
    if not _fixed(fn, support):
        return
    inside = support.check(value)
    if isinstance(mask, Tensor):
        inside = inside | ~mask
    if mask is False or bool(inside.all()):
        return
    where = (~inside).nonzero()[0].tolist()
    first = value.broadcast_to((*inside.shape, *value.shape[inside.dim() :]))[tuple(where)]
    raise ValueError(
        f"observed site '{site}' is {first.tolist()} at index {where} ({int((~inside).sum())} of "
        f"{inside.numel()} values), which is impossible under its distribution {what}"
    )


def _fixed(fn: Any, support: Any) -> bool:
    """Whether the support is the same whatever the other sites are: no tensor in its bounds."""
    while fn is not None:
        if hasattr(fn, "_mask"):
            return False  # some of the data count for nothing
        fn = getattr(fn, "base_dist", None)
    parts = [support]
    while parts:
        part = parts.pop()
        if any(isinstance(v, Tensor) for v in vars(part).values()):
            return False
        parts += [v for v in vars(part).values() if isinstance(v, Constraint)]
    return True
