"""How are labelled sentences read? Embedded ones, SST-2 in its GLUE form and IMDb's folders, line by line checked."""

import importlib.resources
import lzma
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsign.systems.text.problem import NONE, SOURCES, TextProblem
from jaxsign.validation.values import local_path

#: A word: letters a to z, with single apostrophes between them.
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
#: The one word of a sentence that has none.
NO_WORD = "<none>"
TAG = re.compile(r"<br ?/?>")
EMBEDDED = "sentences.tsv.xz"


class Sentences(NamedTuple):
    r"""A corpus, the `shared` of a run: one argument common to all runs.

    Args:
      words: (N, length) int32, the places of a sentence's first words in the sorted list of all words that are read,
        counted from 1; 0 after its end.
      labels: (N,) uint8, 1 positive, 0 negative.
      source: (N,) uint8, its place in `SOURCES`.
      evaluation: (N,) bool, whether the corpus itself keeps a sentence for evaluation: it is never trained on, and if
        there are any, validation and test sentences are drawn from these alone.
      spelling: (W, longest) uint8, the letters of every word that is read, 0 after its end, in the order of the words.

    Examples:
      >>> corpus = load_text()
      >>> [bytes(corpus.spelling[place - 1]).rstrip(b"\0").decode() for place in corpus.words[0, :4]]
      ['a', 'very', 'very', 'very']
    """

    words: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    evaluation: np.ndarray
    spelling: np.ndarray


class Line(NamedTuple):
    """One labelled sentence: its text, its label, the name of its source, whether it is for evaluation."""

    text: str
    label: int
    source: str
    evaluation: bool


def tokens(text: str) -> list[str]:
    """The words of a text: lower case, maximal runs of the letters a to z with single apostrophes inside.

    Everything else, such as digits and punctuation, is left out. A text without any word has the one word "<none>".

    Examples:
      >>> tokens("It's a 10/10, 'really' good; don't miss it!")
      ["it's", 'a', 'really', 'good', "don't", 'miss', 'it']
      >>> tokens("10/10")
      ['<none>']
    """
    return WORD.findall(text.lower()) or [NO_WORD]


def load_text(data_dir: str | os.PathLike | None = None, problem: TextProblem | None = None) -> Sentences:
    """The corpus that `js.noisy_text` draws from: give it as `shared=`.

    Args:
      data_dir: directory of train.tsv and dev.tsv, SST-2 in its GLUE form (with or without the header line
        `sentence<TAB>label`), or of aclImdb/{train,test}/{pos,neg}/*.txt, the IMDb reviews. Both keep their dev or test
        part for evaluation. None: 2,979 sentences of IMDb, Amazon and Yelp that come with the package.
      problem: how many words of a sentence are read, default `TextProblem()`; checks that there are enough sentences
        of each sentiment for its splits.

    Returns:
      Sentences.

    Raises:
      ValueError: naming the file, the line and what is wrong with it, or the sentences that are missing.

    Examples:
      >>> load_text().words.shape
      (2979, 16)

    References:
      Kotzias et al., KDD 2015 (embedded, CC BY 4.0); Socher et al., EMNLP 2013, and Wang et al., arXiv 1804.07461
      (SST-2 in GLUE); Maas et al., ACL 2011 (IMDb).
    """
    lines, place = _lines(data_dir)
    found = encode(lines, (problem or TextProblem()).length)
    if problem is not None:
        _check_enough(found, problem, place)
    return found


def encode(lines: Sequence[Line], length: int) -> Sentences:
    """Numbers for the words of labelled sentences.

    Args:
      lines: labelled sentences.
      length: words that are read of each.

    Examples:
      >>> encode([Line("bad", 0, "imdb", False), Line("a bad one", 1, "imdb", False)], 2).words.tolist()
      [[2, 0], [1, 2]]
    """
    read = [tokens(line.text)[:length] for line in lines]
    known = sorted({word for words in read for word in words})
    place = {word: i for i, word in enumerate(known, 1)}
    words = np.zeros((len(read), length), np.int32)
    for row, sentence in zip(words, read):
        row[: len(sentence)] = [place[word] for word in sentence]
    return Sentences(
        words,
        np.array([line.label for line in lines], np.uint8),
        np.array([SOURCES.index(line.source) for line in lines], np.uint8),
        np.array([line.evaluation for line in lines], bool),
        np.array([word.encode() for word in known], bytes).view(np.uint8).reshape(len(known), -1),
    )


