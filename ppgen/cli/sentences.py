"""What the commands do with runs of the VAEs of sentences and molecules: text in, text out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ppgen.cli import molecules
from ppgen.cli.options import Common

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Dataset, Tokenizer
    from ppgen.likelihood import Likelihood

GRAMMAR = "grammar"  # as --data: `ppgen.data.small_english`
_DRAWN = {"train": 10_000, "test": 1_000}  # sentences of the grammar
_LONGEST = 1000  # characters of a line; more is hardly a sentence

Split = Literal["train", "test"]


def is_text(settings: dict[str, Any]) -> bool:
    """Whether these are the settings of a story of sentences or of molecules."""
    return settings["model"] in ("sentences", "molecules")


def tokenizer_of(settings: dict[str, Any]) -> Tokenizer:
    """The one that the run was made with, or a new one of the training text."""
    from ppgen.data import Tokenizer

    if "tokenizer" in settings:
        return Tokenizer.from_dict(settings["tokenizer"])
    if settings["model"] == "molecules":
        return molecules.vocabulary_of(settings)
    level = "character" if settings["characters"] else "word"
    least = settings.get("least", 1)
    return Tokenizer.of(_sentences(settings, "train"), level=level, least=least)


def load_text(settings: dict[str, Any], split: Split) -> Dataset:
    """Rows of tokens, ``(N, T)``; a file is all train.

    Raises:
        DataError: by the file's line, for what is no text; for the test split of a file.
    """
    from ppgen.data import Dataset

    x = tokenizer_of(settings).encode(_sentences(settings, split))
    where = split if settings["data"] in (GRAMMAR, molecules.SHIPPED) else "all"
    return Dataset(x, name=settings["data"], split=where)


def empty_text(settings: dict[str, Any]) -> Dataset:
    """One empty row: a run that keeps its vocabulary draws without its data."""
    from ppgen.data import Dataset

    return Dataset(tokenizer_of(settings).encode([""]), name=settings["data"])


def scores(
    story: Any, found: Likelihood, examples: Dataset, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The likelihood as perplexity, and how far it is from the truth where that is known."""
    from ppgen.data import small_english
    from ppgen.data.tokens import token_counts
    from ppgen.diagnostics import text_score

    score = text_score(found.lower, token_counts(examples.x))
    text = f"\nat most {score}" if found.kind != "exact" else f"\n{score}"
    numbers = {"nats_per_token": score.token, "perplexity": score.perplexity}
    if examples.name == GRAMMAR:
        entropy = small_english().entropy
        text += f"\nexact entropy of the grammar {entropy:.3f} nats a sentence, "
        text += f"gap {score.sentence - entropy:.3f}"
        numbers |= {"entropy": entropy, "gap": score.sentence - entropy}
    if settings["model"] == "molecules":
        more, exact = molecules.scores(story, examples.x)
        text, numbers = text + more, numbers | exact
    return text, numbers


def beside_ngrams(
    found: Likelihood, kept: Dataset, held_out: Dataset, vocabulary: int
) -> tuple[str, dict[str, float]]:
    """Nats per token of held-out sentences, and what counting neighbours in the others gives."""
    from ppgen.data.tokens import token_counts
    from ppgen.diagnostics import ngram_log_prob, text_score

    score = text_score(found.lower, token_counts(held_out.x))
    numbers = {"nats_per_token": score.token}
    for name, order in (("unigram", 1), ("bigram", 2), ("trigram", 3)):
        each = ngram_log_prob(kept.x, held_out.x, vocabulary, order)
        numbers[name] = text_score(each.mean().item(), token_counts(held_out.x)).token
    others = ", ".join(f"{n} {nats:.3f}" for n, nats in list(numbers.items())[1:])
    text = (
        f"\nheld out, {len(held_out)} sentences: at most {score.token:.3f} nats a token; {others}"
    )
    return text, numbers


