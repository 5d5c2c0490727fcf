import gzip
import io
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from ppgen.data import DataError, check, check_binary, check_finite, load, read_table
from ppgen.data.idx import read_idx
from ppgen.data.numpy_files import read_npy

LEGIBLE = np.random.default_rng(0).integers(0, 256, (12, 5, 4)).astype(np.uint8)


def idx(array, code=8):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.tobytes()


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


# --- what is written is read back


@pytest.mark.parametrize(
    ("code", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_of_every_type_comes_back(tmp_path, code, dtype, pack):
    array = (np.arange(24).reshape(2, 3, 4) - 3).astype(dtype)
    path = tmp_path / "some-ubyte"
    path.write_bytes(pack(idx(array, code)))
    got = read_idx(path)
    assert got.dtype.isnative
    assert np.array_equal(got, array)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i8", "<f4", ">f8", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_number_comes_back(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype, order=order)
    path = tmp_path / "a.npy"
    np.save(path, array)
    assert np.array_equal(read_npy(path), array)
    assert torch.equal(load(path).x, torch.tensor(array.astype(float)))


def test_a_long_file_in_several_chunks_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("ppgen.data.idx._CHUNK", 7)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(LEGIBLE)))
    assert np.array_equal(read_idx(path), LEGIBLE)


def test_idx_images_are_grey_levels_between_0_and_1(tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(LEGIBLE)))
    data = load(path)
    assert data.image_shape == (5, 4)
    assert torch.equal(data.x, torch.tensor(LEGIBLE.reshape(12, 20)) / 255.0)
    assert "divided" not in data.describe()  # the format says so


def test_npz_gives_examples_labels_and_splits(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.eye(3), labels=np.arange(3))
    assert load(path).labels.tolist() == [0, 1, 2]
    assert load(path).split == "all"
    np.savez_compressed(path, x_train=np.eye(4), x_test=np.eye(4)[:1], y_train=np.arange(4))
    assert load(path).split == "train"
    assert len(load(path, "test")) == 1
    np.savez(path, first=np.eye(3), second=np.eye(3))
    with pytest.raises(DataError, match=r"it holds first \(3, 3\), second"):
        load(path)
    np.savez(path, x=np.eye(3), labels=np.eye(3))
    with pytest.raises(DataError, match="labels"):
        load(path)


def test_a_file_without_splits_has_no_test_set(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.eye(3))
    with pytest.raises(DataError, match="no test split"):
        load(path, "test")


# --- what cannot be used is refused, with its place


def save_csv(path, text):
    path.write_text(text)
    return path


