import hashlib
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import ppgen.data.sources as sources
from ppgen.data import DataError, Dataset, check, list_available, load
from ppgen.data.dataset import draw

Z = 4.27  # two-sided normal quantile of FAILURE_RATE = 2e-5


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    """Four small IDX files in torchvision's layout, which the catalogue takes for MNIST."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    md5 = {}
    for stem, count in (("train", 6), ("t10k", 4)):
        for kind, array in (
            ("images-idx3", random.integers(0, 256, (count, 28, 28))),
            ("labels-idx1", random.integers(0, 10, (count,))),
        ):
            (folder / f"{stem}-{kind}-ubyte").write_bytes(idx(array))
            md5[f"{stem}-{kind[:6]}"] = hashlib.md5(idx(array)).hexdigest()
    small = replace(sources.SETS["mnist"], sizes={"train": 6, "test": 4}, unpacked=md5)
    monkeypatch.setitem(sources.SETS, "mnist", small)
    return folder


# --- the shipped digits


def test_digits_are_divided_by_the_stated_rule():
    arrays = np.load(sources.DIGITS, allow_pickle=False)
    by_hash = sorted(range(1797), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())
    assert set(np.flatnonzero(arrays["test"])) == set(by_hash[:360])
    train, test = load("digits"), load("digits", "test")
    assert train.x.shape == (1437, 64)
    assert test.x.shape == (360, 64)
    assert train.image_shape == (8, 8)
    assert load("digits", flatten=False).x.shape == (1437, 8, 8)
    # facts of the published set: 1,797 images, and how many there are of each digit
    assert train.labels is not None
    assert test.labels is not None
    counts = torch.cat([train.labels, test.labels]).bincount().tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_without_binarisation_are_the_seventeen_grey_levels():
    x = load("digits", binarisation="none").x
    assert torch.equal(x.unique(), torch.arange(17) / 16)


# --- binarisation


def test_a_static_draw_has_the_grey_levels_as_its_mean_and_never_changes():
    grey, x = load("digits", binarisation="none").x, load("digits").x
    assert set(x.unique().tolist()) == {0.0, 1.0}
    # independent Bernoulli draws: the sum of x - grey has variance sum of grey (1 - grey)
    for part in (slice(None), grey < 0.3, grey > 0.7, (grey > 0.4) & (grey < 0.6)):
        excess = (x[part] - grey[part]).sum()
        assert excess.abs() < Z * (grey[part] * (1 - grey[part])).sum().sqrt()
    torch.manual_seed(123)  # the global generator has no say, nor is it moved
    state = torch.get_rng_state()
    assert torch.equal(load("digits").x, x)
    assert torch.equal(torch.get_rng_state(), state)
    digest = hashlib.sha256(x.to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest.startswith("b6aaa16df3bb"), "published numbers refer to this draw"


def test_draws_do_not_depend_on_the_dtype():
    double = load("digits").x
    torch.set_default_dtype(torch.float32)
    single = load("digits").x
    torch.set_default_dtype(torch.float64)
    assert single.dtype == torch.float32
    assert torch.equal(single.double(), double)


def test_seeds_and_splits_have_unrelated_streams(tmp_path):
    path = tmp_path / "half.npz"
    half = np.full((400, 10), 0.5)
    np.savez(path, x_train=half, x_test=half)
    draws = [
        load(path, split, binarisation="static", seed=seed).x
        for split in ("train", "test")
        for seed in (0, 1)
    ]
    # two independent draws of 4000 fair coins agree in 2000 +- Z * sqrt(1000)
    for i in range(4):
        for j in range(i):
            agree = (draws[i] == draws[j]).sum()
            assert abs(agree - 2000) < Z * math.sqrt(1000)


def test_dynamic_binarisation_is_drawn_anew_each_epoch_and_reproducibly():
    data = load("digits", binarisation="dynamic")
    assert torch.equal(data.x, data.at_epoch(0))
    first, second = data.at_epoch(1), data.at_epoch(2)
    assert not torch.equal(first, second)
    assert torch.equal(load("digits", binarisation="dynamic").at_epoch(1), first)
    mean = torch.stack([data.at_epoch(e) for e in range(20)]).mean(0)
    grey = load("digits", binarisation="none").x
    # 20 draws: chi-square of the standardised residuals, about normal for 60,000 pixels
    inner = (grey > 0) & (grey < 1)
    residual = (mean - grey)[inner] / (grey * (1 - grey) / 20)[inner].sqrt()
    kurtosis = (1 - 6 * grey * (1 - grey))[inner] / (grey * (1 - grey))[inner] / 20
    error = ((2 + kurtosis).sum()).sqrt() / inner.sum()
    assert ((residual**2).mean() - 1).abs() < Z * error


def test_threshold_cuts_at_one_half():
    grey = load("digits", binarisation="none").x
    assert torch.equal(load("digits", binarisation="threshold").x, (grey > 0.5).double())


def test_every_description_tells_split_count_and_binarisation():
    assert (
        load("digits", "test", seed=3).describe()
        == "digits, test, 360 examples, static binarisation (seed 3)"
    )
    described = {
        b: load("digits", binarisation=b).describe()
        for b in ("static", "dynamic", "threshold", "none")
    }
    assert len(set(described.values())) == 4
    assert "dynamic binarisation (seed 0)" in described["dynamic"]
    assert "no binarisation" in described["none"]


# --- minibatches


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_an_epoch_shows_each_example_once_in_an_order_of_its_own(binarisation):
    data = load("digits", binarisation=binarisation)
    one, two = (torch.cat(list(data.batches(100, epoch=e))) for e in (1, 2))
    assert torch.equal(one, data.at_epoch(1)[data.order(1)])
    assert data.order(1).sort().values.equal(torch.arange(1437))
    assert not torch.equal(data.order(1), data.order(2))
    assert not torch.equal(one, two)
    assert [len(b) for b in data.batches(100)] == [100] * 14 + [37]
    assert [len(b) for b in data.batches(100, drop_last=True)] == [100] * 14
    assert torch.equal(torch.cat(list(data.batches(100, shuffle=False))), data.x)


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_a_run_continues_in_the_middle_of_an_epoch(binarisation):
    whole = list(load("digits", binarisation=binarisation).batches(100, epoch=3, seed=5))
    torch.rand(7)
    rest = list(load("digits", binarisation=binarisation).batches(100, epoch=3, seed=5, start=9))
    assert len(rest) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[9:], rest, strict=True))


def test_a_generator_gives_its_seed_and_is_left_alone():
    data = load("digits")
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    state = generator.get_state()
    by_generator = next(data.batches(10, generator=generator))
    assert torch.equal(by_generator, next(data.batches(10, seed=5)))
    assert torch.equal(generator.get_state(), state)
    assert not torch.equal(by_generator, next(data.batches(10, seed=6)))


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 4}, {"size": 2, "epoch": -1}])
def test_impossible_batches_are_refused_at_once_with_the_range(options):
    with pytest.raises(ValueError, match="expected"):
        Dataset(torch.zeros(3, 2)).batches(**options)


def test_held_out_examples_and_the_rest_make_up_the_whole():
    data = load("digits", binarisation="dynamic")
    rest, held = data.hold_out(137)
    assert (len(rest), len(held)) == (1300, 137)
    assert torch.cat([rest.grey, held.grey]).sum() == data.grey.sum()
    assert torch.equal(held.x, draw(held.grey, held.seed, held.split, epoch=0))
    assert held.describe().startswith("digits, 137 held out of train (seed 0), 137 examples")
    again = data.hold_out(137)[1]
    assert torch.equal(again.grey, held.grey)


def test_a_copy_in_another_dtype_keeps_the_draws():
    data = load("digits", binarisation="dynamic")
    single = data.to(dtype=torch.float32)
    assert single.x.dtype == torch.float32
    assert single.labels.dtype == torch.int64
    assert torch.equal(single.at_epoch(4).double(), data.at_epoch(4))


# --- MNIST and where it is looked for


def test_mnist_is_found_below_the_named_folder_and_verified(tiny_mnist, tmp_path):
    data = load("mnist", folder=tmp_path, binarisation="none")
    assert data.describe() == "mnist, train, 6 examples, no binarisation"
    assert data.x.shape == (6, 784)
    raw = np.frombuffer((tiny_mnist / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert torch.equal(data.x.flatten(), torch.tensor(raw) / 255.0)
    assert load("mnist", "test", folder=tmp_path).labels.shape == (4,)
    assert [a.found for a in list_available(tmp_path)][1] == str(tiny_mnist)


def test_mnist_is_found_through_the_environment_and_the_working_folder(
    tiny_mnist, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path))
    assert len(load("mnist")) == 6
    monkeypatch.delenv("PPGEN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    with pytest.raises(DataError, match="PPGEN_DATA") as error:
        load("mnist")
    assert error.value.missing
    os.rename(tmp_path / "MNIST" / "raw", tmp_path / "MNIST" / "mnist")
    os.rename(tmp_path / "MNIST", tmp_path / "data")
    assert len(load("mnist")) == 6


def test_a_changed_pixel_of_mnist_is_refused(tiny_mnist, tmp_path):
    path = tiny_mnist / "train-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="md5"):
        load("mnist", folder=tmp_path)
    assert len(load(path)) == 6  # by its path it is just a file


def test_unknown_checksums_are_said_and_another_sets_files_refused(
    tiny_mnist, tmp_path, monkeypatch
):
    small = replace(sources.SETS["fashion-mnist"], sizes={"train": 6, "test": 4})
    monkeypatch.setitem(sources.SETS, "fashion-mnist", small)
    with pytest.raises(DataError, match="file of mnist, not of fashion-mnist"):
        load("fashion-mnist", folder=tiny_mnist)
    path = tiny_mnist / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    (tiny_mnist / "train-labels-idx1-ubyte").unlink()
    data = load("fashion-mnist", folder=tiny_mnist)
    assert data.describe().endswith("static binarisation (seed 0), checksum unknown")
    assert data.labels is None


def test_the_list_tells_what_ships_and_the_licences():
    digits, mnist, fashion, earthquakes, molecules = list_available()
    assert digits.found
    assert earthquakes.found
    assert molecules.found
    assert "CC BY 4.0" in digits.licence
    assert "3.0" in mnist.licence
    assert "/usr/share/datasets/fashion-mnist" in fashion.looked_for


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(DataError, match="did you mean mnist") as error:
        load("minst")
    assert error.value.missing
    with pytest.raises(DataError, match="no split 'valid'"):
        load("digits", "valid")
    with pytest.raises(ValueError, match="expected one of static"):
        load("digits", binarisation="binary")


def test_check_tells_shape_range_and_what_to_do(tmp_path):
    report = check("digits")
    assert report.ok
    assert (report.shape, report.maximum) == ((1437, 8, 8), 16.0)
    assert "static" in str(report)
    path = tmp_path / "holes.npy"
    holes = np.ones((5, 3))
    holes[2, 1] = np.nan
    np.save(path, holes)
    report = check(path)
    assert not report.ok
    assert report.missing == 1
    assert "row 2, column 1" in report.problems[0]
    assert report.as_dict()["ok"] is False
    text = tmp_path / "text.csv"
    text.write_text("a,b\n1,x\n2,y\n")
    assert "read_table" in check(text).suggestion
    assert check(tmp_path / "none.csv").problems[0].endswith("there is no such file")
