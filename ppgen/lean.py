r"""Log densities in fewer operations than torch's own, for recordings.

Under ``vmap`` torch takes the cross entropy of a Bernoulli site apart into some thirty operations,
value and gradient together, each of which passes over all chains and all data. In the form

.. math:: -\log p(y \mid \mathrm{logits}\ x) = \mathrm{softplus}(x) - x y

it is eight. A recording is compared with torch's form at fresh points, as everything recorded is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro.ops.special
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.overrides import TorchFunctionMode

_LINEAR = 40.0  # from here on softplus(x) is x, to rounding in float64


_recording: ContextVar[bool] = ContextVar("recording", default=False)


def recording() -> bool:
    """Whether what runs is being recorded: a form that has first derivatives alone will do."""
    return _recording.get()


class Lean(TorchFunctionMode):
    """Takes the lean form of functions that have one, and one that batches where vmap has none."""

    def __enter__(self) -> Lean:
        self._before = _recording.set(True)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        _recording.reset(self._before)
        super().__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is binary_cross_entropy_with_logits and _plain(args, kwargs):
            return _cross_entropy(*args)
        if func is Tensor.clamp_:  # vmap would do it for one row after another
            return args[0].copy_(torch.clamp(args[0].clone(), *args[1:], **kwargs))
        if func == _DATA:  # vmap gives none
            return args[0].detach()
        return func(*args, **kwargs)


_DATA = Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is asked for each element, without weights."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    return len(args) == 2 and given == {"reduction": "none"}


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return softplus(logits, threshold=_LINEAR) - torch.mul(logits, y)


@contextmanager
def plain_shapes() -> Iterator[None]:
    """``torch.broadcast_shapes`` without symbols: torch's own imports sympy, 0.4 s of a core."""
    own = torch.broadcast_shapes

    def broadcast_shapes(*shapes: Any) -> torch.Size:
        sizes = [(s,) if isinstance(s, int) else tuple(s) for s in shapes]
        joint = [1] * max(map(len, sizes), default=0)
        for size in sizes:
            for dim in range(-len(size), 0):
                if joint[dim] == 1:
                    joint[dim] = size[dim]
                elif size[dim] not in (1, joint[dim]):
                    return own(*shapes)  # says what does not fit
        return torch.Size(joint)

    torch.broadcast_shapes = broadcast_shapes
    try:
        yield
    finally:
        torch.broadcast_shapes = own


@contextmanager
def batched_safe_log() -> Iterator[None]:
    """Pyro's ``safe_log`` as tensor operations: its own is a Function, which vmap cannot batch.

    Discrete hidden Markov models and Pyro's contractions of enumerated sites take it.
    """
    own = pyro.ops.special._SafeLog
    pyro.ops.special._SafeLog = _SafeLog
    try:
        yield
    finally:
        pyro.ops.special._SafeLog = own


class _SafeLog:
    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """``x.log()``, whose slope below eps is that at eps, and all of whose others are right."""
        eps = torch.finfo(x.dtype).eps
        here = x.detach()
        return torch.where(here < eps, here.log() + (x - here) / eps, x.clamp(min=eps).log())
