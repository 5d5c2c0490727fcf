"""What a VAE's training step costs: bare PyTorch, ppgen's ELBO, Pyro's, and the peers' own.

One step is forward, backward and Adam on a 784-400-20 VAE with a batch of 128. The arms take turns,
so that a busy machine slows all of them alike, in blocks of ten steps, because training repeats one
step; the ratio is the median over rounds of arm over bare in the same round. The second bare arm
shows the noise.

- *bare PyTorch*, *ppgen ELBO*, *Pyro Trace_ELBO* and *TraceMeanField_ELBO* share networks and fused
  Adam; the last three are one Pyro pair.
- *Pyro's example* is built as pyro.ai's VAE tutorial is: softplus, exponential scale, probabilities
  of pixels unvalidated, `SVI.step` with `pyro.optim.Adam`.
- *pythae, its model* is pythae's VAE in the bare loop with fused Adam; *pythae, its trainer* is the
  same as `BaseTrainer` runs it, with its loader; beside it, in the second table, `ppgen.train` with
  its set-up counted in.

Peers that are not installed are left out, by name, with the command that installs them.

Run: OMP_NUM_THREADS=2 python benchmarks/vae_step.py [rounds [block]]
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import ppgen
from ppgen.inference.elbo import ELBO
from ppgen.models.vae import VAE
from ppgen.progress import quiet

PIXELS, HIDDEN, LATENT, BATCH, RATE = 784, 400, 20, 128, 1e-3
EPOCHS = 20  # of the second table
Step = Callable[[], float]


def bare(x: Tensor) -> Step:
    vae = VAE(PIXELS, LATENT, (HIDDEN,))
    optimizer = torch.optim.Adam(vae.parameters(), RATE, fused=True)
    hidden, head, decoder = vae.encoder, vae.posterior.head, vae.decoder

    def step() -> float:
        optimizer.zero_grad()
        loc, raw = head(hidden(x)).chunk(2, -1)
        scale = torch.exp(5 * torch.tanh(raw / 10))
        z = loc + scale * torch.randn_like(loc)
        divergence = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        loss = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + divergence
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def pair(x: Tensor, loss: Trace_ELBO) -> Step:
    vae = VAE(PIXELS, LATENT, (HIDDEN,))
    optimizer = torch.optim.Adam(vae.parameters(), RATE, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()
        return value

    return step if isinstance(loss, ELBO) else scoped(step)


def scoped(step: Step) -> Step:
    """With a parameter store of its own, which Pyro's losses fill."""
    scope: dict[str, Any] = {}

    def run() -> float:
        with pyro.get_param_store().scope(scope.get("store")) as scope["store"]:
            return step()

    return run


class PyrosExample(nn.Module):
    """The VAE of Pyro's tutorial by its published structure."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus())
        self.loc, self.log_scale = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS), nn.Sigmoid()
        )

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            zeros, ones = x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            pixels = dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            features = self.encoder(x)
            scale = torch.exp(self.log_scale(features))
            pyro.sample("z", dist.Normal(self.loc(features), scale).to_event(1))


def pyros_example(x: Tensor) -> Step:
    vae = PyrosExample()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    return scoped(lambda: float(svi.step(x)))


def pythae_model() -> nn.Module:
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU())
            self.loc, self.log_var = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.hidden(x)
            return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS), nn.Sigmoid()
            )

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z))

    config = VAEConfig(input_dim=(PIXELS,), latent_dim=LATENT, reconstruction_loss="bce")
    return PythaeVAE(config, Encoder(), Decoder())


def pythae_step(x: Tensor) -> Step:
    model, batch = pythae_model(), {"data": x}
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def pythae_epoch(x: Tensor) -> Step:
    """An epoch over the rows of `x`, as pythae's trainer runs it, its progress left out."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    logging.disable(logging.INFO)
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, learning_rate=RATE,
        no_cuda=True,
    )  # fmt: skip
    trainer = BaseTrainer(
        pythae_model(), BaseDataset(x, torch.zeros(len(x))), training_config=config
    )
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], trainer.model)
    return lambda: trainer.train_step(1)


def ppgen_epochs(x: Tensor) -> Step:
    """`EPOCHS` epochs by `ppgen.train`, from the first call on."""

    def step() -> float:
        with quiet():
            vae = VAE(PIXELS, LATENT, (HIDDEN,))
            result = ppgen.train(
                vae, x, epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, device="cpu"
            )
        return result.history["loss"][-1]

    return step


def race(arms: dict[str, tuple[Step, int, int]], rounds: int, warm: int) -> dict[str, list[float]]:
    """Seconds a step of each arm in each round; an arm is a call, how often, and steps in all."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + warm):
        for name, (call, calls, steps) in arms.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            if turn >= warm:
                seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def show(seconds: dict[str, list[float]], base: str) -> None:
    quick = statistics.quantiles(seconds[base], n=10)[0]
    print(f"{'arm':26s} {'median ms':>10s} {'ratio':>7s} {'ratio of fastest tenths':>24s}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        tenth = statistics.quantiles(times, n=10)[0] / quick
        print(f"{name:26s} {1e3 * statistics.median(times):10.2f} {ratio:7.3f} {tenth:24.3f}")


def main(rounds: int = 100, block: int = 10) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(BATCH, PIXELS))
    rows = torch.bernoulli(torch.rand(BATCH * block, PIXELS))
    there = importlib.util.find_spec("pythae") is not None
    steps = {
        "bare PyTorch": bare(x),
        "bare PyTorch again": bare(x),
        "ppgen ELBO": pair(x, ELBO()),
        "Pyro Trace_ELBO": pair(x, Trace_ELBO()),
        "Pyro TraceMeanField_ELBO": pair(x, TraceMeanField_ELBO()),
        "Pyro's example": pyros_example(x),
    }
    if there:
        steps["pythae, its model"] = pythae_step(x)
    else:
        print("pythae is left out; install it with: pip install --no-deps pythae", file=sys.stderr)
    arms = {name: (step, block, block) for name, step in steps.items()}
    show(race(arms, rounds, warm=5), "bare PyTorch")
    print(f"\na whole loop: {EPOCHS} epochs of {block} batches, loader or set-up counted in")
    loops = {"ppgen train": (ppgen_epochs(rows), 1, EPOCHS * block)}
    if there:
        loops["pythae, its trainer"] = (pythae_epoch(rows), EPOCHS, EPOCHS * block)
    show(race(loops, max(4, rounds // 20), warm=1), "ppgen train")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
