"""What a VAE's options on the command line stand for: its parts, its loss, where it starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ppgen.cli.options import Common
    from ppgen.data import Dataset
    from ppgen.likelihood import Likelihood

GREY = ("grey", "gaussian", "logistic", "categorical")  # pixels that are not binary
_WHOLE = GREY[2:]  # laws of whole levels
_BINS, _BOUND = 8, 4.0  # of a spline posterior, in standard deviations
_COMPONENTS = 50  # of a mixture prior, or a VampPrior
_CAUSAL_UNITS = 7  # hidden units of a pixel that is told of its neighbours


def parts(settings: dict[str, Any], examples: Dataset, features: int) -> dict[str, Any]:
    """Those parts that are not the default ones; runs of older versions name none."""
    latent, found = settings["latent"], {}
    likelihood = _likelihood(settings, examples)
    if likelihood is not None:
        found["likelihood"] = likelihood
    if settings.get("convolutional"):
        from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder

        shape = (1, *_image_shape("--convolutional", examples))
        channels = tuple(settings.get("channels", (32, 64)))
        refine = settings.get("refine", 1)
        found["encoder"] = ConvolutionalEncoder(shape, features, channels, refine=refine)
        each = 1 if likelihood is None else likelihood.parameters_each
        found["decoder"] = ConvolutionalDecoder(
            shape, latent, channels, parameters_each=each, refine=refine
        )
    prior = settings.get("prior", "standard")
    if prior != "standard":
        found["prior"] = _prior(prior, latent, examples)
    if settings.get("posterior", "normal") != "normal":
        found["posterior"] = _posterior(settings, features)
    return found


def bound(settings: dict[str, Any]) -> Any:
    """The bound that training raises.

    Raises:
        ValueError: for options that another bound has.
    """
    from ppgen.inference import (
        ELBO,
        DReG,
        ImportanceWeightedELBO,
        ReweightedWakeSleep,
        WakeSleep,
        WarmUp,
    )

    objective, draws = settings.get("objective", "elbo"), settings.get("draws")
    steps, free_bits = settings.get("warm_up"), settings.get("free_bits", 0.0)
    least = 2 if objective == "rws" else 1
    if draws is not None and draws < least:
        raise ValueError(
            f"--draws must be at least {least} with --objective {objective}; got {draws}"
        )
    if objective == "elbo":
        beta = WarmUp(steps) if steps else settings.get("beta", 1.0)
        return ELBO(particles=draws or 1, beta=beta, free_bits=free_bits)
    if steps or free_bits or settings.get("beta", 1.0) != 1:
        raise ValueError(
            f"--objective {objective}: --warm-up and --free-bits are for elbo; --beta is 1"
        )
    if objective == "ws":
        return WakeSleep(draws or 1)
    losses = {"iwae": ImportanceWeightedELBO, "dreg": DReG, "rws": ReweightedWakeSleep}
    return losses[objective](draws or 8)


def loss_text(settings: dict[str, Any]) -> str:
    """What the curves of a run's page are, of a story that is trained by a bound."""
    weighted = settings.get("objective", "elbo") in ("iwae", "dreg", "rws")
    which = f"importance-weighted bound of {settings.get('draws') or 8} draws"
    text = (
        f"The negative {which if weighted else 'ELBO'} of training data, the mean over each epoch, "
        "and of the data held out, after it"
    )
    if settings.get("warm_up") or settings.get("free_bits") or settings.get("beta", 1.0) != 1:
        text += "; held out the divergence counts in full, in training as it was asked to"
    return f"{text}."


def as_modelled(examples: Dataset, settings: dict[str, Any]) -> Dataset:
    """The examples in the numbers that the run's pixels take.

    Of whole levels it writes into `settings` how many there are, where that was not asked for.
    """
    if settings.get("pixels") not in _WHOLE:
        return examples
    known = round(examples.white) + 1 if examples.white > 1 else 256
    settings["levels"] = settings["levels"] or known
    try:
        return examples.in_levels()
    except ValueError as error:
        hint = f"--pixels {settings['pixels']} is a law of them: leave --binarisation out"
        raise ValueError(f"{error}; {hint}") from error


def levels_as_grey(x: Any, settings: dict[str, Any]) -> Any:
    """Numbers of a VAE's pixels on the scale of pictures; others are on it."""
    return x / (settings["levels"] - 1) if settings.get("pixels") in _WHOLE else x


def check_pixels(examples: Dataset, settings: dict[str, Any]) -> None:
    """Whether the run's pixels can have these values.

    Raises:
        DataError: by row and column, with the pixels that could.
    """
    from ppgen.data import DataError, check_binary
    from ppgen.data.levels import whole_levels

    pixels = settings.get("pixels", "binary")
    try:
        if pixels in _WHOLE:
            whole_levels(examples.x, levels=settings["levels"], name=examples.name)
        elif pixels not in GREY:
            check_binary(examples.x, examples.name)
    except DataError as error:
        if pixels in _WHOLE:
            error.args = (f"{error}; --levels says how many there are",)
        elif settings["model"] == "vae":
            error.args = (
                f"{error}; or model them as they are: --pixels grey or gaussian, and whole grey "
                "levels by --pixels logistic or categorical",
            )
        elif settings["model"] == "rbm":
            error.args = (f"{error}; or model real numbers: --visible-units gaussian",)
        elif settings["model"] in ("dbm", "dbn"):
            error.args = (
                f"{error}; a {settings['model']} has binary units only, an rbm also real ones: "
                "--visible-units gaussian",
            )
        elif settings["model"] == "flow":
            error.args = (f"{error}; or fit real numbers in Python: ppgen.models.Flow",)
        raise


