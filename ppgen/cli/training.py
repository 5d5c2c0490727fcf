"""What a model's settings mean: the story, the optimisation, the pretraining."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
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
_COMPONENTS = 50  # of a VAE's mixture prior, or its VampPrior
_HELD_OUT = 0.1  # of the training data, for the validation curve


def build(settings: dict[str, Any], examples: Dataset) -> nn.Module:
    """The untrained story of these settings, its size taken from the data."""
    import torch

    dim = examples.x.shape[1]
    made = BUNDLED[settings["model"]].load()
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["model"] == "rbm":
            scale = settings.get("weight_scale", 0.01)
            return made.from_data(examples.x, settings["hidden"], weight_scale=scale)
        if settings["model"] == "dbm":
            hidden = settings["hidden"], max(1, settings["hidden"] // 2)
            return made.from_data(examples.x, hidden, weight_scale=0.05)
        if settings["model"] == "dbn":
            return made(dim, (settings["hidden"], settings["hidden"]), tied=False)
        if settings["model"] == "vae":
            hidden = (settings["hidden"],)
            return made(dim, settings["latent"], hidden, **_parts(settings, examples))
        if is_text(settings):
            tokenizer = tokenizer_of(settings)
            dropout = settings["word_dropout"]
            sizes = tokenizer.vocabulary, tokenizer.length, settings["latent"], settings["hidden"]
            return made(*sizes, word_dropout=dropout)
        return made(dim, hidden=(settings["hidden"],))


def _parts(settings: dict[str, Any], examples: Dataset) -> dict[str, Any]:
    """Of a VAE, those that are not the default ones; runs of older versions name none."""
    latent, parts = settings["latent"], {}
    if settings.get("convolutional"):
        from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder

        if examples.image_shape is None:
            raise ValueError(f"--convolutional needs images; {examples.name} are none")
        shape = (1, *examples.image_shape)
        parts["encoder"] = ConvolutionalEncoder(shape, settings["hidden"])
        parts["decoder"] = ConvolutionalDecoder(shape, latent)
    prior = settings.get("prior", "standard")
    if prior != "standard":
        parts["prior"] = _prior(prior, latent, examples)
    return parts


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
    if settings["model"] in ("rbm", "dbm", "dbn"):
        from ppgen.inference import ContrastiveDivergence, UpDown

        loss = UpDown if settings["model"] == "dbn" else ContrastiveDivergence
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


def pretrain(story: Any, settings: dict[str, Any], examples: Dataset, device: str) -> None:
    """Greedy layer-wise training: as many epochs for each layer as for the whole afterwards."""
    import torch

    from ppgen.inference import ContrastiveDivergence, greedy
    from ppgen.models import RBM

    loss = partial(
        ContrastiveDivergence, settings["gibbs_steps"], persistent=settings["persistent"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        stack = [RBM(below, above) for below, above in pairwise(story.sizes)]
    options = {**optimisation(settings), "loss": loss}
    greedy(
        stack,
        examples.x,
        epochs=settings["epochs"],
        batch_size=min(settings["batch_size"], len(examples)),
        learning_rate=settings.get("pretraining_rate", LEARNING_RATES["rbm"]),
        averaging=settings["averaging"],
        seed=settings["seed"],
        device=device,
        **options,
    )
    story.assemble(stack)


def hold_out(examples: Dataset) -> tuple[Dataset, Dataset]:
    """What is trained on, and what the validation curve is of."""
    held = max(1, round(_HELD_OUT * len(examples)))
    return examples.hold_out(held)


def _falling(epochs: int, epoch: int) -> float:
    """A learning rate that falls linearly, to nothing after the last epoch."""
    return 1.0 - epoch / epochs
