r"""Flows on the globe: a known target, Gemici's point, and earthquakes.

1. The four-component target of Rezende et al. (2020), fitted by reverse KL: KL in nats against
   the exact log Z = 10.921586, and the effective share of 20,000 importance-weighted draws.
2. A flow through the stereographic chart fitted with and without the log-determinant of the
   surface (Gemici et al., 2016): the second is no density.
3. Earthquakes: held-out log-likelihood in nats per event of the uniform law, of mixtures of von
   Mises-Fisher laws (EM), of recursive flows and of mixtures of Moebius flows (EM). Sizes and
   seeds are chosen on a part of the training set, by the validation column.

    python benchmarks/spheres.py [target|gemici|earthquakes] ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppgen
from ppgen import data
from ppgen.distributions import SphereUniform, VonMisesFisher
from ppgen.distributions.bessel import bessel_ratio
from ppgen.distributions.sphere import log_area
from ppgen.inference import fit_energy
from ppgen.models.moebius_mixture import MoebiusMixture
from ppgen.models.sphere_flow import SphereFlow
from ppgen.models.torus_flow import TorusFlow
from ppgen.progress import quiet
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.circle import CircularSpline, Moebius
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine, Chain
from ppgen.transforms.sphere import ExponentialMap, Recursive, SphereMap
from ppgen.transforms.stereographic import Stereographic

KAPPA, LOG_Z = 10.0, 10.921586  # log(16 pi sinh(10) / 10)
PLACES = torch.tensor([(1.5, 0.7), (1.0, -1.0), (5.0, 0.6), (4.0, -0.7)], dtype=torch.float64)
DRAWS = 20_000


def target(x: Tensor) -> Tensor:
    azimuth, up = PLACES.T
    across = up.cos()
    mu = torch.stack([across * azimuth.cos(), across * azimuth.sin(), up.sin()], -1)
    return torch.logsumexp(KAPPA * x @ mu.T, -1)


def push(layers: Sequence[SphereMap], count: int) -> tuple[Tensor, Tensor]:
    """Draws and their log density."""
    x = SphereUniform(2).sample(torch.Size([count]))
    log_q = x.new_full((count,), -log_area(2))
    for layer in layers:
        x, log_det = layer.forward_with_log_det(x)
        log_q = log_q - log_det
    return x, log_q


def fit_target(layers: Sequence[SphereMap], steps: int, rate: float) -> tuple[float, ...]:
    start = time.perf_counter()
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, log_q = push(layers, 256)
        optimizer.zero_grad()
        (log_q - target(x)).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, log_q = push(layers, DRAWS)
        log_weights = target(x) - log_q
    weights = (log_weights - log_weights.max()).exp()
    effective = weights.sum() ** 2 / weights.square().sum() / DRAWS
    error = float(log_weights.std()) / DRAWS**0.5
    kl = LOG_Z - float(log_weights.mean())
    return kl, error, float(effective), time.perf_counter() - start


def on_target() -> None:
    cases: dict[str, tuple[Callable[[], Sequence[SphereMap]], int, float]] = {
        "recursive, splines, 1 layer": (lambda: [Recursive()], 1500, 1e-2),
        "recursive, splines, 2 layers": (lambda: list(SphereFlow(bins=8).transforms), 1500, 5e-3),
        "recursive, Moebius 12": (lambda: [Recursive(longitude=Moebius(12))], 400, 1e-2),
        "exponential maps, N=6, K=5": (
            lambda: [ExponentialMap(2, 5) for _ in range(6)], 2500, 5e-2
        ),
        "exponential maps, N=24, K=5": (
            lambda: [ExponentialMap(2, 5) for _ in range(24)], 2500, 5e-2
        ),
    }  # fmt: skip
    print(f"{'S^2 target, kappa 10':32} {'steps':>6} {'KL':>18} {'ESS':>7} {'seconds':>8}")
    for name, (build, steps, rate) in cases.items():
        torch.manual_seed(0)
        kl, error, effective, seconds = fit_target(build(), steps, rate)
        print(f"{name:32} {steps:6} {kl:9.4f} +- {error:.4f} {effective:7.1%} {seconds:8.0f}")


def gemici() -> None:
    """Reverse KL to one component with a planar flow, the log-determinant kept or dropped."""
    chart = Stereographic()
    north = VonMisesFisher(torch.tensor([0.0, 0.6, 0.8]), torch.tensor(KAPPA))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    for kept in (True, False):
        torch.manual_seed(0)
        layers = nn.ModuleList(
            Autoregressive(2, Chain([RationalQuadratic(8, 6.0), Affine()]), (32,), order=order)
            for order in ((0, 1), (1, 0))
        )
        optimizer = torch.optim.Adam(layers.parameters(), 5e-3)

        def draw(count: int, layers: nn.ModuleList = layers) -> tuple[Tensor, ...]:
            u = base.sample(torch.Size([count]))
            log_q = base.log_prob(u)
            for layer in layers:
                before, u = u, layer(u)
                log_q = log_q - layer.log_abs_det_jacobian(before, u)
            x = chart(u)
            return x, log_q, log_q - chart.log_abs_det_jacobian(u, x)

        for _ in range(600):
            x, flat, true = draw(256)
            optimizer.zero_grad()
            ((true if kept else flat) - north.log_prob(x)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            x, flat, true = draw(DRAWS)
            believed = ((true if kept else flat) - north.log_prob(x)).mean()
            kl = (true - north.log_prob(x)).mean()
        toward = (x @ north.mean_direction).mean()
        print(
            f"log-determinant {'kept' if kept else 'dropped':8} objective {believed:8.3f}   "
            f"true KL {kl:7.4f}   E[mu.x] {toward:.4f} (exact {north.mean_length:.4f})"
        )


def em(x: Tensor, components: int, sweeps: int = 200) -> dist.MixtureSameFamily:
    """Mixture of von Mises-Fisher laws by maximum likelihood (Banerjee et al., 2005)."""
    mu = x[torch.randperm(len(x))[:components]]
    kappa = x.new_full((components,), 20.0)
    weights = x.new_full((components,), 1 / components)
    for _ in range(sweeps):
        joint = weights.log() + VonMisesFisher(mu, kappa).log_prob(x[:, None])
        share = joint.softmax(-1)
        mass = share.sum(0) + 1e-6
        total = share.T @ x
        length = total.norm(dim=-1)
        mu, weights = total / length[:, None].clamp(min=1e-12), mass / mass.sum()
        kappa = concentration((length / mass).clamp(1e-6, 1 - 1e-7))
        mu = torch.where(length[:, None] > 1e-12, mu, x[:1])  # a component that lost all
    return dist.MixtureSameFamily(dist.Categorical(weights), VonMisesFisher(mu, kappa))


def concentration(length: Tensor) -> Tensor:
    """The concentration whose mean length on S^2 is this, by Newton's method in its log."""
    kappa = length * (3 - length**2) / (1 - length**2)
    for _ in range(5):
        mean = bessel_ratio(0.5, kappa)
        slope = 1 - mean**2 - 2 * mean / kappa
        kappa = kappa * ((length - mean) / (slope * kappa).clamp(min=1e-12)).clamp(-1, 1).exp()
    return kappa.clamp(1e-3, 1e6)  # one event alone would have no bound


