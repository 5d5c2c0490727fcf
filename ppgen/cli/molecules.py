"""What the commands do with molecules: strings of a .smi file, or of the ones that ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Tokenizer

SHIPPED = "molecules"  # as --data: `ppgen.data.molecules`
SAMPLES = 20  # of importance sampling: a code of a hundred units gains little by more

Notation = Literal["selfies", "smiles"]
Split = Literal["train", "test"]


def vocabulary_of(settings: dict[str, Any]) -> Tokenizer:
    """Of all the molecules that ship, or of the file's."""
    from ppgen.data import Vocabulary, molecules

    if settings["data"] == SHIPPED:
        return molecules("train", settings["notation"]).vocabulary
    return Vocabulary.of(strings(settings, "train"))


def strings(settings: dict[str, Any], split: Split) -> list[str]:
    """The molecules in the run's notation; a file is all train.

    Raises:
        DataError: by the file's line, for what is no molecule or has no SELFIES.
        ModuleNotFoundError: for a file, without the extra that knows molecules.
    """
    from ppgen import chemistry
    from ppgen.data import DataError, molecules

    if settings["data"] == SHIPPED:
        part = molecules(split, settings["notation"])
        return part.vocabulary.decode(part.x)
    path = Path(settings["data"])
    if path.suffix != ".smi":
        raise DataError(f'molecules come from a .smi file, one a line, or from "{SHIPPED}"', path)
    if split == "test":
        raise DataError("a file of molecules has no test split: use --split validation", path)
    found = chemistry.read_smiles(path, settings["notation"])
    if len(found) < 2:
        raise DataError("one molecule: at least two are needed to train on", path)
    return found


def properties(settings: dict[str, Any]) -> Tensor:
    """What the story's head is trained to tell, ``(N, 3)``: stored, or computed from a file."""
    from ppgen import chemistry
    from ppgen.data import molecules

    if settings["data"] == SHIPPED:
        return molecules("train", settings["notation"]).properties
    return chemistry.properties(chemistry.read_smiles(settings["data"]))


def scales(properties: Tensor) -> list[list[float]]:
    """Mean and standard deviation of each, as the story's settings keep them; 1 of a constant."""
    spread = properties.std(0)
    return [properties.mean(0).tolist(), spread.masked_fill(spread == 0, 1.0).tolist()]


def scores(story: Any, x: Tensor) -> tuple[str, dict[str, Any]]:
    """How many strings come back exactly."""
    from ppgen.chemistry import reconstruction

    share = float((story.reconstruct(x) == x).all(-1).double().mean())
    drawn = reconstruction(story, x, decodings=None)
    text = f"\nreconstructed exactly: {share:.3f} by the likeliest symbols, at random {drawn}"
    return text, {"exact": share, "exact_at_random": drawn.share}


def as_smiles(strings: list[str], settings: dict[str, Any]) -> tuple[list[str], bool]:
    """Canonical SMILES of each, and whether rdkit was there; what is no molecule stays as it is.

    Without rdkit all stay, as SMILES where selfies is there.
    """
    from ppgen import chemistry
    from ppgen.cli.options import note

    found = strings
    try:
        if settings["notation"] == "selfies":
            found = [chemistry.smiles_of_selfies(s) for s in strings]
        return [chemistry.canonical(f) or f or s for f, s in zip(found, strings, strict=True)], True
    except ModuleNotFoundError as error:
        note(f"ppgen: {error}; it tells which are molecules")
        return found, False


def shares(smiles: list[str]) -> dict[str, float]:
    """Of these strings those that are molecules, and of these the different ones."""
    from ppgen import chemistry

    quality = chemistry.quality(smiles, ())
    return {"valid": quality.valid, "unique": quality.unique}
