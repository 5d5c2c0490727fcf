"""What a Boltzmann machine looks like from inside: the pictures of its run's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.cli.labels import own_columns
from ppgen.cli.pages import Curves
from ppgen.cli.real_units import as_grey
from ppgen.cli.runs import draw_examples
from ppgen.cli.training import has_real_units
from ppgen.report import Picture, Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ppgen.data import Dataset

_TIMES = (0, 1, 3, 10, 30, 100, 300, 1000)  # sweeps after which a particle is shown
_PARTICLES = 8  # that are shown
_UNITS = 48  # of each layer
_EXAMPLES = 2000  # at most, of each histogram and for receptive fields
_CHAINS, _SWEEPS = 50, 400  # whose autocorrelation is shown


def machine_section(
    story: Any, train: Dataset, held_out: Dataset, settings: dict[str, Any], seed: int
) -> Section:
    """Filters, receptive fields, particles over time, free energies, the chains' memory."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        pictures = [
            *_weights(story, held_out, settings),
            *_layers(story, held_out, settings),
            *_particles(story, held_out, settings),
            *_classes(story, train, settings, seed),
            _free_energies(story, train, held_out, settings),
            _memory(story, held_out),
        ]
    return Section("Inside the machine", pictures=pictures)


def training_curves(model: str, top_alone: bool = False) -> Curves:
    """What the loss and the validation of a machine's training are."""
    if model == "dbn":
        text = "The variational free energy of {} data less that of what the network generates"
        if top_alone:
            text = "In the machine on top: the free energy of {} data, recognised, less its chains'"
        text = text.format("training and of held-out")
        return Curves("contrast", "contrast, held out", f"{text}: no likelihoods.")
    text = (
        "The free energy of training data less that of the chains, and that of held-out data less "
        "that of training data, which grows with overfitting: no likelihoods."
    )
    return Curves("contrast", "free-energy gap", text)


def layer_means(story: Any, x: Tensor) -> list[Tensor]:
    """Means of each hidden layer given `x`, from the lowest: ``(N, D) -> [(N, units), ...]``."""
    if hasattr(story, "mean_field"):
        return story.mean_field(x)[1:]
    if hasattr(story, "recognise"):
        layers = story.recognise(x)
        below = [
            story.recognition_logits(layer, s).sigmoid() for layer, s in enumerate(layers[:-1], 1)
        ]
        return [*below, story.top.hidden_logits(layers[-1]).sigmoid()]
    # of units with a sign the positive half: what lights them up
    return [story.statistics(x).hidden.clamp_min(0)]


def receptive_fields(means: Tensor, x: Tensor, units: int) -> Tensor:
    """What lights up the units that vary most: ``(units, D)``.

    The mean of x where the unit is on, less that of all x; between -1 and 1.
    """
    chosen = means[:, means.var(0).argsort(descending=True)[:units]]
    return chosen.T @ x / chosen.sum(0)[:, None].clamp_min(1e-9) - x.mean(0)


def filters_of(story: Any, units: int) -> Tensor:
    """Weights of the lowest layer's strongest units, ``(units, D)``; of real x in its units."""
    if hasattr(story, "components"):
        W = story.components
    elif hasattr(story, "weights"):
        W = story.weights[0]
    else:
        W = story.weight_1 if hasattr(story, "weight_1") else story.weight
    return W[:, W.norm(dim=0).argsort(descending=True)[:units]].T


def _weights(story: Any, examples: Dataset, settings: dict[str, Any]) -> list[Picture]:
    from ppgen import plots

    if examples.image_shape is None:
        return []
    unit = "deviation" if has_real_units(settings) else "weight (nats)"
    shown = own_columns(filters_of(story, _UNITS).cpu(), settings)
    figure = plots.filters(
        shown, examples.image_shape, columns=12,
        title="Filters of layer 1", unit=unit,
    )  # fmt: skip
    text = "Weights of the units of layer 1, the strongest first: what each adds to a pixel."
    return [Picture(figure, text)]


