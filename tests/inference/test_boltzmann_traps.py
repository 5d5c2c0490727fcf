"""What went wrong in other packages of Boltzmann machines, and the test here that would notice.

`TRAPS` is the list; most of its tests stand beside what they test, three of them below.
"""

import ast
import copy
from functools import cache
from pathlib import Path

import pytest
import torch

import ppgen
from ppgen.cli.runs import load_data
from ppgen.distributions.units import sample_units
from ppgen.inference import ContrastiveDivergence, Trajectory, parallel_tempering
from ppgen.inference.train import restore_story
from ppgen.models import RBM

pytestmark = pytest.mark.usefixtures("silent")

TESTS = Path(__file__).parent.parent
CD, AIS = (
    "inference/test_contrastive_divergence.py",
    "inference/test_annealed_importance_sampling.py",
)
HERE = "inference/test_boltzmann_traps.py"

TRAPS = {
    "tempering swaps on a scaled free energy": [
        ("inference/test_parallel_tempering.py", "test_swaps_on_a_scaled_free_energy_are_caught")
    ],
    "the sampler's chains are dropped, and stale ones used": [
        (CD, "test_persistent_chains_keep_the_law_of_the_machine_whatever_the_batch"),
        ("inference/test_gibbs_discrete.py", "test_a_planted_bug_is_caught"),
    ],
    "an option's path was never run": [
        ("models/test_machine_options.py", "test_each_option_runs"),
        ("models/test_machine_options.py", "test_every_option_is_listed"),
        ("models/test_machine_options.py", "test_every_option_of_the_command_line_runs"),
    ],
    "softplus with a jump, and NaN in its gradient": [
        ("models/test_rbm.py", "test_free_energy_is_finite_and_smooth_at_large_logits")
    ],
    "annealing moves before it weights": [(AIS, "test_planted_order_error_is_caught")],
    "reverse weights averaged with the wrong sign": [
        (AIS, "test_reverse_weights_are_averaged_as_inverses"),
        (AIS, "test_reported_estimates_of_z_and_its_inverse_are_unbiased"),
    ],
    "temperatures that add up to more than one": [(AIS, "test_the_last_beta_is_exactly_one")],
    "a uniform base, unsaid": [(AIS, "test_the_base_is_named_in_the_result")],
    "both phases divided by the size of one": [(CD, "test_each_phase_averages_over_its_own_count")],
    "a score that is not the same twice": [
        (AIS, "test_same_seed_same_score_and_the_global_generator_stays")
    ],
    "negatives that are not detached": [
        (CD, "test_exact_negative_phase_gives_the_gradient_of_the_exact_log_likelihood"),
        (CD, "test_autograd_of_the_contrast_agrees"),
    ],
    "a mean for a Gaussian draw": [
        ("models/test_gaussian_rbm.py", "test_wrong_noise_is_caught"),
        ("inference/test_invariance.py", "test_means_of_the_hidden_side_are_caught"),
    ],
    "centring or a change of coordinates that moves log p": [
        ("models/test_dbm.py", "test_centring_moves_no_log_probability"),
        (CD, "test_centred_gradient_is_the_jacobian_image_of_the_gradient_in_centred_parameters"),
    ],
    "constant columns": [
        ("models/test_gaussian_rbm.py", "test_a_constant_column_leaves_everything_finite"),
        ("models/test_rbm.py", "test_without_weights_the_machine_is_its_base_rates"),
    ],
    "offsets of centring that do not start at the data": [
        (CD, "test_the_first_call_initialises_offsets_and_chains_from_the_data")
    ],
    "weight decay of the biases": [
        (CD, "test_weight_decay_adds_a_multiple_of_the_weights_and_nothing_to_the_biases"),
        (CD, "test_weight_decay_reaches_the_weights_alone"),
    ],
    "draws in one place and probabilities in another": [
        (CD, "test_cd_gradient_agrees_with_its_enumerated_expectation")
    ],
    "a resumed run whose chains start anew": [
        (CD, "test_a_resumed_run_matches_an_uninterrupted_one_bit_for_bit"),
        ("inference/test_train.py", "test_persistent_chains_are_resumed"),
        ("inference/test_train_killed.py", "test_a_few_killed_runs_resume_bit_for_bit"),
        ("test_cli_layers.py", "test_a_run_killed_in_a_layer_ends_as_a_whole_one"),
    ],
    "a temperature of one phase alone": [
        ("inference/test_invariance.py", "test_a_temperature_is_that_of_the_energy")
    ],
    "grey images that are scored": [
        ("models/test_rbm.py", "test_log_density_is_convex_so_that_a_grey_score_would_flatter"),
        (AIS, "test_grey_images_have_no_likelihood"),
    ],
    "shared random numbers, raw parameters evaluated, two binarisations": [
        (HERE, "test_no_random_number_is_used_twice"),
        (HERE, "test_averaged_parameters_are_the_ones_that_are_evaluated"),
        (HERE, "test_train_and_test_are_binarised_alike"),
    ],
}  # fmt: skip