BAD_CSV = {
    "NaN": ("a,b\n1,2\n3,NaN\n", "bad.csv:row 3, column b: NaN"),
    "empty cell": ("a,b\n1,2\n,4\n", "bad.csv:row 3, column a: NaN"),
    "infinity": ("a,b\n1,2\n-inf,4\n", "bad.csv:row 3, column a: infinite"),
    "1e30": ("a,b\n1,2\n3,1e30\n", "bad.csv:row 3, column b: a value beyond"),
    "blank line before": ("a,b\n1,2\n\n\n3,NaN\n", "bad.csv:row 5, column b: NaN"),
    "ragged": ("a,b\n1,2\n3\n", "bad.csv:row 3: 1 values; the first line has 2"),
    "too many": ("a,b\n1,2\n3,4,5\n", "bad.csv:row 3: 3 values; the first line has 2"),
    "text among numbers": ("a,b\n1,2\n3,four\n", "bad.csv:row 3, column b: 'four' is not a number"),
    "empty": ("", "bad.csv: the file is empty"),
    "header only": ("a,b\n", "bad.csv: a header and no rows"),
    "one row": ("a,b\n1,2\n", "bad.csv: 1 row: at least two"),
    "text": ("a,b\nx,2\ny,3\n", "bad.csv:column a: text"),
    "doubled name": ("a,a\n1,2\n3,4\n", "bad.csv:row 1: the name 'a' stands twice"),
    "nameless": ("a,\n1,2\n3,4\n", "bad.csv:row 1, column 1: a column without a name"),
    "half a label": ("label,b\n0.5,2\n3,4\n", "bad.csv:row 2, column label: labels are integers"),
    "zero byte": ("a,b\n1,2\n3,\0\n", "bad.csv: a zero byte"),
    "open quote": ('a,b\n1,2\n3,"4\n', "bad.csv: CSV data cannot be read"),
    "only text": ("label\nx\ny\n", "no column of numbers"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_refused_with_line_and_column(tmp_path, case):
    text, message = BAD_CSV[case]
    path = save_csv(tmp_path / "bad.csv", text)
    with pytest.raises(DataError) as error:
        load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_latin_text_is_no_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(DataError, match="save the file as UTF-8"):
        load(path)


BAD_ARRAYS = {
    "NaN": (np.array([[1.0, 2.0], [3.0, np.nan]]), {}, "row 1, column 1: NaN"),
    "minus infinity": (np.array([[1.0, 2.0], [-np.inf, 1]]), {}, "row 1, column 0: infinite"),
    "1e30": (np.array([[1.0, 2.0], [-1e30, 1]]), {}, "row 1, column 0: a value beyond"),
    "in an image": (np.where(np.arange(24) == 17, np.nan, 1.0).reshape(2, 3, 4), {}, "(1, 1)"),
    "empty": (np.zeros((0, 3)), {}, "no rows"),
    "no columns": (np.zeros((3, 0)), {}, "no rows"),
    "a scalar": (np.array(1.0), {}, "no rows"),
    "one row": (np.ones((1, 3)), {}, "1 row: at least two"),
    "complex": (np.ones((3, 3), complex), {}, "dtype complex128"),
    "text": (np.array(["a", "b"]), {}, "dtype <U1"),
    "records": (np.zeros(3, [("a", float)]), {}, "dtype"),
    "dates": (np.zeros(3, "M8[s]"), {}, "dtype datetime64"),
    "negative grey": (
        np.array([[0.5, -0.1], [0, 1]]),
        {"binarisation": "static"},
        "row 0, column 1",
    ),
    "beyond white": (np.array([[0.5, 0], [1.5, 1]]), {"binarisation": "static"}, "row 1, column 0"),
    "levels unknown": (np.arange(12).reshape(4, 3), {"binarisation": "static"}, "say white=11"),
    "white too low": (np.arange(12).reshape(4, 3), {"white": 10}, "row 3, column 2"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_with_row_and_column(tmp_path, case):
    array, options, message = BAD_ARRAYS[case]
    path = tmp_path / "bad.npy"
    np.save(path, array)
    with pytest.raises(DataError) as error:
        load(path, **options)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_bytes_are_divided_by_255_and_that_is_said(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, LEGIBLE)
    data = load(path, binarisation="threshold")
    assert data.describe().endswith("threshold binarisation (> 0.5), divided by 255")
    assert torch.equal(data.x, torch.tensor((LEGIBLE > 127.5).reshape(12, 20)).double())
    assert load(path).x.max() > 1  # not binarised, not divided


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(np.array([{}, []], dtype=object), allow_pickle=True))
    with pytest.raises(DataError, match="Python objects"):
        load(path)
    path.write_bytes(b"\x80\x04\x95\x00\x00\x00.")
    with pytest.raises(DataError, match="pickle"):
        load(path)


def test_folders_and_nameless_members_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a file"):
        load(tmp_path)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../x.npy", npy(np.eye(3)))
    with pytest.raises(DataError, match="folder in its name"):
        load(path)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(DataError, match="gunzip this one first"):
        load(path)
    path = tmp_path / "a.bin"
    path.write_bytes(b"hello world")
    with pytest.raises(DataError, match="it starts with"):
        load(path)


def promise(sizes, payload):
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + payload


def zip_of(name, data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy_header(shape):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


BOMBS = {
    "IDX that promises 10^12": promise((10**6, 1000, 1000), b"\0" * 100),
    "IDX that promises 2^256": promise((2**32 - 1,) * 8, b"\0" * 100),
    "IDX of nine dimensions": promise((1,) * 9, b"\0"),
    "gzip that promises 10^12": gzip.compress(promise((10**6, 1000, 1000), b"\0" * 100)),
    "gzip that promises and holds 10^8": gzip.compress(promise((10**8,), b"\0" * 10**8), 1),
    "gzip that holds more than it promises": gzip.compress(promise((3,), b"\0" * 10**7), 1),
    "gzip within gzip": gzip.compress(gzip.compress(promise((3,), b"abc"))),
    "npy that promises 10^18": npy_header((10**9, 10**9)) + b"\0",
    "npy that promises 2^32": npy_header((2**32,)) + b"\0",
    "npy with negative sizes": npy_header((-1, -1)) + b"\0",
    "npy with a long header": b"\x93NUMPY\2\0\xff\xff\xff\x7f" + b"[" * 100_000,
    "npy with deep brackets": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
    "zip of 10^8 zeros": zip_of("x.npy", npy_header((10**8,)) + b"\0" * 10**8),
    "zip of nothing": zip_of("x.npy", b""),
    "a number of 2^25 digits": b"a,b\n" + b"1" * 2**25,
    "a line of 2^24 numbers": b"a,b\n" + b"1," * 2**24,
    "a number of 10^6 digits": b"a,b\n1,2\n3," + b"1" * 10**6,
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_quickly_and_in_little_memory(tmp_path, case):
    path = tmp_path / ("a.csv" if BOMBS[case].startswith(b"a,b") else "a.bin")
    path.write_bytes(BOMBS[case])
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(DataError):
        load(path)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 200e6
    assert not check(path).ok


# --- fuzzing: a valid result or a DataError, never anything else


TABLE = "id,dose,answer\n" + "".join(
    f"{i},{i / 7:.4f},{'yes' if i % 3 else 'no'}\n" for i in range(40)
)
STREAM = io.BytesIO()
np.savez_compressed(STREAM, x=LEGIBLE, labels=np.arange(12))
FILES = {
    "idx.gz": gzip.compress(idx(LEGIBLE)),
    "idx": idx(LEGIBLE),
    "csv": TABLE.encode(),
    "npy": npy(LEGIBLE.astype(float)),
    "npz": STREAM.getvalue(),
}


def survive(path):
    """The data, or None after a DataError, which is an answer too; anything else propagates."""
    try:
        return read_table(path) if path.suffix == ".csv" else load(path)
    except DataError as error:
        if str(path) not in str(error):
            raise
        return None


@pytest.mark.parametrize("kind", FILES)
def test_truncation_at_every_percent_is_answered(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    whole = FILES[kind]
    path.write_bytes(whole)
    assert survive(path) is not None
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        # a CSV cut between two values is a shorter table; everything else states its length
        assert survive(path) is None or kind == "csv"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:.*constant column")
def test_flipped_bytes_are_answered(tmp_path, kind):
    random = np.random.default_rng(1)
    path = tmp_path / f"a.{kind}"
    whole = torch.tensor(LEGIBLE.reshape(12, 20)).double()
    for _ in range(300):
        data = bytearray(FILES[kind])
        data[random.integers(len(data))] ^= random.integers(1, 256)
        path.write_bytes(data)
        got = survive(path)
        if kind in ("idx.gz", "npz") and got is not None:
            # these carry checksums: a flip in a name or a time stamp changes no value
            assert torch.allclose(got.x * (255 if kind == "idx.gz" else 1), whole)


# --- checks for models and trainers


def test_check_finite_names_the_first_bad_value():
    x = torch.ones(4, 3)
    assert check_finite(x, "x") is x
    x[2, 0] = torch.inf
    x[3, 1] = torch.nan
    with pytest.raises(DataError, match=r"^survey:row 3, column dose: NaN"):
        check_finite(x, "survey", columns=["id", "dose", "answer"])
    x[3, 1] = 0
    with pytest.raises(DataError, match=r"^x:row 2, column 0: infinite value$") as error:
        check_finite(x)
    assert (error.value.row, error.value.column) == (2, 0)
    x[2, 0] = -1e30
    with pytest.raises(DataError, match=r"^x:row 2, column 0: a value beyond 1e\+18"):
        check_finite(x)
    with pytest.raises(DataError, match="no values"):
        check_finite(torch.ones(0, 3))
    with pytest.raises(DataError, match=r"^y:row 1: NaN"):
        check_finite(torch.tensor([0.0, torch.nan]), "y")


def test_check_binary_says_how_to_make_the_data_binary():
    for good in (torch.eye(3), torch.eye(3, dtype=torch.bool), torch.eye(3, dtype=torch.uint8)):
        assert check_binary(good) is good
    with pytest.raises(DataError, match=r"row 0, column 1: 0.5 is neither 0 nor 1; grey levels"):
        check_binary(torch.tensor([[0, 0.5], [1, 1]]))
    with pytest.raises(DataError, match="divide by 255 and name binarisation="):
        check_binary(torch.tensor([[0, 0], [1, 200]]))
    with pytest.raises(DataError, match=r"row 1, column 1: -1 is neither 0 nor 1; .* binary data"):
        check_binary(torch.tensor([[0, 0], [1, -1]]))
    with pytest.raises(DataError, match="NaN"):
        check_binary(torch.tensor([[0, 0], [1, torch.nan]]))


def test_a_large_table_is_checked_within_a_second():
    x = torch.zeros(200_000, 20, dtype=torch.float32)
    x[-1, -1] = torch.nan
    begin = time.process_time()
    with pytest.raises(DataError, match="row 199999, column 19"):
        check_finite(x)
    assert time.process_time() - begin < 1
