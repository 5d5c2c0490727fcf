"""Wake-sleep on a story whose two gradients are formulas, and on a VAE."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule, pyro_method
from torch import nn

from ppgen.inference import WakeSleep
from ppgen.models.vae import VAE


class Line(PyroModule):
    """z ~ N(0, 1), x | z ~ N(w z, 1); q(z | x) = N(g x, s^2)."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.w, self.g, self.s = (nn.Parameter(torch.tensor(v)) for v in (1.3, 0.2, 0.7))
        self.shift = shift

    @pyro_method
    def model(self, x):
        w = self.w
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x + self.shift)

    @pyro_method
    def guide(self, x):
        g, s = self.g, self.s
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(g * x, s))


@pytest.mark.parametrize("draws", [1, 3])
def test_each_phase_has_the_gradient_of_its_formula(draws):
    story, x, rows = Line(), torch.full((400,), 1.5), []
    loss = WakeSleep(draws)
    for _ in range(200):
        story.zero_grad()
        loss.loss_and_grads(story.model, story.guide, x)
        rows.append(-torch.stack([p.grad for p in story.parameters()]) / len(x))
    w, g, s = (p.item() for p in story.parameters())
    wake = g * 1.5**2 - w * (g**2 * 1.5**2 + s**2)  # E_q (x - w z) z
    # of dreams, whose x has the variance w^2 + 1 and not the data's 1.5^2
    left = 1 - 2 * g * w + g**2 * (w**2 + 1)  # E_p (z - g x)^2
    exact = torch.tensor([wake, (w - g * (w**2 + 1)) / s**2, left / s**3 - 1 / s])
    rows = torch.stack(rows)
    error = rows.std(0) / len(rows) ** 0.5
    # Student's t with 199 degrees of freedom exceeds 4.4 with probability 2e-5
    assert ((rows.mean(0) - exact).abs() < 4.4 * error).all()


def test_the_number_is_the_negative_elbo():
    story, x = Line(), torch.full((20_000,), 1.5)
    w, g, s = (p.item() for p in story.parameters())
    z2 = g**2 * 1.5**2 + s**2
    expected = -0.5 * (z2 + 1.5**2 - 2 * 1.5 * w * g * 1.5 + w**2 * z2) - 0.9189385
    expected += torch.tensor(s).log().item() + 0.5
    # a term varies by less than 2
    assert -WakeSleep().loss(story.model, story.guide, x) / len(x) == pytest.approx(
        expected, abs=4.3 * 2 / 20_000**0.5
    )


def test_it_is_a_loss_of_svi_that_moves_every_parameter_twice():
    for _ in range(2):
        vae = VAE(5, 2, (4,))
        x = vae.sample(6)
        before = [p.detach().clone() for p in vae.parameters()]
        with pyro.get_param_store().scope():
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=WakeSleep())
            for _ in range(3):
                assert isinstance(svi.step(x), float)
        assert all(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))


def test_data_that_are_given_by_name_are_dreamed_too():
    story, x = Line(), torch.linspace(-1, 1, 5)
    gradients = []
    for args, kwargs in (((x,), {}), ((), {"x": x})):
        torch.manual_seed(0)
        story.zero_grad()
        WakeSleep().loss_and_grads(story.model, story.guide, *args, **kwargs)
        gradients.append(torch.stack([p.grad for p in story.parameters()]))
    assert torch.equal(*gradients)


def test_data_that_are_no_argument_are_refused_by_site():
    story = Line(shift=1.0)
    with pytest.raises(ValueError, match="observed site 'x'"):
        WakeSleep().loss_and_grads(story.model, story.guide, torch.zeros(3))
