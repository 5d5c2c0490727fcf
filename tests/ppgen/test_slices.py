"""Gradients of slices put together at once: the same numbers."""

import inspect
import sys

import pytest
import torch

from ppgen.simplify import tidy
from ppgen.slices import join_slices
from ppgen.tape import trace


def back(z, x, dim, start, stop, step=1):
    return torch.ops.aten.slice_backward.default(x, list(z.shape), dim, start, stop, step)


PIECES = {
    "all of it": lambda z: (
        back(z, z[:, :2].exp(), 1, 0, 2) + back(z, z[:, 2:].sin(), 1, 2, 2**63 - 1)
    ),
    "in another order": lambda z: (
        back(z, z[:, 4:].exp(), 1, 4, 6) + back(z, z[:, 1:3].exp(), 1, 1, 3)
    ),
    "the same twice": lambda z: (
        back(z, z[:, :2].exp(), 1, 0, 2)
        + (back(z, z[:, :2].cos(), 1, 0, 2) + back(z, z[:, 3:4].cos(), 1, 3, 4))
    ),
    "overlapping": lambda z: (
        back(z, z[:, :3].exp(), 1, 0, 3)
        + back(z, z[:, 2:4].cos(), 1, 2, 4)
        + back(z, z[:, 5:].cos(), 1, -1, 6)
    ),
    "and others": lambda z: (
        z.cos() + back(z, z[:, :2].exp(), 1, 0, 2) + back(z, z[:, 3:].exp(), 1, 3, 6) + z
    ),
    "other dimensions": lambda z: (
        back(z, z[:2].exp(), 0, 0, 2)
        + back(z, z[:, 3:].exp(), 1, 3, 6)
        + back(z, z[2:3].exp(), 0, 2, 3)
    ),
    "with holes": lambda z: (
        back(z, z[:, ::2].exp(), 1, 0, 6, 2)
        + back(z, z[:, 1:2].exp(), 1, 1, 2)
        + back(z, z[:, 3:4].exp(), 1, 3, 4)
    ),
    "broadcast": lambda z: (
        (back(z[:1], z[:1, :2].exp(), 1, 0, 2) + back(z[:1], z[:1, 2:].exp(), 1, 2, 6)) + z
    ),
    "a sum used twice": lambda z: (
        (s := back(z, z[:, :2].exp(), 1, 0, 2) + back(z, z[:, 2:].exp(), 1, 2, 6)) * s
    ),
    "in part used elsewhere": lambda z: (
        (s := back(z, z[:, :2].exp(), 1, 0, 2) + back(z, z[:, 2:3].exp(), 1, 2, 3)).cos()
        + (s + back(z, z[:, 3:].exp(), 1, 3, 6))
    ),
    "nothing but one": lambda z: back(z, z[:, :2].exp(), 1, 0, 2) + z,
}
LEFT = {"overlapping": 1, "other dimensions": 1, "with holes": 1, "nothing but one": 1}
LEFT |= {"in part used elsewhere": 1}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sum_stays(name, dtype):
    z = torch.randn(5, 6, dtype=dtype)
    plain, _ = trace(PIECES[name], z, [])
    joined, _ = trace(PIECES[name], z, [])
    for improve in (tidy, join_slices, tidy):
        improve(joined.graph)
    joined.recompile()
    for point in (z, z.flip(0)):
        torch.testing.assert_close(joined(point), plain(point))
        assert joined(point).dtype == dtype
    left = [n for n in joined.graph.nodes if "slice_backward" in str(n.target)]
    assert len(left) == LEFT.get(name, 0)


def test_a_sum_may_have_more_terms_than_python_nests_calls():
    def loop(z):
        total = back(z, z[:, :2].exp(), 1, 0, 2) + back(z, z[:, 2:].sin(), 1, 2, 6)
        for t in range(150):
            total = total + z * t
        return total

    z = torch.randn(2, 6)
    plain, _ = trace(loop, z, [])
    joined, _ = trace(loop, z, [])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)  # so that 150 terms are many
    try:
        join_slices(joined.graph)
    finally:
        sys.setrecursionlimit(limit)
    joined.recompile()
    torch.testing.assert_close(joined(z), plain(z))
    assert not [n for n in joined.graph.nodes if "slice_backward" in str(n.target)]
