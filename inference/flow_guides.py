r"""Normalizing flows as guides: normal noise through invertible layers.

References:
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    | https://arxiv.org/abs/1606.04934
    | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
    | https://arxiv.org/abs/1505.05770
    | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
    | https://arxiv.org/abs/1803.05649
    | Neural Spline Flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
    | Disentangling impact of capacity, objective, batchsize, estimators, and step-size on flow VI
    | (Agrawal & Domke, 2024) | https://arxiv.org/abs/2412.08824
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ppgen.inference.guides import Family, FlatGuide, FullRank, standard_normal
from ppgen.networks.masked import MADE
from ppgen.networks.mlp import conditioner
from ppgen.transforms.planar import Planar
from ppgen.transforms.radial import Radial
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.ridge import RidgeMap, push_score
from ppgen.transforms.scalar import Affine, ScalarMap
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import VectorChain, VectorMap, VectorTransform

_BINS = 8
_BOUND = 5.0  # splines act on [-bound, bound], in standard deviations
_STEEPEST = 3.0  # nats: the largest |log scale| of one affine layer
_COLUMNS = 16  # at most, of a Sylvester layer: its inverse takes as many steps
Transform = Literal["affine", "spline", "autoregressive", "planar", "radial", "sylvester"]


class _Coupling(nn.Module):
    """Some coordinates move, by maps that the others choose; starts as the identity.

    Both directions give their log-determinant in the same pass. Every coordinate goes through
    the network, masked, so that there may be a single one.
    """

    moves: Tensor

    def __init__(self, moves: Tensor, hidden: Sequence[int], scalar_map: ScalarMap) -> None:
        super().__init__()
        self.register_buffer("moves", moves)
        self.scalar_map = scalar_map
        dim = len(moves)
        self.network = conditioner((dim, *hidden, dim * scalar_map.parameters), nn.Tanh)

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.scalar_map.to_data(x, self._raw(x))
        return torch.where(self.moves, y, x), torch.where(self.moves, log_slope, 0.0).sum(-1)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise side of `y`, and ``log |det dx/dy|``."""
        x, log_slope = self.scalar_map.to_base(y, self._raw(y))
        return torch.where(self.moves, x, y), torch.where(self.moves, log_slope, 0.0).sum(-1)

    def _raw(self, x: Tensor) -> Tensor:
        numbers = self.network(torch.where(self.moves, 0.0, x))
        return numbers.unflatten(-1, (-1, self.scalar_map.parameters))


class _Autoregressive(nn.Module):
    """Each coordinate is scaled and shifted by those before it; parallel from noise to draw."""

    def __init__(self, dim: int, hidden: Sequence[int], backwards: bool) -> None:
        super().__init__()
        order = range(dim)[::-1] if backwards else range(dim)
        self.network = MADE(dim, 2, hidden, order=list(order))
        self.scalar_map = Affine(_STEEPEST)

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.scalar_map.to_data(x, self.network(x))
        return y, log_slope.sum(-1)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise side of `y`, one coordinate after the other, and ``log |det dx/dy|``."""
        columns, total = {}, y.new_zeros(y.shape[:-1])

        def make(i: int, raw: Tensor) -> Tensor:
            nonlocal total
            columns[i], log_slope = self.scalar_map.to_base(y[..., i], raw)
            total = total + log_slope
            return columns[i]

        self.network.generate(make, y.shape[:-1])
        return torch.stack([columns[i] for i in range(y.shape[-1])], -1), total


class _Flow(FlatGuide):
    """Noise through layers, then through an affine map of full rank.

    The affine map comes last, so that the layers, and the bounds of splines, always see
    standard deviations of about 1.
    """

    rate = 0.005
    layers: nn.ModuleList

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.outer = FullRank(dim)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_q = standard_normal(noise) - self.outer.log_diagonal.sum()
        for layer in self.layers:
            noise, log_det = layer.forward_with_log_det(noise)  # type: ignore[operator]
            log_q = log_q - log_det
        return self.outer.loc + noise @ self.outer.factor().mT, log_q

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of any points, ``(K, D) -> (K,)``, nats, by the way back to the noise.

        Of couplings and radial maps that is a formula; planar and Sylvester maps find the roots of
        equations of one unknown, and autoregressive layers go through the D coordinates in turn.
        """
        centred = (u - self.outer.loc).mT
        x = torch.linalg.solve_triangular(self.outer.factor(), centred, upper=False).mT
        log_q = -self.outer.log_diagonal.sum()
        for layer in reversed(self.layers):
            x, log_det = layer.inverse_with_log_det(x)  # type: ignore[operator]
            log_q = log_q + log_det
        return standard_normal(x) + log_q

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        with torch.enable_grad():
            point = u.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(point).sum(), point)
        return gradient


