r"""What chemists ask of generated molecules: validity, properties, likeness, reconstruction.

Strings are SMILES. rdkit and selfies are imported at the first call that needs them.

References:
    | Molecular Sets (Polykovskiy et al., 2020), on validity, uniqueness and novelty
    | https://arxiv.org/abs/1811.12823
    | Quantifying the chemical beauty of drugs (Bickerton et al., 2012), on QED
    | Estimation of synthetic accessibility score of drug-like molecules (Ertl, Schuffenhauer, 2009)
    | Automatic Chemical Design (Gomez-Bombarelli et al., 2018) | https://arxiv.org/abs/1610.02415
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.data.errors import DataError
from ppgen.data.molecule_strings import Notation
from ppgen.data.tokens import read_lines
from ppgen.types import Autoencoder

_INSTALL = "pip install ppgen-suite[chem]"


class Quality(NamedTuple):
    """What became of a number of generated strings, as shares."""

    valid: float  # of all: those that are molecules
    unique: float  # of the valid: different ones
    novel: float  # of the different valid ones: not among the training molecules
    strings: int

    def __str__(self) -> str:
        return (
            f"valid {self.valid:.3f}, unique {self.unique:.3f} of those, novel {self.novel:.3f} "
            f"of those, {self.strings} strings"
        )


class Reconstruction(NamedTuple):
    """The published protocol: every string encoded and decoded at random, exact match."""

    share: float  # of the decoded strings that are the very string
    error: float  # standard error over the strings
    strings: int
    encodings: int  # draws of each string's code
    decodings: int | None  # draws of each code's string; None: their probability instead

    def __str__(self) -> str:
        return (
            f"{self.share:.3f} +- {self.error:.3f} of {self.strings} strings x {self.encodings} "
            f"encodings{f' x {self.decodings} decodings' if self.decodings else ''}"
        )


class Improvement(NamedTuple):
    """What a search gained, one number for each starting molecule."""

    gain: tuple[float, ...]  # in the property; 0 where no candidate is better and alike enough
    similarity: tuple[float, ...]  # of the best candidate to its start; 1 where it is the start
    best: tuple[str, ...]  # canonical SMILES

    def __str__(self) -> str:
        number = len(self.gain)
        mean = sum(self.gain) / number
        spread = math.sqrt(sum((g - mean) ** 2 for g in self.gain) / max(1, number - 1))
        better = sum(g > 0 for g in self.gain)
        return f"gain {mean:.3f} +- {spread / math.sqrt(number):.3f}, {better} of {number} improved"


def canonical(smiles: str) -> str | None:
    """The canonical SMILES of a molecule; None for what is none, the empty string too."""
    molecule = _molecule(smiles)
    return None if molecule is None else _rdkit("Chem").MolToSmiles(molecule)


def quality(smiles: Sequence[str], training: Iterable[str]) -> Quality:
    """Validity, uniqueness and novelty of generated strings.

    Args:
        smiles: the generated ones.
        training: what the model was trained on, of which the generated are compared by canonical
            form.

    Raises:
        ValueError: where nothing was generated.
    """
    if not smiles:
        raise ValueError("quality: no strings were given")
    valid = [found for found in map(canonical, smiles) if found is not None]
    unique = set(valid)
    known = {canonical(s) for s in training}
    return Quality(
        len(valid) / len(smiles),
        len(unique) / max(1, len(valid)),
        len(unique - known) / max(1, len(unique)),
        len(smiles),
    )


def qed(smiles: str) -> float:
    """Quantitative estimate of drug-likeness, in [0, 1]."""
    return float(_rdkit("Chem.QED").qed(_required(smiles)))


def logp(smiles: str) -> float:
    """Octanol-water log P by Crippen's contributions of atoms."""
    return float(_rdkit("Chem.Crippen").MolLogP(_required(smiles)))


def synthetic_accessibility(smiles: str) -> float:
    """From 1, easy to make, to 10: by rdkit's own contributed script and its own table."""
    return float(_accessibility().calculateScore(_required(smiles)))


def penalised_logp(smiles: str) -> float:
    """Log P less synthetic accessibility less the atoms beyond six of the largest ring.

    The three terms are as they are; papers that standardise them over their data have other
    numbers.
    """
    molecule = _required(smiles)  # held: rdkit's ring information does not outlive it
    rings = molecule.GetRingInfo().AtomRings()
    excess = max(0, max(map(len, rings), default=0) - 6)
    return logp(smiles) - synthetic_accessibility(smiles) - excess


def properties(smiles: Sequence[str]) -> Tensor:
    """`qed`, `logp` and `penalised_logp` of each molecule, ``(N, 3)``; some ms a molecule."""
    rows = [[qed(s), logp(s), penalised_logp(s)] for s in smiles]
    return torch.tensor(rows, dtype=torch.get_default_dtype())


def similarity(a: str, b: str) -> float:
    """Tanimoto similarity of Morgan fingerprints of radius 2 and 2,048 bits, in [0, 1]."""
    return float(_rdkit("DataStructs").TanimotoSimilarity(_fingerprint(a), _fingerprint(b)))


