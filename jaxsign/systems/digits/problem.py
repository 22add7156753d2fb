"""Which numbers fix noisy digits, what does each mean, and which values are legal?"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsign.validation.values import known, positive_int, real

MODELS = ("two_layer", "vit")
#: Side of an image, and width of the border that carries the noise.
SIDE, BORDER = 28, 5
#: Where noise may be.
PLACES = ("border", "image")


@dataclasses.dataclass(frozen=True)
class DigitsProblem:
    """Everything that fixes the shapes of noisy digits and of the model that reads them. Frozen and hashable.

    Args:
      classes: the digits to classify, two to ten different ints in [0, 9].
      n_train: training images, a multiple of the number of classes, so that every split is balanced.
      n_val: validation images, likewise.
      n_test: test images, likewise.
      model: "two_layer", the paper's attention model on the patches of an image with one value matrix per class;
        "vit", a vision transformer of one layer.
      patch: side of a square patch, a divisor of 28.
      width: rows of W_Q and W_K over all heads ("two_layer", and rows of each W_V), or the width of a token ("vit"); a
        multiple of heads.
      heads: attention heads, int >= 1.
      hidden: width of the multilayer perceptron of "vit", int >= 1.
      test_noise: standard deviation of the noise of validation and test images, finite, >= 0, or None: that of training
        images, `DigitsHyper.noise`.
      noise_on: pixels with noise: "border", of width 5, or "image", all of them.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> DigitsProblem(classes=(0, 1), patch=7).tokens
      16

    References:
      arXiv 2410.04870 for the two-layer model and the noisy digits; all sizes are reconstructed.
    """

    classes: tuple[int, ...] = (3, 7)
    n_train: int = 50
    n_val: int = 100
    n_test: int = 300
    model: str = "vit"
    patch: int = 7
    width: int = 16
    heads: int = 2
    hidden: int = 32
    test_noise: float | None = dataclasses.field(default=None, metadata={"added": True})
    noise_on: str = dataclasses.field(default="border", metadata={"added": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", _classes(self.classes))
        for name in ("n_train", "n_val", "n_test", "patch", "width", "heads", "hidden"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        for name in ("n_train", "n_val", "n_test"):
            if getattr(self, name) % len(self.classes):
                raise ValueError(
                    f"{name} must be a multiple of the {len(self.classes)} classes, got {name}={getattr(self, name)}"
                )
        if self.test_noise is not None:
            object.__setattr__(self, "test_noise", real("test_noise", self.test_noise, low=0.0))
        known("model", self.model, MODELS)
        known("noise_on", self.noise_on, PLACES)
        if SIDE % self.patch:
            raise ValueError(f"patch must divide {SIDE}: 1, 2, 4, 7, 14 or {SIDE}, got patch={self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got width={self.width}")

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (SIDE // self.patch) ** 2

    @property
    def per_class(self) -> int:
        """Images of each class that a run draws for its three splits."""
        return (self.n_train + self.n_val + self.n_test) // len(self.classes)


def _classes(given: Any) -> tuple[int, ...]:
    """The classes as a tuple of plain ints.

    Raises:
      ValueError: unless they are two to ten different digits.
    """
    legal = f"classes must be a tuple of 2 to 10 different ints in [0, 9], got classes={given!r}"
    if isinstance(given, str) or not np.iterable(given):
        raise ValueError(legal)
    try:
        classes = tuple(positive_int("class", one, minimum=0) for one in given)
    except ValueError:
        raise ValueError(legal) from None
    if not 2 <= len(classes) <= 10 or len(set(classes)) < len(classes) or max(classes) > 9:
        raise ValueError(legal)
    return classes


@dataclasses.dataclass(frozen=True)
class DigitsHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      scale: factor of every image, finite, > 0. The source calls it SNR, but it is no ratio of norms; see the constants
        `image_norm` and `noise_norm` of a run.
      noise: standard deviation of the noise of a pixel that has some, finite, >= 0; of training images alone where the
        problem has `test_noise`.
      sigma_0: standard deviation of the initial weights of the two-layer model, and of the queries and keys of "vit",
        finite, >= 0: small, so that attention begins almost uniform.

    Examples:
      >>> DigitsHyper(scale=0.5).noise
      1.0

    References:
      arXiv 2410.04870, noisy digits; sigma_0 is reconstructed.
    """

    scale: Any = 1.0
    noise: Any = 1.0
    sigma_0: Any = 0.01

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("scale", "noise", "sigma_0"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name == "scale")


jax.tree_util.register_dataclass(DigitsHyper, data_fields=["scale", "noise", "sigma_0"], meta_fields=[])
