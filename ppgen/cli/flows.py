"""What a flow's options on the command line stand for: its layers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ppgen.cli.model_options import FlowOptions
    from ppgen.models import DequantizedFlow

_USUAL = {  # layers, and units of a hidden one
    "autoregressive": (1, 512),
    "coupling": (8, 128),
    "spline": (4, 128),
    "planar": (16, 0),
    "radial": (16, 0),
    "sylvester": (8, 0),
    "continuous": (1, 32),
}
_OF_A_POSTERIOR = {"planar": 10, "sylvester": 10, "iaf": 4, "spline": 2}  # layers
_COLUMNS, _MOST_COLUMNS = 8, 64  # of a Sylvester layer
_BINS, _BOUND = 8, 4.0


def options(model: str, given: FlowOptions, posterior: str = "normal") -> dict[str, Any]:
    """The settings of a flow, or of a VAE's flow posterior of this name.

    Raises:
        ValueError: for a number of layers or columns that no flow has.
    """
    found = asdict(given)
    layers, columns = given.flow_layers, given.flow_columns
    if layers is None:
        of_a_flow = _USUAL[given.layer][0]
        found["flow_layers"] = _OF_A_POSTERIOR.get(posterior, 10) if model == "vae" else of_a_flow
    elif layers < 1:
        raise ValueError(f"--flow-layers must be at least 1, got {layers}")
    if model == "vae":
        del found["layer"]
    elif columns is not None and not 1 <= columns <= _MOST_COLUMNS:
        raise ValueError(
            f"--flow-columns {columns}: a Sylvester layer takes 1 to {_MOST_COLUMNS}; each is an "
            "equation that waits for the one before, and more would take hours to score"
        )
    return found


def usual_hidden(layer: str) -> int:
    """Units of each hidden layer where none are asked for."""
    return _USUAL[layer][1]


def flow(settings: dict[str, Any], dim: int, hidden: Sequence[int]) -> DequantizedFlow:
    """The untrained story of data with `dim` columns; runs of older versions name no layer."""
    from ppgen.models import DequantizedFlow

    kind = settings.get("layer", "autoregressive")
    if kind == "autoregressive":
        layers = settings["flow_layers"] if "layer" in settings else 1
        return DequantizedFlow(dim, layers=layers, hidden=hidden)
    if kind in ("coupling", "spline") and dim < 2:
        raise ValueError(f"--layer {kind}: needs two columns or more, one to be told by the other")
    from ppgen.transforms.actnorm import ActNorm

    layers = [_layer(kind, i, dim, hidden, settings) for i in range(settings["flow_layers"])]
    return DequantizedFlow(dim, transforms=[*layers, ActNorm(dim)])


def _layer(kind: str, i: int, dim: int, hidden: Sequence[int], settings: dict[str, Any]) -> Any:
    """Layer `i` of real numbers."""
    from ppgen.transforms.continuous import Continuous
    from ppgen.transforms.coupling import Coupling
    from ppgen.transforms.planar import Planar
    from ppgen.transforms.radial import Radial
    from ppgen.transforms.rational_quadratic import RationalQuadratic
    from ppgen.transforms.scalar import Affine, Chain
    from ppgen.transforms.sylvester import Sylvester
    from ppgen.transforms.vector import VectorTransform

    if kind in ("coupling", "spline"):
        spline = kind == "spline"
        scalar_map = Chain([RationalQuadratic(_BINS, _BOUND), Affine()]) if spline else Affine()
        return Coupling(dim, scalar_map, hidden, fixed=range(i % 2, dim, 2))
    if kind == "sylvester":
        columns = min(dim, settings["flow_columns"] or _COLUMNS)
        return VectorTransform(Sylvester(dim, columns))
    if kind == "continuous":
        return VectorTransform(Continuous(dim, hidden[-1]))
    return VectorTransform(Planar(dim) if kind == "planar" else Radial(dim))
