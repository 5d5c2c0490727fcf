"""Flows of the Zuko library as transforms and distributions of Pyro."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.transforms.bijection import Bijection
from ppgen.transforms.pushforward import Pushforward


class ZukoTransform(Bijection, TransformModule):
    """A lazy transform of Zuko, turned round: base to data.

    Its parameters are the lazy transform's, so that an optimizer and a checkpoint see them. Zuko
    builds the map anew at each call; nothing is cached, and no value outlives an update.

    Args:
        lazy: such as ``zuko.flows.NSF(3).transform``, which goes from data to base.
        context: what a conditional transform is told, ``(*, C)``: other rows, other maps.
        support: the constraint of the data; all real vectors by default.

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``.

    References:
        | Zuko: Normalizing flows in PyTorch (Rozet et al., 2022)
        | https://github.com/probabilists/zuko

    Example: ``Flow(3, transforms=[ZukoTransform(zuko.flows.NSF(3).transform)])``, a
        :class:`ppgen.models.Flow` like any other.
    """

    domain = constraints.real_vector
    codomain: Any

    def __init__(
        self,
        lazy: nn.Module,
        context: Tensor | None = None,
        *,
        support: Any = constraints.real_vector,
    ) -> None:
        super().__init__()
        self.lazy, self.context, self.codomain = lazy, context, support

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lazy(self.context).inv.call_and_ladj(x)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.lazy(self.context).call_and_ladj(y)


def from_zuko(
    flow: nn.Module, context: Tensor | None = None, *, support: Any = constraints.real_vector
) -> Pushforward:
    """A flow of Zuko as a distribution that Pyro can use anywhere.

    It has a support, draws with gradients and no cache, so that a site ``pyro.sample("z",
    from_zuko(flow))`` works under plates and with autoguides, NUTS, `Predictive` and
    ``ppgen.fit``. Trainable in a story: ``pyro.module("flow", flow)`` there, or an attribute of a
    `PyroModule`; as a fixed prior call ``flow.requires_grad_(False)``. Importing zuko switches off
    the validation of all of torch's distributions; ``torch.distributions.Distribution
    .set_default_validate_args(True)`` switches it on again.

    Args:
        flow: such as ``zuko.flows.NSF(3)``.
        context: of a conditional flow, ``(*, C)``; its leading axes are the batch shape.
        support: the constraint of the data; a circular flow's is an interval.

    Shapes: batch ``(*)``, event ``(D,)``.

    Raises:
        TypeError: for what has no transform and base, such as Zuko's mixtures.
    """
    if not hasattr(flow, "transform") or not hasattr(flow, "base"):
        raise TypeError(
            "from_zuko needs a flow with a transform and a base, such as zuko.flows.NSF(3); "
            f"got {type(flow).__name__}"
        )
    base: Any = flow.base(context)  # type: ignore[operator]
    if context is not None:
        base = base.expand(context.shape[:-1])
    transform = ZukoTransform(flow.transform, context, support=support)  # type: ignore[arg-type]
    return Pushforward(base, [transform])