def show_samples(x: Any, settings: dict[str, Any], out: Path | None, common: Common) -> None:
    """Print, or write, one sentence a line."""
    import torch

    from ppgen.data import small_english

    sentences = tokenizer_of(settings).decode(torch.as_tensor(x))
    found: dict[str, Any] = {"samples": len(sentences)}
    lines = sentences
    if settings["data"] == GRAMMAR:
        found["grammatical"] = small_english().grammatical(sentences)
    if settings["model"] == "molecules":
        found["strings"] = sentences
        sentences, known = molecules.as_smiles(sentences, settings)
        lines = sentences
        if known:
            shares = molecules.shares(sentences)
            lines = [*lines, ", ".join(f"{name} {share:.3f}" for name, share in shares.items())]
            found |= shares
    _put(lines, {**found, "sentences": sentences}, out, common)


def show_interpolations(
    story: Any, ends: tuple[Tensor, Tensor], steps: int, path: Any, settings: dict[str, Any],
    out: Path | None, common: Common,
) -> None:  # fmt: skip
    """Between each pair the most probable sentences on the way, one a line, then an empty line.

    Molecules are shown as SMILES.
    """
    from ppgen import latent

    a, b = (latent.codes(story, x) for x in ends)
    rows = story.decode(path(a, b, steps)).greedy().transpose(0, 1)
    ways = [tokenizer_of(settings).decode(row) for row in rows]
    found: dict[str, Any] = {"pairs": len(ways), "steps": steps}
    if settings["model"] == "molecules":
        found["strings"] = ways
        smiles, _ = molecules.as_smiles([s for way in ways for s in way], settings)
        ways = [smiles[i : i + steps] for i in range(0, len(smiles), steps)]
    lines = "\n\n".join("\n".join(way) for way in ways).splitlines()
    _put(lines, {**found, "interpolations": ways}, out, common)


def show_reconstructions(
    story: Any, x: Tensor, settings: dict[str, Any], out: Path | None, common: Common
) -> None:
    """Each sentence, what its code is decoded to, and the share that is the same.

    Molecules are shown as SMILES; one may come back in other symbols.
    """
    tokenizer, decoded = tokenizer_of(settings), story.reconstruct(x)
    pairs = list(zip(tokenizer.decode(x.long()), tokenizer.decode(decoded), strict=True))
    share = float((decoded == x).all(-1).double().mean())
    found: dict[str, Any] = {"exact": share}
    said = f"{share:.1%} of {len(x)} reconstructed exactly"
    if settings["model"] == "molecules":
        found["strings"] = pairs
        smiles, known = molecules.as_smiles([s for pair in pairs for s in pair], settings)
        pairs = list(zip(smiles[::2], smiles[1::2], strict=True))
        if known:
            same = found["same_molecule"] = sum(a == b for a, b in pairs) / len(pairs)
            said += f", {same:.1%} the same molecule"
    lines = [*(f"{a}\n  -> {b}" for a, b in pairs), said]
    _put(lines, {**found, "reconstructions": pairs}, out, common)


def _put(lines: list[str], found: dict[str, Any], out: Path | None, common: Common) -> None:
    if out is None:
        common.print("\n".join(lines), found)
        return
    if out.suffix != ".txt":
        raise ValueError(f"--out {out}: sentences are written to a .txt file")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    common.print(f"written: {out}", {**found, "path": str(out)})


def _sentences(settings: dict[str, Any], split: Split) -> list[str]:
    import torch

    from ppgen.data import DataError, read_sentences, small_english
    from ppgen.data.binarisation import stream

    if settings["data"] == GRAMMAR:
        with torch.random.fork_rng():
            torch.manual_seed(stream("grammar", settings["seed"], split).initial_seed())
            return small_english().sample(_DRAWN[split])[0]
    if settings["model"] == "molecules":
        return molecules.strings(settings, split)
    path = Path(settings["data"])
    if path.suffix != ".txt":
        raise DataError('sentences come from a .txt file, one a line, or from "grammar"', path)
    if split == "test":
        raise DataError("a file of text has no test split: use --split validation", path)
    found = read_sentences(path, longest=_LONGEST)
    if len(found) < 2:
        raise DataError("one sentence: at least two are needed to train on", path)
    return found