def eligible(corpus: Sentences, held_out: str) -> dict[str, np.ndarray]:
    """{"train", "val", "test": (N,) bool}: which sentences each split may draw from; also for traced arrays.

    Args:
      corpus: Sentences.
      held_out: the source that is tested alone, or "none".
    """
    kept = corpus.evaluation | ~corpus.evaluation.any()
    if held_out == NONE:
        return {"train": ~corpus.evaluation, "val": kept, "test": kept}
    out = corpus.source == SOURCES.index(held_out)
    return {"train": ~corpus.evaluation & ~out, "val": kept & ~out, "test": kept & out}


def _check_enough(corpus: Sentences, problem: TextProblem, place: str) -> None:
    """Raises ValueError unless each split finds enough sentences of each sentiment in the order of `data.choose`."""
    may = eligible(corpus, problem.held_out)
    for label, sentiment in enumerate(("negative", "positive")):
        taken: list[tuple[str, int]] = []
        for split in ("train", "val", "test"):
            taken = [(name, size) for name, size in taken if (may[name] & may[split]).any()]
            taken.append((split, getattr(problem, f"n_{split}") // 2))
            pool = np.any([may[name] for name, _ in taken], axis=0)
            count, needed = int(np.sum(pool & (corpus.labels == label))), sum(size for _, size in taken)
            if count < needed:
                names = " + ".join(f"n_{name}" for name, _ in taken)
                raise ValueError(
                    f"({names})/2 = {needed} {sentiment} sentences are needed, got {count} in {place}"
                    + ("" if problem.held_out == NONE else f" with held_out={problem.held_out!r}")
                )


def _lines(data_dir: str | os.PathLike | None) -> tuple[list[Line], str]:
    """All labelled sentences of a directory, or the embedded ones, and where they are from."""
    if data_dir is None:
        packed = importlib.resources.files("jaxsign.systems.text").joinpath(EMBEDDED).read_bytes()
        rows = (row.split("\t") for row in lzma.decompress(packed).decode().splitlines()[1:])
        return [Line(text, int(label), source, False) for source, label, text in rows], "the embedded sentences"
    folder = local_path("data_dir", data_dir)
    if (folder / "train.tsv").is_file():
        parts = [("train.tsv", False), ("dev.tsv", True)]
        return [line for name, held in parts for line in _table(folder / name, held)], str(folder)
    reviews = folder if (folder / "train" / "pos").is_dir() else folder / "aclImdb"
    if (reviews / "train" / "pos").is_dir():
        return list(_reviews(reviews)), str(reviews)
    raise ValueError(
        f"data_dir must hold train.tsv and dev.tsv (SST-2) or aclImdb/train/pos (IMDb), got data_dir={str(folder)!r}"
    )


def _table(path: Path, evaluation: bool) -> Iterator[Line]:
    """The sentences of one file of SST-2, `sentence<TAB>label` a line, after a header line or none."""
    rows = _read(path).split(b"\n")
    if rows and not rows[-1]:
        rows.pop()  # after the last line's end
    header = bool(rows) and rows[0].rstrip(b"\r") == b"sentence\tlabel"
    if len(rows) <= header:
        raise ValueError(f"{path} line {len(rows) + 1}: a sentence is expected, got the end of the file")
    for number, row in enumerate(rows[header:], 1 + header):
        parts = _decoded(path, number, row.removesuffix(b"\r")).split("\t")
        if len(parts) != 2:
            raise ValueError(f"{path} line {number}: must be sentence<TAB>label, got {len(parts) - 1} tabs")
        text, label = parts
        if label not in ("0", "1"):
            raise ValueError(f"{path} line {number}: label must be 0 or 1, got {label[:40]!r}")
        if not text.strip():
            raise ValueError(f"{path} line {number}: the sentence is empty")
        yield Line(text, int(label), "sst2", evaluation)


def _reviews(folder: Path) -> Iterator[Line]:
    """The reviews of IMDb's four folders, in the order of their names."""
    for part, evaluation in (("train", False), ("test", True)):
        for name, label in (("neg", 0), ("pos", 1)):
            files = sorted((folder / part / name).glob("*.txt"))
            if not files:
                raise ValueError(f"{folder / part / name} must hold reviews as *.txt, got none")
            for path in files:
                rows = [_decoded(path, number, row) for number, row in enumerate(_read(path).split(b"\n"), 1)]
                text = TAG.sub(" ", " ".join(rows))
                if not text.strip():
                    raise ValueError(f"{path} line 1: the review is empty")
                yield Line(text, label, "imdb", evaluation)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def _decoded(path: Path, number: int, row: bytes) -> str:
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} line {number}: not UTF-8 from byte {error.start} on") from None
