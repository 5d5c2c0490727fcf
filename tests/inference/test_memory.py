"""Long work in bounded memory."""

from pathlib import Path

import pytest
import torch

from ppgen.inference import ELBO, BlockGibbs, ContrastiveDivergence, train
from ppgen.models import RBM, VAE
from ppgen.progress import quiet

STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATM.exists(), reason="reads the resident memory from /proc"),
]


def resident():
    """Pages in memory."""
    return int(STATM.read_text().split()[1])


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: RBM(64, 50), lambda: ContrastiveDivergence(persistent=True)),
        (lambda: VAE(64, 4, (50,)), ELBO),
    ],
    ids=["RBM", "VAE"],
)
def test_two_hundred_epochs_grow_by_less_than_a_twentieth(make, loss, tmp_path):
    x = (torch.rand(500, 64) < 0.3).float()
    pages = []
    with quiet():
        train(
            make().float(), x, loss=loss(), epochs=200, batch_size=64, out=tmp_path / "run",
            callbacks=[lambda *_: pages.append(resident())],
        )  # fmt: skip
    assert pages[-1] < 1.05 * pages[20]


def test_a_hundred_thousand_gibbs_steps_grow_by_less_than_a_twentieth():
    kernel = BlockGibbs(RBM(16, 8), torch.zeros(10, 16))
    state, pages = {"x": torch.zeros(10, 16)}, []
    for step in range(100_000):
        state = kernel.sample(state)
        if step % 10_000 == 9_999:
            pages.append(resident())
    assert pages[-1] < 1.05 * pages[0]
