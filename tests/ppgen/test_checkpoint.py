import json
import os
import zipfile

import pytest
import torch

from ppgen import checkpoint
from ppgen.checkpoint import CheckpointError

TENSORS = {
    "weight": torch.randn(4, 3, dtype=torch.float32),
    "double": torch.randn(3, dtype=torch.float64),
    "half": torch.randn(5).to(torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "count": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    "strided": torch.arange(12.0).reshape(3, 4).T[1:, ::2],
}
META = {"epoch": 3, "loss": 0.1, "none": None, "flags": [True, False], "text": "ä <script> \n"}


def _same(a, b):
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    )


def _files(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(tmp_path, TENSORS, META)
    return tmp_path


def test_tensors_and_meta_come_back_as_they_were(folder):
    tensors, meta = checkpoint.load(folder)
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    assert all(_same(tensors[name], TENSORS[name]) for name in TENSORS)
    tensors["weight"].add_(1)  # they are the caller's to change


def test_shared_tensors_come_back_equal_and_apart(tmp_path):
    shared = torch.ones(3)
    checkpoint.save(tmp_path, {"a": shared, "b": shared, "c": shared[1:]}, {})
    tensors, _ = checkpoint.load(tmp_path)
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared[1:])


def test_meta_keeps_numbers_that_json_has_not(tmp_path):
    checkpoint.save(tmp_path, {}, {"x": [float("inf"), -float("inf"), float("nan")], "t": (1, 2)})
    _, meta = checkpoint.load(tmp_path)
    assert meta["x"][:2] == [float("inf"), -float("inf")]
    assert meta["x"][2] != meta["x"][2]
    assert meta["t"] == [1, 2]
    json.loads((tmp_path / "manifest.json").read_text(), parse_constant=pytest.fail)  # strict JSON


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"a": {"b": [torch.ones(1)]}}, r"meta\.a\.b\[0\]: Tensor"),
        ({1: 2}, "key 1"),
        ({"$float": 1}, r"\$float"),
        ({"a": object()}, "object"),
    ],
    ids=["tensor", "integer key", "reserved key", "object"],
)
def test_meta_that_is_no_json_is_refused_by_its_place(tmp_path, meta, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(tmp_path, {}, meta)
    assert not _files(tmp_path)


def test_tensors_that_cannot_be_saved_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="sparse"):
        checkpoint.save(tmp_path, {"sparse": torch.eye(3).to_sparse()}, {})
    with pytest.raises(CheckpointError, match="word"):
        checkpoint.save(tmp_path, {"word": "x"}, {})  # type: ignore[dict-item]


def test_the_previous_generation_goes_when_the_next_is_committed(folder):
    assert _files(folder) == ["manifest.json", "tensors-00000001.safetensors"]
    checkpoint.save(folder, {"x": torch.ones(1)}, {})
    assert _files(folder) == ["manifest.json", "tensors-00000002.safetensors"]


def test_saving_removes_what_a_killed_save_left(folder):
    (folder / "tensors-00000009.safetensors").write_bytes(b"half")
    (folder / ".manifest.json.0123456789abcdef.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    checkpoint.save(folder, {"x": torch.ones(1)}, {})
    assert _files(folder) == ["manifest.json", "notes.txt", "tensors-00000010.safetensors"]


@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_save_that_fails_at_any_call_leaves_the_last_checkpoint(folder, monkeypatch, name, call):
    """A full disk, met at the n-th fsync or rename."""
    real, calls = getattr(os, name), [0]

    def failing(*args):
        calls[0] += 1
        if calls[0] == call:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, name, failing)
    try:
        checkpoint.save(folder, {"new": torch.ones(1)}, {"new": True})
    except OSError as error:
        assert "No space left" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        assert error.errno == 28  # noqa: PT017
    monkeypatch.setattr(os, name, real)
    tensors, meta = checkpoint.load(folder)
    assert (meta, tensors.keys()) in [
        (META, TENSORS.keys()),
        ({"new": True}, {"new": 0}.keys()),
    ]
    assert len(_files(folder)) == 2


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot save the checkpoint") as info:
        checkpoint.save(tmp_path / "file" / "ckpt", {}, {})
    assert "\n" not in str(info.value)