class CouplingFlow(_Flow):
    """Coupling layers under a full-rank affine map.

    Layers come in pairs that swap the halves; pair p parts the coordinates by bit p of their
    index, so that log2(D) pairs part any two of them.
    """

    def __init__(self, dim: int, layers: int, hidden: Sequence[int], kind: Transform) -> None:
        super().__init__(dim)
        bits = max(1, (dim - 1).bit_length())
        index = torch.arange(dim)
        spline = kind == "spline"
        scalar_map = RationalQuadratic(_BINS, _BOUND) if spline else Affine(_STEEPEST)
        self.layers = nn.ModuleList(
            _Coupling((index >> (i // 2 % bits)) % 2 == i % 2, hidden, scalar_map)
            for i in range(layers)
        )


class AutoregressiveFlow(_Flow):
    """Inverse autoregressive layers in alternating order, under a full-rank affine map."""

    has_score = False  # the way back takes D steps, one after the other

    def __init__(self, dim: int, layers: int, hidden: Sequence[int]) -> None:
        super().__init__(dim)
        self.layers = nn.ModuleList(
            _Autoregressive(dim, hidden, backwards=i % 2 == 1) for i in range(layers)
        )


class MapFlow(_Flow):
    """Layers of one vector map, each with parameters of its own, under a full-rank affine map."""

    rate = 0.02

    def __init__(self, vector_map: VectorMap, layers: int) -> None:
        super().__init__(vector_map.dim)
        self.vector_map = vector_map
        self.layers = nn.ModuleList([VectorTransform(VectorChain([vector_map] * layers))])

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        if not isinstance(self.vector_map, RidgeMap):
            return super().score(u, noise)
        (chain,) = self.layers
        raw: Any = chain.raw
        ridges = self.vector_map.ridges(raw.unflatten(0, (-1, self.vector_map.parameters)))
        return self.outer.score(u, -push_score(noise, -noise, ridges))


def flow_guide(
    transform: Transform = "affine", *, layers: int = 6, hidden: Sequence[int] = (32,)
) -> Family:
    """A normalizing flow over the whole flat vector, for ``VI(guide=flow_guide())``.

    Args:
        transform: ``"affine"`` coupling (real NVP); ``"spline"`` coupling (rational-quadratic),
            whose steps cost about five times as much; or ``"autoregressive"`` (IAF), whose
            gradients are noisier, since the path derivative would need its slow inverse. The
            maps without a network, ``"planar"``, ``"radial"`` and ``"sylvester"``, bend less
            in a layer and need more of them, 16 to 32.
        layers: how many.
        hidden: widths of the hidden layers of each layer's network, where it has one.
    """
    known = get_args(Transform)
    if transform not in known:
        raise ValueError(f"transform must be one of {', '.join(known)}; got {transform!r}")
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")

    def build(dim: int) -> FlatGuide:
        if transform == "autoregressive":
            return AutoregressiveFlow(dim, layers, hidden)
        if transform == "affine" or transform == "spline":
            return CouplingFlow(dim, layers, hidden, transform)
        return MapFlow(_vector_map(transform, dim), layers)

    options: dict[str, Any] = {"transform": transform, "layers": layers}
    if transform in ("affine", "spline", "autoregressive"):
        options["hidden"] = list(hidden)
    return Family("flow", build, options)


def _vector_map(kind: Transform, dim: int) -> VectorMap:
    if kind == "planar":
        return Planar(dim)
    return Radial(dim) if kind == "radial" else Sylvester(dim, min(dim, _COLUMNS))
