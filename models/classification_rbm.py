"""Restricted Boltzmann machine of data and their labels, which classifies exactly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.data.errors import check_rows
from ppgen.distributions.units import Beside, Binary, OneHot, softplus
from ppgen.models.bipartite import affine
from ppgen.models.rbm import RBM


class ClassificationRBM(RBM):
    r"""RBM whose visible side is ``(x, y)``, y the label as one softmax group.

    .. math:: p(y \mid x) \propto \exp\Big(a_y + \sum_j \operatorname{softplus}(b_j + U_{yj}
              + (W^\top x)_j)\Big)

    is exact at any size, and so is a sum over missing labels (`log_observed`). As any RBM it learns
    p(x, y) by contrastive divergence; `classifier` is the same machine as a Pyro model of y given
    x, for the discriminative gradient under plain SVI.

    Args:
        visible: units of x and classes together, D + K.
        hidden: H, the number of hidden units.
        classes: K.
        weight_scale: standard deviation of the initial weights.
    Shapes:
        a row ``(x, y)``: ``(*, D + K)``, y one-hot (see `labelled`); labels ``(*)``, whole numbers.

    References:
        | Classification using discriminative restricted Boltzmann machines
          (Larochelle & Bengio, 2008)

    Example:
        >>> rows = labelled(torch.zeros(5, 6), torch.tensor([0, 1, 2, 0, 1]), classes=3)
        >>> rbm = ClassificationRBM.from_data(rows, 4, classes=3)
        >>> tuple(rbm.label_given_data(torch.zeros(5, 6)).probs.shape)
        (5, 3)
    """

    def __init__(
        self, visible: int, hidden: int, *, classes: int, weight_scale: float = 0.01
    ) -> None:
        require_whole(self, least=2, classes=classes)
        require_whole(self, least=classes + 1, visible=visible)  # the classes, and a unit of x
        pixels = visible - classes
        units = Beside(((Binary(), pixels), (OneHot(classes), classes)))
        super().__init__(visible, hidden, weight_scale=weight_scale, units=units)
        self.pixels, self.classes = pixels, classes

    def label_logits(self, x: Tensor) -> Tensor:
        """``log p(x, y)`` of each y, up to a constant: ``(*, D) -> (*, K)``, nats."""
        fields = affine(x, self.weight[: self.pixels], self.hidden_bias)
        each = softplus(fields[..., None, :] + self.weight[self.pixels :])
        return self.visible_bias[self.pixels :] + each.sum(-1)

    def label_given_data(self, x: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=self.label_logits(x))

    def classify(self, x: Tensor) -> Tensor:
        """The most probable label, ``(*, D) -> (*)``."""
        return self.label_logits(x).argmax(-1)

    def _log_observed(self, x: Tensor, observed: Tensor) -> Tensor:
        """A missing label is summed out by its values, at any size of the hidden side."""
        label = torch.arange(self.visible, device=observed.device) >= self.pixels
        if observed[label].any():
            return super()._log_observed(x, observed)
        rows = x.expand(self.classes, -1).clone()
        rows[:, label] = torch.eye(self.classes).to(x)
        each = super()._log_observed
        return torch.stack([each(row, observed | label) for row in rows]).logsumexp(0)

    @pyro_method
    def classifier(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """A Pyro model of the labels given x; nothing is latent (guide: `no_latents`)."""
        with pyro.plate("data", len(check_rows(x))):
            return pyro.sample("y", self.label_given_data(x), obs=labels)

    @pyro_method
    def no_latents(self, x: Tensor, labels: Tensor | None = None) -> None:
        """The guide of `classifier`."""


def labelled(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Rows ``(x, y)`` with one-hot labels: ``(*, D)``, ``(*)`` -> ``(*, D + classes)``."""
    labels = labels.long()
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(
            f"labels: expected 0 to {classes - 1}, got {labels[wrong][0].item()}: give the number "
            "of classes"
        )
    return torch.cat([x, torch.nn.functional.one_hot(labels, classes).to(x)], -1)