def _layers(story: nn.Module, examples: Dataset, settings: dict[str, Any]) -> list[Picture]:
    from ppgen import plots

    if examples.image_shape is None:
        return []
    x = examples.x[:_EXAMPLES].to(next(story.parameters()))
    real, pictures = has_real_units(settings), []
    of = "standard deviations" if real else "shares of white"
    for layer, means in enumerate(layer_means(story, x), start=1):
        shown = own_columns(receptive_fields(means, x, _UNITS).cpu(), settings)
        figure = plots.filters(
            shown, examples.image_shape, columns=12,
            title=f"Receptive fields of layer {layer}", unit="deviation" if real else "share",
        )  # fmt: skip
        text = f"The data where a unit of layer {layer} is on, less their mean, in {of}."
        pictures.append(Picture(figure, text))
    return pictures


def _particles(story: Any, examples: Dataset, settings: dict[str, Any]) -> list[Picture]:
    """Chains from noise, at growing intervals; real units but the first noise by their means."""
    import torch

    from ppgen import plots

    if examples.image_shape is None:
        return []
    even = torch.zeros_like(story.machine.visible_bias).expand(_PARTICLES, -1)
    real = has_real_units(settings)
    side = torch.randn_like(even) if real else story.machine.units.sample(even.clone())
    shown, done = [], 0
    for time in _TIMES:
        for _ in range(time - done):
            side = story.machine.sweep(side)
        done = time
        if real and time:
            shown.append(story.visible_given_hidden(story.sample_hidden(side)).mean)
        else:
            shown.append(_as_data(story, side))
    grid = torch.stack(shown, 1).flatten(0, 1).cpu().numpy()
    figure = plots.images(
        as_grey(grid, settings), examples.image_shape, columns=len(_TIMES),
        title="Fantasy particles over time",
        subtitle=f"A row is one chain, from noise, after {', '.join(map(str, _TIMES))} sweeps.",
    )  # fmt: skip
    return [Picture(figure, "Chains that start at noise find the data, if the machine mixes.")]


def _classes(story: Any, examples: Dataset, settings: dict[str, Any], seed: int) -> list[Picture]:
    """Draws given each label, where the machine has labels."""
    from ppgen import plots

    if not settings.get("labels") or examples.image_shape is None:
        return []
    known = settings["classes"]
    drawn = [
        draw_examples(story, examples, _PARTICLES, _TIMES[-1], seed, label=place)
        for place in range(len(known))
    ]
    figure = plots.images(
        as_grey(np.concatenate(drawn), settings), examples.image_shape, columns=_PARTICLES,
        title="Drawn given the label",
        subtitle=f"A row is a label: {', '.join(map(str, known))}.",
    )  # fmt: skip
    return [Picture(figure, "Chains whose label units stay, each begun at an example of it.")]


def _free_energies(
    story: Any, train: Dataset, held_out: Dataset, settings: dict[str, Any]
) -> Picture:
    from ppgen import plots

    weight = next(story.parameters())
    seen, unseen = (d.x[:_EXAMPLES].to(weight) for d in (train, held_out))
    units = story.machine.units
    noise = units.sample(units.fitted(seen).expand(len(unseen), -1).clone())
    name = "same moments" if has_real_units(settings) else "base rates"
    groups = {"training": seen, "held out": unseen, f"noise of the {name}": noise}
    energies = {name: _variational_free_energy(story, x).cpu() for name, x in groups.items()}
    text = "Held-out data above training data is overfitting; noise belongs far above both."
    figure = plots.free_energies(energies, subtitle="Lower is more probable.")
    return Picture(figure, text)


def _memory(story: Any, examples: Dataset) -> Picture:
    import torch

    from ppgen import plots

    side = story.machine_side(examples.x[:_CHAINS].to(story.machine.visible_bias))
    energies = []
    for _ in range(_SWEEPS):
        side = story.machine.sweep(side)
        energies.append(story.machine.free_energy(side))
    figure = plots.autocorrelation({"free energy": torch.stack(energies, 1).cpu()})
    return Picture(figure, f"{_CHAINS} chains from held-out data, one block Gibbs sweep a step.")


def _variational_free_energy(story: Any, x: Tensor) -> Tensor:
    """``-log p(x) - log Z`` from above where it is no formula: ``(N, D) -> (N,)``, nats."""
    if hasattr(story, "bound"):
        return -story.bound(x)
    exact = story.log_unnormalised(x)
    return -exact if exact is not None else -story.unnormalised_log_weights(x, 10).mean(0)


def _as_data(story: Any, side: Tensor) -> Tensor:
    x = story.generate(side)[0] if hasattr(story, "generate") else side
    return x[:, : story.visible]
