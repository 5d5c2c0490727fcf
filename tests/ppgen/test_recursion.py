"""Linear recursions: the loop's values and gradients, in few operations, and never NaN."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen.recursion import autoregression, linear_recursion, matrix_recursion

# Both add the same terms in another order: T roundings of 1e-16 of the largest partial sum.
TOLERANCE = 1e-12


def loop(a, b):
    x = [b[..., 0]]
    for t in range(1, b.shape[-1]):
        x.append((a[..., t] if a.shape[-1:] == b.shape[-1:] else a.squeeze(-1)) * x[-1] + b[..., t])
    return torch.stack(x, -1)


def close(ours, theirs):
    scale = theirs.abs().max()
    return bool(((ours - theirs).abs() <= TOLERANCE * scale).all())


CASES = {
    "one term": (lambda: torch.tensor(0.5), 1),
    "two terms": (lambda: torch.tensor(0.5), 2),
    "shrinking": (lambda: torch.tensor(-0.9), 200),
    "random walk": (lambda: torch.tensor(1.0), 37),
    "growing": (lambda: torch.tensor(1.5), 128),
    "forgetting": (lambda: torch.tensor(0.0), 9),
    "changing": (lambda: torch.empty(129).uniform_(-1.3, 1.3), 129),
    "changing, with zeros": (lambda: torch.randn(64) * (torch.arange(64) % 5 > 0), 64),
    "a batch": (lambda: torch.empty(3, 1).uniform_(-1, 1), 50),
    "a batch that changes": (lambda: torch.empty(2, 3, 50).uniform_(-1, 1), 50),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_loop(name):
    make, length = CASES[name]
    a = make().requires_grad_()
    b = torch.randn(*a.shape[:-1], length).requires_grad_()
    weight = torch.randn(*a.shape[:-1], length)
    ours, theirs = linear_recursion(a, b), loop(a, b)
    assert ours.shape == theirs.shape
    assert close(ours, theirs)
    ours_slopes = torch.autograd.grad((ours * weight).sum(), (a, b), allow_unused=True)
    their_slopes = torch.autograd.grad((theirs * weight).sum(), (a, b), allow_unused=True)
    for ours_slope, their_slope in zip(ours_slopes, their_slopes, strict=True):
        if their_slope is not None:
            assert close(ours_slope, their_slope)


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 64, 100])
def test_vectors_follow_their_matrices(length, changing):
    a = 0.6 * torch.randn(2, length if changing else 1, 3, 3)
    b = torch.randn(2, length, 3)
    x = [b[:, 0]]
    for t in range(1, length):
        x.append((a[:, t if changing else 0] @ x[-1].unsqueeze(-1)).squeeze(-1) + b[:, t])
    assert close(matrix_recursion(a, b), torch.stack(x, 1))


@pytest.mark.parametrize("lags", [1, 2, 5])
def test_an_autoregression_is_undone_by_its_residuals(lags):
    phi, noise = torch.empty(4, lags).uniform_(-0.3, 0.3), torch.randn(4, 100)
    x = autoregression(phi, noise)
    padded = torch.nn.functional.pad(x, (lags, 0))
    back = sum(phi[:, k, None] * padded[:, lags - 1 - k : -1 - k] for k in range(lags))
    assert close(x - back, noise)


def test_moments_are_those_of_a_stationary_process():
    """x_t of AR(1) has variance 1 / (1 - phi^2); 4.6 is beyond the 2e-5 quantile, 4.26."""
    phi, count = torch.tensor(0.8), 20_000
    noise = torch.randn(count, 30)
    noise[:, 0] /= (1 - phi**2).sqrt()
    square = linear_recursion(phi, noise)[:, -1].square()
    error = square.std() / count**0.5
    assert abs(square.mean() - 1 / (1 - phi**2)) < 4.6 * error


@pytest.mark.parametrize("a", [1e10, -1e10, 1e200])
def test_overflow_is_huge_and_not_nan(a):
    """The loop has inf here, and `inf * 0` where the terms are zero."""
    terms = torch.zeros(100)
    assert torch.equal(linear_recursion(torch.tensor(a), terms), terms)
    b = torch.randn(100).requires_grad_()
    coefficient = torch.tensor(a).requires_grad_()
    x = linear_recursion(coefficient, b)
    assert not bool(x.isnan().any())
    assert float(x.detach().abs().max()) > 1e300
    assert torch.distributions.Normal(0.0, 1.0).log_prob(x)[-1] == -torch.inf
    for slope in torch.autograd.grad(x[:5].sum(), (coefficient, b)):
        assert not bool(slope.isnan().any())


class Count(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_twice_the_steps_are_one_doubling_more():
    def operations(length):
        a, b = torch.tensor(0.5), torch.randn(length)
        with Count() as count:
            linear_recursion(a, b)
        return count.operations

    doubling = operations(400) - operations(200)
    assert doubling == operations(800) - operations(400)
    assert doubling < 12
    assert operations(200) < 100


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: linear_recursion(torch.ones(3), torch.ones(4)), r"\(3,\), the terms \(4,\)"),
        (lambda: linear_recursion(torch.ones(4), torch.ones(1)), "one coefficient"),
        (lambda: linear_recursion(torch.ones(1), torch.ones(0)), "one coefficient"),
        (lambda: linear_recursion(torch.tensor(1.0), torch.tensor(1.0)), "one coefficient"),
        (lambda: matrix_recursion(torch.ones(2, 3), torch.ones(4, 2)), "D, D"),
        (lambda: matrix_recursion(torch.ones(3, 2, 2), torch.ones(4, 2)), "one coefficient"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
