"""What the pictures of a machine's page show: filters, receptive fields, names of the curves."""

import pytest
import torch
from matplotlib.text import Text

from ppgen.cli.autoencoders import loss_text
from ppgen.cli.machine_pictures import (
    filters_of,
    layer_means,
    machine_section,
    receptive_fields,
    training_curves,
)
from ppgen.cli.runs import picture
from ppgen.data import Dataset
from ppgen.models import DBM, DBN, RBM, GaussianRBM

MACHINES = {
    "rbm": lambda: RBM(6, 4, weight_scale=1.0),
    "gaussian": lambda: GaussianRBM(6, 4, weight_scale=1.0),
    "dbm": lambda: DBM(6, (4, 3, 2), weight_scale=1.0),
    "dbn": lambda: DBN(6, (4, 3), weight_scale=1.0),
}


@pytest.fixture(params=MACHINES)
def story(request):
    made = MACHINES[request.param]()
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made.requires_grad_(False)


def pixels(story, h1):
    """Log-odds, or real means, of x given the lowest hidden layer: ``(N, 4) -> (N, 6)``."""
    if isinstance(story, DBN):
        return story.generative_logits(1, h1)
    if isinstance(story, DBM):
        return story.visible_logits(torch.cat([h1, torch.zeros(len(h1), 2)], 1))[:, :6]
    if isinstance(story, GaussianRBM):
        return story.visible_given_hidden(h1).mean
    return story.visible_logits(h1)


def test_a_filter_is_what_a_unit_adds_to_each_pixel(story):
    added = pixels(story, torch.eye(4)) - pixels(story, torch.zeros(4, 4))
    order = added.norm(dim=1).argsort(descending=True)
    torch.testing.assert_close(filters_of(story, 3), added[order[:3]])


def test_means_of_layers_are_those_of_the_recognition_or_the_posterior(story):
    x = torch.bernoulli(torch.full((500, 6), 0.5))
    means = layer_means(story, x)
    sizes = [4] if isinstance(story, RBM) else list(story.hidden)
    assert [m.shape[1] for m in means] == sizes
    if isinstance(story, RBM):
        torch.testing.assert_close(means[0], story.hidden_given_visible(x).mean)
    elif isinstance(story, DBM):
        torch.testing.assert_close(means, story.mean_field(x)[1:])
    else:
        torch.testing.assert_close(means[0], story.recognition_logits(1, x).sigmoid())
        h1 = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
        expected = story.top.hidden_given_visible(h1).mean  # of the draw that was made
        found = torch.cdist(means[1], expected).amin(1)
        assert found.max() < 1e-10


def test_a_receptive_field_is_the_mean_where_a_unit_is_on_less_that_of_all():
    x = torch.bernoulli(torch.full((200, 6), 0.3))
    rare = (torch.arange(200) % 50 == 0).double()
    means = torch.stack([rare, x[:, 2]], 1)  # the second unit is on where pixel 2 is
    fields = receptive_fields(means, x, 1)  # the one that varies most
    torch.testing.assert_close(fields, (x[x[:, 2] == 1].mean(0) - x.mean(0))[None])
    assert receptive_fields(means, x, 5).shape == (2, 6)


def test_no_curve_of_a_machine_is_called_a_loss_or_a_likelihood():
    for model in ("rbm", "dbm", "dbn"):
        curves = training_curves(model)
        assert curves.loss == "contrast"
        assert "no likelihoods" in curves.text
    assert training_curves("rbm").validation == training_curves("dbm").validation
    assert training_curves("dbn").validation == "contrast, held out"
    assert "the network generates" in training_curves("dbn").text
    assert "the machine on top" in training_curves("dbn", top_alone=True).text


def test_the_curves_of_a_bound_are_named_and_a_weight_of_training_alone_is_said():
    plain = loss_text({"objective": "elbo", "beta": 1.0, "warm_up": 0, "free_bits": 0.0})
    assert "negative ELBO" in plain
    assert "in full" not in plain
    assert "bound of 8 draws" in loss_text({"objective": "dreg", "draws": None})
    for option in ({"beta": 0.02}, {"warm_up": 10}, {"free_bits": 0.5}):
        assert "in full" in loss_text(option)


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_free_energies_are_shown_of_data_and_noise_and_no_samples_are_spoken_of():
    data = Dataset(torch.bernoulli(torch.full((20, 4), 0.5)), name="coins")
    section = machine_section(RBM(4, 3), data, data, {"model": "rbm"}, seed=0)
    said = words(section.pictures[0].image)
    assert "noise of the base rates" in said
    assert "Samples" not in said


def test_means_are_not_shown_as_if_they_were_draws():
    data = Dataset(torch.zeros(2, 4), name="grey", image_shape=(2, 2))
    standard = {"deviation": [1.0] * 4, "mean": [0.0] * 4, "white": 1.0}
    settings = {"model": "rbm", "visible_units": "gaussian", "standard": standard}
    assert "without their noise" in words(picture(torch.zeros(2, 4).numpy(), data, settings))