def flow(layers: int, x: Tensor, validation: Tensor) -> ppgen.inference.train.TrainResult:
    torch.manual_seed(0)
    story = SphereFlow(layers=layers, bins=32)
    return ppgen.train(
        story, x, epochs=150, batch_size=128, learning_rate=3e-3, validation=validation, patience=20
    )


def earthquakes() -> None:
    train, test = data.load("earthquakes"), data.load("earthquakes", "test").x
    rest, held = train.hold_out(273)
    print(f"earthquakes: {len(rest)} to fit, {len(held)} to choose by, {len(test)} held out; nats")

    def show(name: str, score: Callable[[Tensor], Tensor], seconds: float) -> float:
        with torch.no_grad():
            chosen, final = score(held.x), score(test)
        error = float(final.std()) / len(final) ** 0.5
        print(
            f"{name:36} validation {float(chosen.mean()):7.3f}   test {float(final.mean()):7.3f} "
            f"+- {error:.3f}   {seconds:5.0f} s"
        )
        return float(chosen.mean())

    show("uniform", SphereUniform(2).log_prob, 0.0)
    fits = {"von Mises-Fisher": em, "Moebius flows": MoebiusMixture.from_data}
    for name, fit in fits.items():
        for components in (5, 10, 20, 40, 80, 120):
            start, tried = time.perf_counter(), []
            for seed in range(3):
                torch.manual_seed(seed)
                tried.append(fit(rest.x, components))
            best = max(tried, key=lambda mixture: float(mixture.log_prob(held.x).mean()))
            show(f"{name}, {components} by EM", best.log_prob, time.perf_counter() - start)
    for layers in (1, 2, 3):
        start = time.perf_counter()
        with quiet():
            story = flow(layers, rest.x, held.x).story
        show(f"recursive flow, {layers} layers", story.log_prob, time.perf_counter() - start)


def torus() -> None:
    """The unimodal and correlated targets on T^2 of Rezende et al. (2020)."""
    centre = torch.tensor([4.18, 5.96], dtype=torch.float64)
    targets = {
        "unimodal": (lambda t: (t - centre).cos().sum(-1), 4.147583),
        "correlated": (lambda t: (t.sum(-1) - 1.94).cos(), 3.911668),
    }
    for name, (log_p, log_z) in targets.items():
        torch.manual_seed(0)
        flow = TorusFlow(2, layers=3, hidden=(32,), scalar_map=CircularSpline(8))
        with quiet():
            found = fit_energy(lambda t, log_p=log_p: -log_p(t), flow, steps=600)
        print(f"T^2 {name:12} KL {log_z - found.elbo:.4f} +- {found.elbo_error:.4f}")


PARTS = {"target": on_target, "gemici": gemici, "torus": torus, "earthquakes": earthquakes}

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
