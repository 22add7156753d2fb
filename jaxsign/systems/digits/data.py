"""Which images are noisy digits drawn from, and how? Balanced disjoint splits, and noise in the border."""

import importlib.resources
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.systems.digits import idx
from jaxsign.systems.digits.problem import BORDER, SIDE, DigitsHyper, DigitsProblem

Array = jax.Array


class DigitImages(NamedTuple):
    """An image set, the `shared` of a run: one argument common to all runs.

    Args:
      images: (N, 28, 28) uint8 pixels, 0..255.
      labels: (N,) uint8 digits, 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


class Patches(NamedTuple):
    """Images cut into patches.

    Args:
      x: (n, tokens, patch^2) pixels of each patch, patches row by row.
      y: (n,) int32 class index, the place of the digit in `classes`.
    """

    x: Array
    y: Array


class Draw(NamedTuple):
    """The draws of the stream "data": clean images of all three splits, and the training images' noise.

    Args:
      images: (n_train + n_val + n_test, 28, 28) scaled images without noise, in this order.
      labels: (n_train + n_val + n_test,) int32 class index.
      noise: (n_train, 28, 28) border noise.
    """

    images: Array
    labels: Array
    noise: Array


class Held(NamedTuple):
    """The images that are not trained on.

    Args:
      val: Patches, for the choice of a learning rate, a step or a temperature.
      test: Patches.
    """

    val: Patches
    test: Patches


def load_digits(data_dir: str | os.PathLike | None = None, problem: DigitsProblem | None = None) -> DigitImages:
    """The image set that `js.noisy_digits` draws from: give it as `shared=`.

    Args:
      data_dir: directory of train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or gzipped (.gz): the full
        training set of 60,000 digits. None: the 10,000 of them that come with the package.
      problem: if given, checks that the set has enough images of each of its classes.

    Returns:
      DigitImages.

    Raises:
      ValueError: naming the file and what is wrong with it, or the class that has too few images.

    Examples:
      >>> load_digits().images.shape
      (10000, 28, 28)

    References:
      LeCun, Cortes and Burges, the MNIST database of handwritten digits (CC BY-SA 3.0).
    """
    if data_dir is None:
        with importlib.resources.files("jaxsign.systems.digits").joinpath("mnist_10k.npz").open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            image_set, source = DigitImages(stored["images"], stored["labels"]), "the embedded image set"
    else:
        places = [idx.find(data_dir, f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
        images, labels = map(idx.read, places)
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"{places[0]} must hold images of {SIDE} x {SIDE} pixels, got the shape {images.shape}")
        if labels.ndim != 1 or len(labels) != len(images):
            raise ValueError(
                f"{places[1]} must hold one label for each of the {len(images)} images of {places[0].name}, "
                f"got the shape {labels.shape}"
            )
        if labels.size and labels.max() > 9:
            raise ValueError(f"{places[1]} must hold labels in [0, 9], got {labels.max()}")
        image_set, source = DigitImages(images, labels), str(places[1])
    if problem is not None:
        for digit in problem.classes:
            count = int(np.sum(image_set.labels == digit))
            if count < problem.per_class:
                raise ValueError(
                    f"(n_train + n_val + n_test) / {len(problem.classes)} classes = {problem.per_class} images of the "
                    f"digit {digit} are needed, got {count} in {source}"
                )
    return image_set


def border() -> np.ndarray:
    """(28, 28) bool mask of the noisy border: rows and columns 0..4 and 23..27.

    Examples:
      >>> int(border().sum())
      460
    """
    mask = np.ones((SIDE, SIDE), bool)
    mask[BORDER:-BORDER, BORDER:-BORDER] = False
    return mask


def noise_of(key: Array, noise: Array | float, count: int, place: str = "border") -> Array:
    """Noise of images, (count, 28, 28): N(0, noise^2) in the border and 0 elsewhere, or on all of the "image"."""
    drawn = noise * jax.random.normal(key, (count, SIDE, SIDE))
    return jnp.where(jnp.asarray(border())[None], drawn, 0) if place == "border" else drawn


def choose(key: Array, labels: Array, problem: DigitsProblem) -> Array:
    """Indices of images drawn without replacement: per_class of each class, every subset equally likely.

    Args:
      key: a key.
      labels: (N,) digits of the image set.
      problem: classes and splits.

    Returns:
      (classes, per_class) int32. A class with fewer images is filled up with images of other classes, see `sample`.

    Examples:
      >>> problem = DigitsProblem(classes=(0, 1), n_train=2, n_val=2, n_test=2)
      >>> choose(jax.random.key(0), jnp.array([1, 0, 1, 0, 1, 0, 7], jnp.uint8), problem).shape
      (2, 3)
    """
    lots = jax.random.uniform(key, labels.shape)
    digits = jnp.asarray(problem.classes, labels.dtype)
    ranks = jnp.where(labels[None] == digits[:, None], lots[None], -1.0)
    return jax.lax.top_k(ranks, problem.per_class)[1]


def sample(key: Array, problem: DigitsProblem, hyper: DigitsHyper, shared: DigitImages | None) -> Draw:
    """Draws three balanced disjoint splits of the image set and the training images' noise.

        image = scale * pixels / 255,   noise ~ N(0, noise^2) in the border of width 5, or on every pixel

    Args:
      key: key of the stream "data".
      problem: classes and sizes of the splits.
      hyper: scale and noise, may be traced; draws do not depend on them, so that comparisons of scales are paired.
      shared: DigitImages.

    Returns:
      Draw, each split ordered by class. If the set has too few images of a class, the missing ones are NaN, so that
      the run's status is 1 (diverged); `load_digits(problem=...)` checks this in advance.

    Raises:
      ValueError: if there is no image set, or it has fewer images than are drawn.

    References:
      Reconstructed after the noisy digits of arXiv 2410.04870.
    """
    if not isinstance(shared, DigitImages):
        raise ValueError(f"noisy digits need shared=js.load_digits(), got shared={shared!r}")
    if shared.labels.shape[0] < problem.per_class:
        raise ValueError(f"{problem.per_class} images of each class are needed, got {shared.labels.shape[0]} in all")
    places, noise = jax.random.split(key)
    images, labels = jnp.asarray(shared.images), jnp.asarray(shared.labels)
    chosen = choose(places, labels, problem)
    count = len(problem.classes)
    ends = np.cumsum([size // count for size in (problem.n_train, problem.n_val, problem.n_test)])
    splits = jnp.split(chosen, ends[:-1].tolist(), axis=1)
    order = jnp.concatenate([split.reshape(-1) for split in splits])
    classes = jnp.concatenate([jnp.repeat(jnp.arange(count, dtype=jnp.int32), split.shape[1]) for split in splits])
    right = labels[order] == jnp.asarray(problem.classes, labels.dtype)[classes]
    pixels = images[order].astype(jnp.zeros(()).dtype) / 255
    pixels = jnp.where(right[:, None, None], hyper.scale * pixels, jnp.nan)
    return Draw(pixels, classes, noise_of(noise, hyper.noise, problem.n_train, problem.noise_on))


def cut(images: Array, patch: int) -> Array:
    """Images as patches, (n, 28, 28) -> (n, (28/patch)^2, patch^2), row by row.

    Examples:
      >>> cut(jnp.arange(784.0).reshape(1, 28, 28), 14)[0, 1, :2].tolist()
      [14.0, 15.0]
    """
    grid = SIDE // patch
    blocks = images.reshape(-1, grid, patch, grid, patch).swapaxes(2, 3)
    return blocks.reshape(-1, grid * grid, patch * patch)


def splits(draw: Draw, noise: Array, problem: DigitsProblem) -> tuple[Patches, Held]:
    """Adds the noise and cuts the images: (training set, validation and test set).

    Args:
      draw: the draws of the stream "data".
      noise: (n_val + n_test, 28, 28) noise of the stream "test".
      problem: sizes of the splits.
    """
    noisy = cut(draw.images + jnp.concatenate([draw.noise, noise]), problem.patch)
    ends = [problem.n_train, problem.n_train + problem.n_val]
    train, val, test = map(Patches, jnp.split(noisy, ends), jnp.split(draw.labels, ends))
    return train, Held(val, test)
