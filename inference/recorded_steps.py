"""A training step's loss and gradients as one tensor program, for stories known to be pure.

Running a Pyro pair costs some 0.3 ms of Python a step, a tenth of the step of a small VAE. A pair
that is made of our own modules and torch's alone does nothing but tensor operations, which a tape
(`ppgen.tape`) writes down once a shape; after that a step replays them, random draws and all, with
the same numbers bit for bit. Whatever else such modules read (their plain attributes, the training
flag, hooks, which tensors they hold) is compared at every step; data checks on the way are
compared too. Where anything differs the step runs as Pyro runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from ppgen.quick_calls import quick
from ppgen.simplify import keep_apart, tidy
from ppgen.tape import Unrecordable, trace_step

_PURE = ("torch.nn.", "ppgen.")  # modules that read tensors and their own attributes alone
_SHAPES = 8  # recorded by one loss: data of ever new shapes run as they are
_VARIANTS = 4  # of a shape, such as training and evaluation; more is a state that ever changes
_TENSORS = ("_parameters", "_buffers", "_modules")  # tables of a module that are compared by entry
_PLAIN = (bool, int, float, str, type(None))


class RecordedSteps:
    """The recorded steps of one loss, by story and shape; each is recorded at its second use."""

    def __init__(self) -> None:
        self._steps: dict[Any, list[_Step]] = {}
        self._never: set[Any] = set()

    def run(
        self,
        loss: Callable[..., Tensor],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        share: float,
    ) -> float | None:
        """Loss (its gradient times `share` is added to ``.grad``), or None: run it as it is.

        Args:
            loss: ``(model, guide, *args) -> ()``, without a look at its result.
            model: of the pair.
            guide: likewise.
            args: of the pair; recorded where all are tensors.
            kwargs: recorded where there are none.
            share: factor of the gradient.
        """
        owner = getattr(model, "__self__", None)
        if not isinstance(owner, nn.Module) or getattr(guide, "__self__", None) is not owner:
            return None
        if kwargs or not all(isinstance(a, Tensor) and not a.requires_grad for a in args):
            return None
        forms = tuple((a.shape, a.dtype, a.device) for a in args)
        key = (id(owner), model.__name__, guide.__name__, share, forms, torch.get_default_dtype())
        if key not in self._steps:
            if len(self._steps) < _SHAPES:
                self._steps[key] = []
            return None
        if key in self._never or _is_watched():
            return None
        step = next((step for step in self._steps[key] if step.holds(owner)), None)
        if step is None:
            if len(self._steps[key]) < _VARIANTS:
                step = _record(loss, owner, model, guide, args, share)
            if step is None:
                self._never.add(key)
                return None
            self._steps[key].append(step)
        return step.run(args)


def _is_watched() -> bool:
    """Whether somebody else wants to see the operations, or changes them."""
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    return am_i_wrapped() or autocast or not torch.is_grad_enabled()


class _Step:
    """One recording, and what has to be as it was for it to hold."""

    def __init__(
        self, owner: nn.Module, program: Callable, looks: list[float], trained: list[nn.Parameter]
    ) -> None:
        self.owner, self.program, self.looks, self.trained = owner, program, looks, trained
        self.tensors = _tensors(owner)
        self.learns = _learns(self.tensors)
        self.states = [(module, _state(module)) for module in owner.modules()]
        self.kept = [dict(vars(module)) for module in owner.modules()]  # so that no id is used anew

    def holds(self, owner: nn.Module) -> bool:
        return (
            owner is self.owner
            and all(_state(module) == state for module, state in self.states)
            and _learns(self.tensors) == self.learns
        )

    def run(self, args: tuple) -> float | None:
        with torch.no_grad():
            (loss, gradients), looks = self.program(*self.tensors, *args)
            value = loss.item()
            if [look.item() for look in looks] != self.looks or not math.isfinite(value):
                return None  # as it is, it says what is wrong, or goes another way
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient
        return value


def _record(
    loss: Callable[..., Tensor],
    owner: nn.Module,
    model: Callable,
    guide: Callable,
    args: tuple,
    share: float,
) -> _Step | None:
    pure = all(f"{type(module).__module__}.".startswith(_PURE) for module in owner.modules())
    if not pure or None in _learns(_tensors(owner)):
        return None
    trained: list[nn.Parameter] = []

    def step() -> tuple[Tensor, list[Tensor]]:
        value = loss(model, guide, *args)
        candidates = [p for p in owner.parameters() if p.requires_grad]
        seed = None if share == 1 else value.new_tensor(share)
        found = torch.autograd.grad(value, candidates, seed, allow_unused=True)
        pairs = [(p, g) for p, g in zip(candidates, found, strict=True) if g is not None]
        trained[:] = [p for p, _ in pairs]
        # laid out as the parameter is: what optimizers are quick with
        laid = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in pairs]
        return value.detach(), laid

    try:
        with torch.random.fork_rng(), torch.enable_grad():
            graph, looks = trace_step(step, [*_tensors(owner), *args])
    except (Unrecordable, RuntimeError, ValueError, TypeError):  # which its own run will explain
        return None
    tidy(graph.graph)
    keep_apart(graph.graph)
    return _Step(owner, quick(graph), looks, trained)


def _tensors(owner: nn.Module) -> list[Tensor]:
    return [*owner.parameters(), *owner.buffers()]


def _learns(tensors: list[Tensor]) -> list[bool | None]:
    """Of each tensor whether it is trained; None where a hook wants to see its gradient."""
    return [
        None if t._backward_hooks or t._post_accumulate_grad_hooks else t.requires_grad
        for t in tensors
    ]


def _state(module: nn.Module) -> list[Any]:
    """What a forward pass may read beside the values of tensors."""
    found: list[Any] = []
    for name, value in vars(module).items():
        if name in _TENSORS:
            found += map(id, value.values())
        elif isinstance(value, _PLAIN):
            found.append(value)
        else:  # of a dictionary, which may hold hooks, how many there are
            found.append(len(value) if isinstance(value, dict) else id(value))
    return found
