"""Which sentences does a run see? Balanced disjoint splits, a vocabulary of its own, injected words and noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.text.corpus import Sentences, eligible
from jaxsign.systems.text.problem import TextHyper, TextProblem

Array = jax.Array


class Texts(NamedTuple):
    """Sentences as a model reads them.

    Args:
      tokens: (n, length + K) int32, 1 + the word's place in the run's vocabulary, 0 for an unknown word and for
        padding; the K injected words are last.
      mask: (n, length + K) bool, False for padding.
      y: (n,) labels, +1 positive, -1 negative.
    """

    tokens: Array
    mask: Array
    y: Array


class Draw(NamedTuple):
    """The draws of the stream "data".

    Args:
      train: Texts of the training sentences with observed labels, some of them flipped.
      held: Texts of the validation sentences, then those of the test sentences, in which nothing is injected yet: the
        last places are 0.
      noise: (n_train, length, width) noise on the training sentences' embedded words, or None if there is none.
      known: () int32, words in the vocabulary.
    """

    train: Texts
    held: Texts
    noise: Array | None
    known: Array


class Fresh(NamedTuple):
    """The draws of the stream "test".

    Args:
      lots: (n_val + n_test, held_injected) uniform numbers in [0, 1), each of which chooses an injected word.
      key: key of the noise on embedded words, which is drawn where it is read: it has the size of the test set's
        embedding.
    """

    lots: Array
    key: Array


def choose(key: Array, corpus: Sentences, problem: TextProblem) -> tuple[dict[str, Array], Array]:
    """Indices of the sentences of each split: without replacement, half of each sentiment, equally likely.

    Training sentences are drawn first, then validation and test sentences. The training sentences of a smaller n_train
    are among those of a larger one.

    Args:
      key: a key.
      corpus: Sentences.
      problem: sizes, and the source that is held out.

    Returns:
      ({"train", "val", "test": (n,) int32, negative sentences first}, () bool whether there were enough sentences).

    Examples:
      >>> from jaxsign.systems.text.corpus import Line, encode
      >>> lines = [Line("x", label, "imdb", False) for label in (0, 1, 0, 1, 0, 1)]
      >>> splits, enough = choose(jax.random.key(0), encode(lines, 1), TextProblem(n_train=2, n_val=2, n_test=2))
      >>> sorted(int(i) for split in splits.values() for i in split), bool(enough)
      ([0, 1, 2, 3, 4, 5], True)
    """
    lots = jax.random.uniform(key, corpus.labels.shape)
    may = eligible(jax.tree.map(jnp.asarray, corpus), problem.held_out)
    found, enough = {}, jnp.ones((), bool)
    free = jnp.ones(lots.shape, bool)
    labels = jnp.asarray(corpus.labels)
    for split in ("train", "val", "test"):
        halves = []
        for label in (0, 1):
            size = getattr(problem, f"n_{split}") // 2
            best, places = jax.lax.top_k(jnp.where(may[split] & free & (labels == label), lots, -1.0), size)
            enough &= best[-1] >= 0
            halves.append(places)
        found[split] = jnp.concatenate(halves)
        free = free.at[found[split]].set(False)
    return found, enough


def vocabulary(key: Array, words: Array, count: int, size: int) -> tuple[Array, Array]:
    """A run's own vocabulary: the most frequent words of its training sentences, ties broken at random.

    Args:
      key: a key.
      words: (n, length) int32 words of the training sentences, from 1; 0 after their end.
      count: words of the corpus.
      size: the most words of the vocabulary.

    Returns:
      (token of every word of the corpus, (count + 1,) int32: 1, 2, ... in the order of their frequency, 0 for words
      outside the vocabulary; the size () int32 of the vocabulary).

    Examples:
      >>> of, known = vocabulary(jax.random.key(0), jnp.array([[3, 3, 1], [1, 3, 0]]), 4, 8)
      >>> of.tolist(), int(known)
      ([0, 2, 0, 1, 0], 2)
    """
    times = jnp.zeros(count + 1, jnp.int32).at[words.ravel()].add(1).at[0].set(0)
    order = jax.random.permutation(key, count + 1)
    best, places = jax.lax.top_k(times[order], min(size, count))
    chosen = best > 0
    ranks = jnp.where(chosen, jnp.arange(1, best.size + 1, dtype=jnp.int32), 0)
    return jnp.zeros(count + 1, jnp.int32).at[order[places]].set(ranks), jnp.sum(chosen, dtype=jnp.int32)


def inject(texts: Texts, lots: Array, known: Array, own: Array, problem: TextProblem) -> Texts:
    """Texts with random words of the vocabulary in their last places.

    Args:
      texts: Texts.
      lots: (n, injected) uniform numbers in [0, 1).
      known: () words in the vocabulary.
      own: (n_train, length) tokens of the run's training sentences, in which nothing is injected.
      problem: its injected_law says how often a word is chosen.
    """
    if not lots.shape[1]:
        return texts
    if problem.injected_law == "uniform":
        words = 1 + jnp.minimum((lots * known.astype(lots.dtype)).astype(jnp.int32), known - 1)
    else:
        times = jnp.zeros(problem.vocabulary + 1, jnp.int32).at[own.ravel()].add(1)
        upto = jnp.cumsum(times.at[0].set(0))  # training words with a token of at most 0, 1, ...
        place = jnp.minimum((lots * upto[-1].astype(lots.dtype)).astype(jnp.int32), upto[-1] - 1)
        words = jnp.searchsorted(upto, place, side="right").astype(jnp.int32)
    length = texts.tokens.shape[1] - lots.shape[1]
    return texts._replace(tokens=texts.tokens.at[:, length:].set(words), mask=texts.mask.at[:, length:].set(True))


def embedding_noise(key: Array, problem: TextProblem, count: int) -> Array | None:
    """Noise on the embedded words of some sentences, (count, length, width), or None if there is none."""
    if not problem.embedding_noise:
        return None
    return problem.embedding_noise * jax.random.normal(key, (count, problem.length, problem.width))


def sample(key: Array, problem: TextProblem, hyper: TextHyper, shared: Sentences | None) -> Draw:
    """Draws the splits, the vocabulary, the training sentences' injected words and noise, and the flipped labels.

    Every kind of draw has a key of its own: the same sentences are drawn at every number of injected words, the same
    flips at every size of the noise, and so on, so that comparisons are paired. Injected words depend on no label.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: sizes of the noise, may be traced.
      shared: Sentences.

    Returns:
      Draw. If a split finds too few sentences, labels are NaN, so that the run's status is 1 (diverged);
      `load_text(problem=...)` checks this in advance.

    Raises:
      ValueError: if there is no corpus, it was read at another length, or it has fewer sentences than are drawn.
    """
    if not isinstance(shared, Sentences):
        raise ValueError(f"noisy text needs shared=js.load_text(), got shared={shared!r}")
    total = problem.n_train + problem.n_val + problem.n_test
    if len(shared.labels) < total:
        raise ValueError(f"n_train + n_val + n_test = {total} sentences are needed, got {len(shared.labels)} in all")
    if shared.words.shape[1] != problem.length:
        raise ValueError(
            f"length must be that of shared=js.load_text(None, problem), {shared.words.shape[1]}, "
            f"got length={problem.length}"
        )
    splits, ties, lots, noise, flips = jax.random.split(key, 5)
    places, enough = choose(splits, shared, problem)
    words = jnp.asarray(shared.words)
    token_of, known = vocabulary(ties, words[places["train"]], len(shared.spelling), problem.vocabulary)
    dtype = jnp.zeros(()).dtype
    labels = jnp.where(enough, 2 * jnp.asarray(shared.labels).astype(dtype) - 1, jnp.nan)

    def texts(indices: Array, injected: int) -> Texts:
        room = ((0, 0), (0, injected))
        own = words[indices]
        return Texts(jnp.pad(token_of[own], room), jnp.pad(own > 0, room), labels[indices])

    train = texts(places["train"], problem.injected)
    lots = jax.random.uniform(lots, (problem.n_train, problem.injected))
    train = inject(train, lots, known, train.tokens[:, : problem.length], problem)
    flipped = jax.random.uniform(flips, (problem.n_train,)) < hyper.label_noise
    train = train._replace(y=jnp.where(flipped, -train.y, train.y))
    held = texts(jnp.concatenate([places["val"], places["test"]]), problem.held_injected)
    return Draw(train, held, embedding_noise(noise, problem, problem.n_train), known)