def read_smiles(path: str | Path, notation: Notation = "smiles") -> list[str]:
    """The molecules of a .smi file, one a line; a name may follow a blank.

    A first line that begins with "smiles" is a heading.

    Args:
        path: of the file.
        notation: "smiles", as they are written, or "selfies".

    Raises:
        DataError: for what is no molecule or has no SELFIES, by the number of its line; for what
            is no text file.
    """
    found = []
    for number, line in read_lines(path):
        smiles = line.split()[0]
        if number == 1 and smiles.lower().startswith("smiles"):
            continue
        if canonical(smiles) is None:
            raise DataError(f"{smiles!r} is not a molecule", path, row=number)
        try:
            found.append(smiles if notation == "smiles" else selfies_of_smiles(smiles))
        except ValueError as error:
            raise DataError(str(error), path, row=number) from error
    if not found:
        raise DataError("no molecules: expected one a line, as SMILES", path)
    return found


def smiles_of_selfies(selfies: str) -> str:
    """The molecule that a SELFIES string means: every string of its symbols means one.

    One in which a model wrote <unk> means none: the empty string.
    """
    return "" if "<unk>" in selfies else _import("selfies").decoder(selfies)


def selfies_of_smiles(smiles: str) -> str:
    """A molecule in SELFIES.

    Raises:
        ValueError: for what is no molecule, or one that SELFIES has no symbols for.
    """
    package = _import("selfies")
    try:
        return package.encoder(smiles)
    except package.EncoderError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{smiles!r} has no SELFIES: {reason}") from error


@torch.no_grad()
def reconstruction(
    model: Autoencoder, x: Tensor, encodings: int = 10, decodings: int | None = 100
) -> Reconstruction:
    """The share of decoded strings that are the very string that was encoded.

    Args:
        model: encodes and decodes strings; nothing of chemistry is needed.
        x: held-out strings, ``(N, T)``.
        encodings: codes drawn from q(z | x) for each.
        decodings: strings drawn from p(x | z) for each code; None: p(x | z) itself, which is what
            their share estimates, without drawing any.

    References:
        | Grammar Variational Autoencoder (Kusner et al., 2017) | https://arxiv.org/abs/1703.01925
    """
    if min(len(x), encodings, 1 if decodings is None else decodings) < 1:
        raise ValueError(
            f"reconstruction: expected at least one string, encoding and decoding; got {len(x)}, "
            f"{encodings} and {decodings}"
        )
    matches = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(encodings):
        law = model.decode(model.encode(x).sample())
        if decodings is None:
            share = law.log_prob(x).exp()
        else:
            share = (law.sample(torch.Size([decodings])) == x).all(-1).double().mean(0)
        matches += share.double().cpu()
    each = matches / encodings
    error = float(each.std()) / math.sqrt(len(x)) if len(x) > 1 else float("nan")
    return Reconstruction(float(each.mean()), error, len(x), encodings, decodings)


def improvement(
    starts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    score: Callable[[str], float],
    *,
    alike: float = 0.4,
) -> Improvement:
    """For each start the best of its candidates that is still alike.

    Args:
        starts: molecules, N of them.
        candidates: N lists of strings; what is no molecule counts for nothing.
        score: `qed`, `penalised_logp` or another property.
        alike: the least `similarity` to the start.

    Raises:
        ValueError: for a start that is no molecule; for lists of another number.
    """
    if len(starts) != len(candidates) or not starts:
        raise ValueError(
            f"improvement: {len(starts)} starts and {len(candidates)} lists of candidates; "
            "expected as many lists as starts, and at least one"
        )
    rows = []
    for start, several in zip(starts, candidates, strict=True):
        first = canonical(start)
        if first is None:
            raise ValueError(f"{start!r} is not a molecule")
        before, best = score(first), (0.0, 1.0, first)
        for found in {canonical(candidate) for candidate in several} - {None, first}:
            close = similarity(first, str(found))
            if close >= alike:
                best = max(best, (score(str(found)) - before, close, str(found)))
        rows.append(best)
    return Improvement(*map(tuple, zip(*rows, strict=True)))


def _molecule(smiles: str) -> Any:
    """An rdkit molecule or None; rdkit's complaints on stderr are kept back."""
    with _rdkit("rdBase").BlockLogs():
        return _rdkit("Chem").MolFromSmiles(smiles) if smiles else None


def _required(smiles: str) -> Any:
    molecule = _molecule(smiles)
    if molecule is None:
        raise ValueError(f"{smiles!r} is not a molecule")
    return molecule


def _fingerprint(smiles: str) -> Any:
    return _generator().GetFingerprint(_required(smiles))


@cache
def _generator() -> Any:
    return _rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(radius=2, fpSize=2048)


@cache
def _accessibility() -> ModuleType:
    """The script SA_Score of rdkit's Contrib folder, which its wheels hold.

    It unpickles a table that stands beside it in rdkit's own folder: what is installed can run
    code as it is, and no other file is read.
    """
    folder = Path(_import("rdkit.RDConfig").RDContribDir) / "SA_Score"
    spec = importlib.util.spec_from_file_location("sascorer", folder / "sascorer.py")
    if spec is None or spec.loader is None or not (folder / "sascorer.py").is_file():
        raise ModuleNotFoundError(
            "this rdkit was installed without its Contrib folder, so that there is no synthetic "
            f"accessibility; logp is there. The wheel has both: {_INSTALL}"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rdkit(name: str) -> Any:
    return _import(f"rdkit.{name}")


@cache
def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(f"{package} is not installed: {_INSTALL}") from error