def test_every_truncation_is_refused(folder):
    for path in folder.iterdir():
        whole = path.read_bytes()
        for percent in range(100):
            path.write_bytes(whole[: len(whole) * percent // 100])
            with pytest.raises(CheckpointError, match=str(path.name)):
                checkpoint.load(folder)
        path.write_bytes(whole)
    checkpoint.load(folder)


def test_every_flipped_bit_is_refused(folder):
    for path in folder.iterdir():
        whole = path.read_bytes()
        for i in torch.randint(8 * len(whole), (200,)).tolist():
            damaged = bytearray(whole)
            damaged[i // 8] ^= 1 << i % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError) as info:
                checkpoint.load(folder)
            assert "\n" not in str(info.value)
        path.write_bytes(whole)
    checkpoint.load(folder)


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def _pickled(path):
    torch.save({"x": _Bomb()}, path)


def _zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")


FOREIGN = {
    "pickle": _pickled,
    "zip": _zipped,
    "html": lambda path: path.write_text("<html></html>"),
    "list": lambda path: path.write_text("[1, 2]"),
    "other json": lambda path: path.write_text('{"format": "other"}'),
    "deep json": lambda path: path.write_text("[" * 100_000),
    "empty": lambda path: path.write_text(""),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link": lambda path: path.symlink_to(path.parent / "elsewhere.json"),
}


@pytest.mark.parametrize("file", ["manifest.json", "tensors-00000001.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused_and_nothing_in_them_runs(folder, monkeypatch, kind, file):
    monkeypatch.chdir(folder)
    (folder / file).rename(folder / "elsewhere.json")
    FOREIGN[kind](folder / file)
    with pytest.raises(CheckpointError, match=file) as info:
        checkpoint.load(folder)
    assert "\n" not in str(info.value)
    assert not (folder / "executed").exists()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path)
    assert not checkpoint.exists(tmp_path)


def _forged(folder, **entries):
    """A manifest with these entries, sealed as a valid one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for key, value in entries.items():
        (manifest if key in manifest else manifest["tensors"])[key] = value
    (folder / "manifest.json").write_bytes(checkpoint._sealed(manifest))


@pytest.mark.parametrize(
    "file",
    ["../outside", "/etc/passwd", "tensors-1.safetensors", "tensors-00000001.safetensors/.."],
)
def test_names_that_lead_elsewhere_are_refused(folder, file):
    _forged(folder, file=file)
    with pytest.raises(CheckpointError, match="no name of a tensor file"):
        checkpoint.load(folder)


def test_a_newer_schema_is_refused_with_both_versions(folder):
    _forged(folder, schema=7)
    with pytest.raises(CheckpointError, match=r"schema 7; this ppgen reads 1"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"bytes": "many"}, {"bytes": -1}, {"file": 3}, {"sha256": None}, {"tensors": []},
        {"meta": 5}, {"meta": {"a": {"$float": "x"}}}, {"schema": "1"}, {"schema": 0},
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_another_type_are_refused(folder, entries):
    _forged(folder, **entries)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


def test_a_header_that_promises_too_much_is_refused_before_allocation(folder):
    import hashlib

    for size in (1 << 62, 1 << 33, 200):
        header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
        content = size.to_bytes(8, "little") + header
        (folder / "tensors-00000001.safetensors").write_bytes(content)
        _forged(folder, bytes=len(content))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.pop("sha256")
        manifest["tensors"]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_bytes(checkpoint._sealed(manifest))
        with pytest.raises(CheckpointError, match="safetensors"):
            checkpoint.load(folder)


def test_a_file_larger_than_its_manifest_says_is_not_read(folder):
    with (folder / "tensors-00000001.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="bytes were expected"):
        checkpoint.load(folder)
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="bytes were expected"):
        checkpoint.load(folder)
