"""What a model's settings mean: the story and the optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ppgen.cli.sentences import is_text, tokenizer_of
from ppgen.cli.stories import BUNDLED

if TYPE_CHECKING:
    from torch import nn

    from ppgen.data import Dataset

LEARNING_RATES = {
    "rbm": 0.05,
    "dbm": 0.1,
    "dbn": 0.02,
    "vae": 1e-3,
    "flow": 3e-3,
    "sentences": 3e-3,
}
MACHINES = ("rbm", "dbm", "dbn")
_COMPONENTS = 50  # of a VAE's mixture prior, or its VampPrior
_HELD_OUT = 0.1  # of the training data, for the validation curve


def build(settings: dict[str, Any], examples: Dataset) -> nn.Module:
    """The untrained story of these settings, its size taken from the data."""
    import torch

    dim, model, hidden = examples.x.shape[1], settings["model"], widths(settings)
    made = BUNDLED[model].load()
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if model == "rbm":
            scale = settings.get("weight_scale", 0.01)
            return made.from_data(examples.x, *hidden, weight_scale=scale)
        if model == "dbm":
            scale = 0.05 if settings.get("start_from") is None else 0.01  # the RBM's law stays
            return made.from_data(examples.x, hidden, weight_scale=scale)
        if model == "dbn":
            return made(dim, hidden, tied=False)
        if model == "vae":
            return made(dim, settings["latent"], hidden, **_parts(settings, examples, hidden[-1]))
        if is_text(settings):
            tokenizer = tokenizer_of(settings)
            sizes = tokenizer.vocabulary, tokenizer.length, settings["latent"], *hidden
            return made(*sizes, word_dropout=settings["word_dropout"])
        return made(dim, hidden=hidden)


def widths(settings: dict[str, Any]) -> tuple[int, ...]:
    """Units of each hidden layer.

    Raises:
        ValueError: where the model cannot have so many layers.
    """
    given, model = settings["hidden"], settings["model"]
    given = (given,) if isinstance(given, int) else tuple(given)
    if model in ("rbm", "sentences") and len(given) != 1:
        raise ValueError(f"--hidden {' '.join(map(str, given))}: {model} takes one number")
    if len(given) == 1 and model == "dbm":
        return given[0], max(1, given[0] // 2)
    return given * 2 if len(given) == 1 and model == "dbn" else given


def _parts(settings: dict[str, Any], examples: Dataset, features: int) -> dict[str, Any]:
    """Of a VAE, those that are not the default ones; runs of older versions name none."""
    latent, parts = settings["latent"], {}
    if settings.get("convolutional"):
        from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder

        if examples.image_shape is None:
            raise ValueError(f"--convolutional needs images; {examples.name} are none")
        shape = (1, *examples.image_shape)
        parts["encoder"] = ConvolutionalEncoder(shape, features)
        parts["decoder"] = ConvolutionalDecoder(shape, latent)
    prior = settings.get("prior", "standard")
    if prior != "standard":
        parts["prior"] = _prior(prior, latent, examples)
    posterior = settings.get("posterior", "normal")
    if posterior != "normal":
        layers = settings["flow_layers"]
        parts["posterior"] = _posterior(posterior, features, latent, layers)
    return parts


def _posterior(name: str, features: int, latent: int, layers: int) -> nn.Module:
    from ppgen.networks.flow_posterior import FlowPosterior
    from ppgen.networks.posteriors import FullNormal
    from ppgen.transforms.planar import Planar
    from ppgen.transforms.sylvester import Sylvester
    from ppgen.transforms.vector import VectorChain

    if name == "full":
        return FullNormal(features, latent)
    if layers < 1:
        raise ValueError(f"--flow-layers must be at least 1, got {layers}")
    maps = {"planar": Planar, "sylvester": Sylvester}
    chain = VectorChain([maps[name](latent) for _ in range(layers)])
    return FlowPosterior(features, latent, chain)


def _prior(name: str, latent: int, examples: Dataset) -> nn.Module:
    import torch

    from ppgen.models import Flow
    from ppgen.networks.priors import FlowPrior, MixturePrior, VampPrior

    if name == "mixture":
        return MixturePrior(latent, _COMPONENTS)
    if name == "flow":
        return FlowPrior(Flow(latent))
    return VampPrior(examples.x[torch.arange(_COMPONENTS) % len(examples)])


def optimisation(settings: dict[str, Any]) -> dict[str, Any]:
    """The loss, the optimizer and the schedule that suit the model, for ``ppgen.train``."""
    import torch

    options: dict[str, Any] = {}
    if settings["model"] in MACHINES:
        from ppgen.inference import ContrastiveDivergence, TopLayer, UpDown

        directed = TopLayer if settings.get("top_alone") else UpDown
        loss = directed if settings["model"] == "dbn" else ContrastiveDivergence
        options["loss"] = loss(settings["gibbs_steps"], persistent=settings["persistent"])
        options["optimizer"] = partial(torch.optim.SGD, momentum=0.5, fused=True)
    elif settings["model"] in ("vae", "sentences"):
        from ppgen.inference import ELBO, WarmUp

        steps = settings.get("warm_up")
        beta = WarmUp(steps) if steps else 1.0
        options["loss"] = ELBO(beta=beta, free_bits=settings.get("free_bits", 0.0))
    elif settings["model"] == "flow":
        options["optimizer"] = partial(torch.optim.AdamW, weight_decay=1e-2, fused=True)
    if settings["decay"]:
        options["schedule"] = partial(_falling, settings["epochs"])
    return options


@contextmanager
def quick_mean_field(story: Any, settings: dict[str, Any]) -> Iterator[None]:
    """For as long as a DBM is trained; its likelihood is measured with the steps that it had."""
    if settings["model"] != "dbm" or "mean_field_steps" not in settings:
        yield
        return
    usual, story.mean_field_steps = story.mean_field_steps, settings["mean_field_steps"]
    try:
        yield
    finally:
        story.mean_field_steps = usual


def hold_out(examples: Dataset) -> tuple[Dataset, Dataset]:
    """What is trained on, and what the validation curve is of."""
    held = max(1, round(_HELD_OUT * len(examples)))
    return examples.hold_out(held)


def _falling(epochs: int, epoch: int) -> float:
    """A learning rate that falls linearly, to nothing after the last epoch."""
    return 1.0 - epoch / epochs
