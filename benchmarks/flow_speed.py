"""How long flows take: ppgen against Zuko and normflows at the same architecture, in one process.

Coupling layers, half of the coordinates moving in turns, each with a network of the same widths:
shift and scale (Real NVP) and rational-quadratic splines. Timed are a log density, a draw, and each
with the gradient of its sum in all parameters, in time of the CPU on one thread. The peers take
turns in blocks of a few calls; the table has the medians over blocks, and in brackets how many
times ppgen's they are (above 1: ppgen is faster). Peers that are not installed are left out, by
name.

Run: python benchmarks/flow_speed.py [--dim 16 --layers 8 --width 64 --bins 8 --batch 256]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppgen.models.flow import Flow
from ppgen.networks.mlp import MLP
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine

BOUND = 5.0  # of the splines: Zuko's only one


class Contestant:
    """A flow: its parameters, its log density and its draws with their log density."""

    def __init__(
        self,
        module: nn.Module,
        log_prob: Callable[[Tensor], Tensor],
        draw: Callable[[int], tuple[Tensor, Tensor]],
    ) -> None:
        self.module, self.log_prob, self.draw = module, log_prob, draw


def ours(kind: str, o: argparse.Namespace) -> Contestant:
    scalar_map = Affine() if kind == "affine" else RationalQuadratic(o.bins, BOUND)
    widths, half = (o.width, o.width), o.dim // 2
    halves = range(half), range(half, o.dim)
    layers = [Coupling(o.dim, scalar_map, widths, fixed=halves[i % 2]) for i in range(o.layers)]
    flow = Flow(o.dim, transforms=layers)
    return Contestant(
        flow,
        flow.log_prob,
        lambda n: flow.density().rsample_with_log_prob(torch.Size([n])),  # type: ignore[attr-defined]
    )


def zukos(kind: str, o: argparse.Namespace) -> Contestant:
    import zuko

    more = {}
    if kind == "spline":
        shapes = [(o.bins,), (o.bins,), (o.bins - 1,)]
        more = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": shapes}
    widths = (o.width, o.width)
    flow = zuko.flows.NICE(o.dim, transforms=o.layers, hidden_features=widths, **more)
    return Contestant(
        flow, lambda x: flow().log_prob(x), lambda n: flow().rsample_and_log_prob((n,))
    )


def normflowss(kind: str, o: argparse.Namespace) -> Contestant:
    import normflows as nf
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    half, layers = o.dim // 2, []
    for i in range(o.layers):
        if kind == "affine":
            network = MLP((half, o.width, o.width, 2 * half))
            split = "channel" if i % 2 else "channel_inv"
            layers.append(nf.flows.AffineCouplingBlock(network, split_mode=split))
        else:
            # without the extra splines and residual networks of its wrapper
            spline = PiecewiseRationalQuadraticCoupling(
                mask=nf.utils.masks.create_alternating_binary_mask(o.dim, even=bool(i % 2)),
                transform_net_create_fn=lambda inputs, outputs: Plain(
                    inputs, o.width, o.width, outputs
                ),
                num_bins=o.bins,
                tails="linear",
                tail_bound=BOUND,
            )
            layers.append(Reversed(spline, nf.flows.Flow))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(o.dim, trainable=False), layers)
    return Contestant(flow, flow.log_prob, flow.sample)


class Plain(MLP):
    """A network that takes the context which normflows passes, and does without."""

    def __init__(self, *widths: int) -> None:
        super().__init__(widths)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def Reversed(spline: nn.Module, base: type) -> nn.Module:
    """Normflows' own wrapper of a spline: its forward is base to data."""

    class Layer(base):
        def __init__(self) -> None:
            super().__init__()
            self.spline = spline

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            z, log_det = self.spline.inverse(z)
            return z, log_det.view(-1)

        def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
            z, log_det = self.spline(z)
            return z, log_det.view(-1)

    return Layer()


MAKERS = {"ppgen": ours, "zuko": zukos, "normflows": normflowss}


def tasks(one: Contestant, x: Tensor) -> dict[str, Callable[[], object]]:
    def with_gradient(value: Callable[[], Tensor]) -> Callable[[], object]:
        parameters = [p for p in one.module.parameters() if p.requires_grad]
        return lambda: torch.autograd.grad(value().sum(), parameters, allow_unused=True)

    def without(value: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(value)

    def drawn() -> Tensor:
        z, log_q = one.draw(len(x))
        return z.sum(-1) + log_q

    return {
        "log density": without(lambda: one.log_prob(x)),
        "draw": without(lambda: one.draw(len(x))),
        "log density, gradient": with_gradient(lambda: one.log_prob(x)),
        "draw, gradient": with_gradient(drawn),
    }


def medians(work: dict[str, Callable[[], object]], blocks: int, calls: int) -> dict[str, float]:
    """Milliseconds a call, by name; the names take turns, and each block another first."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        for _ in range(3):
            call()
    names = list(work)
    for block in range(blocks):
        first = block % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            for _ in range(calls):
                work[name]()
            times[name].append(1e3 * (time.process_time() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in {"dim": 16, "layers": 8, "width": 64, "bins": 8, "batch": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--calls", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [name for name in MAKERS if importlib.util.find_spec(name)]
    print("not installed:", ", ".join(n for n in MAKERS if n not in found) or "none")
    print(f"{'ms a call':34s}" + "".join(f"{name:>18s}" for name in found))
    for kind in ("affine", "spline"):
        torch.manual_seed(0)
        contestants = {name: MAKERS[name](kind, options) for name in found}
        with torch.no_grad():
            for one in contestants.values():  # off the identity, alike for all
                for parameter in one.module.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        x = torch.randn(options.batch, options.dim)
        work = {name: tasks(one, x) for name, one in contestants.items()}
        for task in work["ppgen"]:
            ms = medians({n: work[n][task] for n in found}, options.blocks, options.calls)
            cells = "".join(f"{ms[n]:10.2f} ({ms[n] / ms['ppgen']:4.2f})" for n in found)
            print(f"{kind + ' coupling: ' + task:34s}{cells}", flush=True)


if __name__ == "__main__":
    main()
