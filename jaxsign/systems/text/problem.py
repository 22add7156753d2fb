"""Which numbers fix noisy text, what does each mean, and which values are legal?"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsign.systems.two_layer.problem import KERNELS
from jaxsign.validation.values import known, positive_int, real

MODELS = ("attention", "two_layer")
#: Where sentences come from; their places are the numbers of `Sentences.source`.
SOURCES = ("imdb", "amazon", "yelp", "sst2")
#: How often a word of the vocabulary is injected: each equally often, or as often as in the training sentences.
INJECTED_LAWS = ("uniform", "frequency")
#: Of `held_out`: sentences of all sources are trained on and tested.
NONE = "none"


@dataclasses.dataclass(frozen=True)
class TextProblem:
    """Everything that fixes the shapes of noisy text and of the model that reads it. Frozen and hashable.

    Args:
      n_train: training sentences, an even int: each split has as many positive as negative sentences.
      n_val: validation sentences, likewise.
      n_test: test sentences, likewise.
      length: words of a sentence that are read, its first ones, int >= 1.
      vocabulary: the most words that the model tells apart, int >= 1: the most frequent ones of the run's own training
        sentences. All others are one unknown word.
      injected: random words K appended to every sentence, training, validation and test, int >= 0.
      embedding_noise: standard deviation of normal noise on every embedded word of a sentence, one draw for each place
        of each training sentence, and others for validation and test; finite, >= 0; 0 for "two_layer".
      model: "attention", an embedding, one attention layer, the mean over queries and a linear head; "two_layer", the
        paper's model, whose patches are words as fixed unit vectors.
      kernel: "softmax", "gaussian", "linear" or "uniform", the control in which attention does not learn.
      width: of an embedded word ("attention"), or the rows of W_Q, W_K and each W_V ("two_layer"); a multiple of heads.
      heads: attention heads, int >= 1.
      held_out: a source ("imdb", "amazon", "yelp") that is tested on and not trained on, or "none".
      test_injected: random words appended to validation and test sentences, int >= 0, or None: as many as `injected`,
        which then counts those of training sentences alone.
      injected_law: "uniform", each word of the vocabulary is injected equally often; "frequency", as often as it stands
        in the run's own training sentences.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> TextProblem(injected=12).tokens
      28

    References:
      The question is that of arXiv 2410.04870, which model and sizes are reconstructed for.
    """

    n_train: int = 500
    n_val: int = 300
    n_test: int = 1000
    length: int = 16
    vocabulary: int = 2000
    injected: int = 0
    embedding_noise: float = 0.0
    model: str = "attention"
    kernel: str = "softmax"
    width: int = 32
    heads: int = 1
    held_out: str = NONE
    test_injected: int | None = dataclasses.field(default=None, metadata={"added": True})
    injected_law: str = dataclasses.field(default="uniform", metadata={"added": True})

    def __post_init__(self) -> None:
        for name in ("n_train", "n_val", "n_test", "length", "vocabulary", "width", "heads"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        object.__setattr__(self, "injected", positive_int("injected", self.injected, minimum=0))
        if self.test_injected is not None:
            object.__setattr__(self, "test_injected", positive_int("test_injected", self.test_injected, minimum=0))
        for name in ("n_train", "n_val", "n_test"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} must be even, half of each sentiment, got {name}={getattr(self, name)}")
        object.__setattr__(self, "embedding_noise", real("embedding_noise", self.embedding_noise, low=0.0))
        known("model", self.model, MODELS)
        known("kernel", self.kernel, KERNELS)
        known("injected_law", self.injected_law, INJECTED_LAWS)
        known("held_out", self.held_out, (*SOURCES, NONE))
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got width={self.width}")
        if self.model == "two_layer" and self.embedding_noise:
            raise ValueError(
                "embedding_noise must be 0 for the model 'two_layer', whose words are unit vectors, "
                f"got embedding_noise={self.embedding_noise}"
            )

    @property
    def tokens(self) -> int:
        """Places of a training sentence: its words, padding and the injected ones."""
        return self.length + self.injected

    @property
    def held_injected(self) -> int:
        """Random words appended to each validation and test sentence."""
        return self.injected if self.test_injected is None else self.test_injected


@dataclasses.dataclass(frozen=True)
class TextHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      sigma_0: standard deviation of the initial embedding ("attention") or of all initial weights ("two_layer"),
        finite, >= 0.
      label_noise: probability that a training label is flipped, in [0, 1]; others never are.

    Examples:
      >>> TextHyper(label_noise=0.1).sigma_0
      0.1

    References:
      All values are reconstructed.
    """

    sigma_0: Any = 0.1
    label_noise: Any = 0.0

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("sigma_0", "label_noise"):
            high = 1.0 if name == "label_noise" else float("inf")
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, high=high)


jax.tree_util.register_dataclass(TextHyper, data_fields=["sigma_0", "label_noise"], meta_fields=[])