def bits_per_dimension(
    found: Likelihood, settings: dict[str, Any], pixels: int
) -> dict[str, float]:
    """Of a law of whole grey levels; nothing for others, whose nats are those of other data."""
    if settings.get("pixels") not in _WHOLE:
        return {}
    return {"bits_per_dimension": -found.lower / (pixels * math.log(2))}


def annealed(
    story: nn.Module, examples: Dataset, common: Common, count: int, chains: int, temperatures: int
) -> tuple[str, dict[str, Any]]:
    """ELBO, importance-sampled and annealed bound of `count` examples, evenly taken; in words too.

    Raises:
        ValueError: for no examples, or numbers that no annealing has.
    """
    import torch

    import ppgen
    from ppgen.inference import Annealing

    if count < 1:
        raise ValueError(f"--anneal must be at least 1 example, got {count}")
    rows = torch.linspace(0, len(examples) - 1, min(count, len(examples))).long()
    x = examples.x[rows].to(common.device)
    sampled = ppgen.log_likelihood(story, x, seed=common.seed)
    found = ppgen.log_likelihood(
        story, x, seed=common.seed, annealing=Annealing(chains, temperatures)
    )
    numbers = {
        "examples": len(x),
        "elbo": sampled.details["elbo"],
        "importance_sampled": sampled.lower,
        "annealed": found.lower,
        "annealed_error": found.lower_error,
    }
    text = (
        f"\non {len(x)} of them: ELBO {numbers['elbo']:.2f}, importance sampling "
        f"{sampled.lower:.2f}, annealing {found.lower:.2f} +- {found.lower_error:.2f} nats, all "
        "lower bounds: what annealing adds is what the encoder loses"
    )
    return text, {"looseness": numbers}


def start_from(story: nn.Module, run: Path) -> list[str]:
    """Give `story` those parameters of a run that it has too, by name and shape.

    Returns:
        The names of those that it alone has, which stay as they were.

    Raises:
        ValueError: where the run has none of them.
    """
    import torch

    from ppgen.inference.train import trained_tensors

    theirs, alone = trained_tensors(run), []
    if "posterior.base.head.weight" not in theirs:  # a flow bends what was the whole posterior
        theirs |= {
            name.replace("posterior.", "posterior.base.", 1): tensor
            for name, tensor in theirs.items()
            if name.startswith("posterior.")
        }
    with torch.no_grad():
        for name, tensor in story.state_dict().items():
            if name in theirs and theirs[name].shape == tensor.shape:
                tensor.copy_(theirs[name])
            else:
                alone.append(name)
    if len(alone) == len(story.state_dict()):
        raise ValueError(
            f"--start-from {run}: no parameter there has the name and shape of one here"
        )
    return alone


def _image_shape(option: str, examples: Dataset) -> tuple[int, int]:
    if examples.image_shape is None:
        raise ValueError(f"{option} needs images; {examples.name} are none")
    height, width = examples.image_shape
    return height, width


def _likelihood(settings: dict[str, Any], examples: Dataset) -> Any:
    from ppgen.networks import likelihoods

    pixels = settings.get("pixels", "binary")
    if pixels == "causal":
        shape = _image_shape("--pixels causal", examples)
        return likelihoods.CausalBernoulliLikelihood(shape, _CAUSAL_UNITS)
    if pixels == "grey":
        return likelihoods.ContinuousBernoulliLikelihood()
    if pixels == "logistic":
        return likelihoods.DiscretisedLogisticLikelihood(settings["levels"])
    if pixels == "categorical":
        return likelihoods.CategoricalLikelihood(settings["levels"])
    return likelihoods.GaussianLikelihood(learned=True) if pixels == "gaussian" else None


def _posterior(settings: dict[str, Any], features: int) -> nn.Module:
    from ppgen.networks.flow_posterior import AutoregressivePosterior, FlowPosterior
    from ppgen.networks.posteriors import FullNormal
    from ppgen.transforms.planar import Planar
    from ppgen.transforms.rational_quadratic import RationalQuadratic
    from ppgen.transforms.sylvester import Sylvester
    from ppgen.transforms.vector import VectorChain

    name, latent, layers = settings["posterior"], settings["latent"], settings["flow_layers"]
    if name == "full":
        return FullNormal(features, latent)
    if name in ("iaf", "spline"):
        scalar_map = RationalQuadratic(_BINS, _BOUND) if name == "spline" else None
        return AutoregressivePosterior(features, latent, scalar_map, layers=layers)
    columns = settings.get("flow_columns")
    made = [Planar(latent) if name == "planar" else Sylvester(latent, columns)] * layers
    return FlowPosterior(features, latent, VectorChain(made))


def _prior(name: str, latent: int, examples: Dataset) -> nn.Module:
    import torch

    from ppgen.models import Flow
    from ppgen.networks.priors import FlowPrior, MixturePrior, VampPrior

    if name == "mixture":
        return MixturePrior(latent, _COMPONENTS)
    if name == "flow":
        return FlowPrior(Flow(latent))
    return VampPrior(examples.x[torch.arange(_COMPONENTS) % len(examples)])
