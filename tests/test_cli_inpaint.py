"""``ppgen inpaint``: draws of what is hidden have the law of the machine given what is seen."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from ppgen.cli import exits, run
from ppgen.cli.inpainting import fill_in, seen_units
from ppgen.cli.runs import load_data, read_settings
from ppgen.data import Dataset
from ppgen.models import DBM, RBM, GaussianRBM

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
FILLS = 8_000
SEEN = torch.tensor([True, False, True, False, False])


def machine(kind):
    made = {"rbm": lambda: RBM(5, 3), "dbm": lambda: DBM(5, (3, 2))}[kind]()
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made.requires_grad_(False)


@pytest.mark.parametrize("kind", ["rbm", "dbm"])
def test_draws_have_the_law_given_what_is_seen(kind):
    story, x = machine(kind), torch.tensor([[1.0, 1, 0, 0, 1], [0.0, 0, 1, 1, 0]])
    drawn, means = fill_in(story, x, SEEN.expand(2, -1), FILLS, 30)
    assert torch.equal(drawn, means)
    assert torch.equal(drawn[..., SEEN], x[:, None, SEEN].expand(-1, FILLS, -1))
    units = len(story.visible_bias)
    sides = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units)
    for row, draws in zip(x, drawn, strict=True):
        alike = (sides[:, :5][:, SEEN] == row[SEEN]).all(1)
        law = torch.zeros(8).index_add(
            0, place(sides[alike]), torch.softmax(-story.free_energy(sides[alike]), 0)
        )
        found = torch.bincount(place(draws), minlength=8)
        p = stats.chisquare(found.numpy(), (FILLS * law).numpy()).pvalue
        assert p > FAILURE_RATE / 2


def place(x):
    """Of the state of the units that are not seen, 0 to 7."""
    return (x[:, :5][:, ~SEEN] @ torch.tensor([4.0, 2.0, 1.0])).long()


def test_real_units_are_drawn_around_the_means_that_are_shown():
    story = GaussianRBM(5, 3, weight_scale=0.0).requires_grad_(False)  # without couplings
    story.visible_bias.copy_(torch.arange(5.0))
    drawn, means = fill_in(story, torch.full((1, 5), 9.0), SEEN[None], FILLS, 2)
    assert (drawn[..., SEEN] == 9).all()
    assert (means[..., SEEN] == 9).all()
    torch.testing.assert_close(means[0, 0, ~SEEN], story.loc[~SEEN])
    z = (drawn - means)[0][:, ~SEEN].mean(0) / (story.variance[~SEEN] / FILLS).sqrt()
    assert (z.abs() < stats.norm.isf(FAILURE_RATE / 6)).all()


def test_half_of_the_units_are_hidden():
    images = Dataset(torch.zeros(7, 24), image_shape=(4, 6))
    shown = {hide: seen_units(images, 3, hide).unflatten(1, (4, 6)) for hide in
             ("upper", "lower", "left", "right", "random")}  # fmt: skip
    assert all((seen.flatten(1).sum(1) == 12).all() for seen in shown.values())
    assert shown["upper"][:, 2:].all()
    assert shown["lower"][:, :2].all()
    assert shown["left"][:, :, 3:].all()
    assert shown["right"][:, :, :3].all()
    with pytest.raises(ValueError, match="take --hide random"):
        seen_units(Dataset(torch.zeros(7, 24)), 3, "upper")


def test_a_run_fills_in_held_out_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    place, found = tmp_path / "run", tmp_path / "nodir" / "x.npy"
    train = ["train", "rbm", "--hidden", "3", "--epochs", "1", "--out", str(place), "--quiet"]
    assert run(train) == exits.DONE
    capsys.readouterr()
    inpaint = ["inpaint", str(place), "--count", "3", "--fills", "2", "--gibbs-steps", "2"]
    assert run([*inpaint, "--hide", "left", "--out", str(found), "--json", "--quiet"]) == exits.DONE
    numbers = json.loads(capsys.readouterr().out)
    x = torch.as_tensor(np.load(found)).unflatten(2, (8, 8))
    assert x.shape == (3, 2, 8, 8)
    assert (x[:, :1, :, 4:] == x[..., 4:]).all()
    data = load_data(read_settings(place), "test").x.unflatten(1, (8, 8))
    alike = [(data[..., 4:] == row[0, :, 4:]).flatten(1).all(1) for row in x]
    assert all(rows.any() for rows in alike)
    # what is said of the draws, example by example
    whole = torch.stack([data[rows][0] for rows in alike])  # one example has these right halves
    assert all(rows.sum() == 1 for rows in alike)
    error, usual = (
        (guess - whole)[..., :4].abs().mean((1, 2)) for guess in (x.mean(1), data.mean(0))
    )
    assert numbers["mean_absolute_error"] == pytest.approx(error.mean().item())
    assert numbers["mean_absolute_error_of_the_means"] == pytest.approx(usual.mean().item())
    spread = (error - usual).std().item() / 3**0.5
    assert numbers["difference_error"] == pytest.approx(spread)
    assert run([*inpaint, "--hide", "left", "--quiet"]) == exits.DONE
    assert f"+- {spread:.4f}: {place}" in capsys.readouterr().out
    assert (place / "inpainted.png").is_file()
    alone = ["inpaint", str(place), "--count", "1", "--gibbs-steps", "1", "--quiet"]
    assert run(alone) == exits.DONE
    assert "+-" not in capsys.readouterr().out  # one example has no standard error


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("dbn", [], "drawn one by one in Python"),
        ("vae", [], "this is a vae"),
        ("rbm", ["--count", "0"], "--count must be at least 1"),
        ("rbm", ["--fills", "0"], "--fills must be at least 1"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(model, options, says, monkeypatch, capsys):
    monkeypatch.setattr("ppgen.cli.inpainting.read_settings", lambda _: {"model": model})
    assert run(["inpaint", "nowhere", *options]) == exits.USAGE
    assert says in capsys.readouterr().err