@cache
def names(file):
    return {node.name for node in ast.parse((TESTS / file).read_text()).body
            if isinstance(node, ast.FunctionDef)}  # fmt: skip


def test_each_trap_has_its_test():
    assert len(TRAPS) == 21
    missing = [test for tests in TRAPS.values() for test in tests if test[1] not in names(test[0])]
    assert missing == []


# Random numbers


def machine():
    rbm = RBM(30, 20, weight_scale=0.3)
    return rbm.requires_grad_(False)


def tempered():
    rbm, betas = machine(), [0.0, 0.5, 1.0]
    state = parallel_tempering.init(torch.ones(50, 30), 3)
    base = torch.zeros(30)
    parallel_tempering.step(state, machine=rbm, base=base, betas=betas, sweeps=2)


def along_a_trajectory():
    rbm, sampler = machine(), Trajectory(reservoir=2, freeze=0.999, rounds=3)
    kept = sampler.start(rbm, torch.ones(50, 30))
    for _ in range(2):
        kept, _ = sampler.move(rbm, kept, 2)


def contrastive():
    rbm = RBM(30, 20)
    loss = ContrastiveDivergence(3, persistent=True)
    for _ in range(2):
        loss.loss_and_grads(rbm.model, rbm.guide, torch.ones(50, 30))


def uniforms(work, monkeypatch):
    """All uniform numbers that were drawn, for swaps and for units."""
    drawn, draw = [], torch.rand_like

    def recorded(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1].clone()  # units are written over them

    monkeypatch.setattr(torch, "rand_like", recorded)
    work()
    assert len(drawn) > 3
    return torch.cat([numbers.flatten() for numbers in drawn])


@pytest.mark.parametrize("work", [tempered, along_a_trajectory, contrastive])
def test_no_random_number_is_used_twice(work, monkeypatch):
    """Swaps and Gibbs updates that share them would be no Markov chain of the law."""
    found = uniforms(work, monkeypatch)
    assert len(found.unique()) == len(found)  # in float64 two are never alike


def test_sharing_them_is_caught(monkeypatch):
    """The planted bug: the generator is seeded anew before the swaps."""
    log_ratio = parallel_tempering.swap_log_ratio

    def seeded(*args):
        torch.manual_seed(0)
        return log_ratio(*args)

    torch.manual_seed(0)
    monkeypatch.setattr(parallel_tempering, "swap_log_ratio", seeded)
    found = uniforms(tempered, monkeypatch)
    assert len(found.unique()) < len(found)


def test_two_large_layers_in_a_row_are_different_draws():
    """Their bits come from a generator that is seeded at every call."""
    half = torch.full((100, 100), 0.5, dtype=torch.float32)
    one, two = (sample_units(half.clone()) for _ in range(2))
    # 10,000 fair coins: agreement 1/2 with error 0.005, times 4.3
    assert abs(float((one == two).double().mean()) - 0.5) < 4.3 * 0.005


# What is evaluated


def test_averaged_parameters_are_the_ones_that_are_evaluated(tmp_path):
    x = (torch.rand(60, 6) < 0.3).double()
    rbm, out = RBM.from_data(x, 4, weight_scale=0.5), tmp_path / "run"
    raw = {}

    def last(story, row):  # within the loop the averaged ones are in the story
        raw["seen"] = copy.deepcopy(story.state_dict())

    result = ppgen.train(rbm, x, loss=ContrastiveDivergence(), epochs=3, batch_size=10,
                         learning_rate=0.5, averaging=0.95, out=out, callbacks=[last])  # fmt: skip
    again = restore_story(RBM(6, 4), out)
    scores = [ppgen.log_likelihood(story, x).lower for story in (result.story, again)]
    tensors, _ = ppgen.checkpoint.load(out / "ckpt")
    unaveraged = RBM(6, 4)
    unaveraged.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("story/")})
    assert scores[0] == scores[1]
    assert torch.equal(raw["seen"]["weight"], again.weight)
    assert abs(ppgen.log_likelihood(unaveraged, x).lower - scores[0]) > 1e-4


@pytest.mark.parametrize("binarisation", [None, "static", "dynamic", "threshold"])
def test_train_and_test_are_binarised_alike(binarisation):
    settings = {"model": "rbm", "data": "digits", "binarisation": binarisation, "folder": None}
    parts = [load_data({**settings, "seed": 3}, split) for split in ("train", "test")]
    words = [part.describe().split(", ", 3)[3] for part in parts]
    assert words[0] == words[1]
    assert binarisation is None or binarisation in words[0]
    # and so they have the same shares of white pixels: 64 fields, 1437 and 360 examples
    first, second = (part.x.double().mean() for part in parts)
    assert abs(first - second) < 0.02
