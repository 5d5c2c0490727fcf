"""What a run's page shows of a story with a code: reconstructions, and how the code is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.data import Dataset
    from ppgen.report import Section

_SHOWN = 20


def code_section(story: Any, examples: Dataset, settings: dict[str, Any]) -> Section:
    """Of a VAE on held-out images, or on other data, where there is nothing to be looked at."""
    from ppgen import latent, plots
    from ppgen.cli.real_units import as_grey
    from ppgen.report import Picture, Section

    like = next(story.parameters())
    text = [f"{story.latent_use(examples.x.to(like))}."] if len(examples) > 1 else []
    pictures = []
    if examples.image_shape is not None:
        x = examples.x[:_SHOWN].to(like)
        both = x, latent.reconstruct(story, x)
        above, below = (as_grey(v.cpu().numpy(), settings) for v in both)
        figure = plots.reconstructions(above, below, examples.image_shape)
        pictures.append(Picture(figure, "Held-out data, and below them their mean codes decoded."))
    return Section("The code", text=text, pictures=pictures)
