"""Noisy digits as a Task: which loss is trained, and what is measured on the validation and test images?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems import system
from jaxsign.systems.digits import calibration, models
from jaxsign.systems.digits import data as data_of
from jaxsign.systems.digits.data import DigitImages, Draw, Held, Patches
from jaxsign.systems.digits.problem import DigitsHyper, DigitsProblem
from jaxsign.training.task import Task
from jaxsign.validation.values import instance

Array = jax.Array
ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "nat"},
    "train_error": {"long_name": "training error", "units": "1"},
    "val_loss": {"long_name": "validation loss", "units": "nat"},
    "val_error": {"long_name": "validation error", "units": "1"},
    "test_loss": {"long_name": "test loss", "units": "nat"},
    "test_error": {"long_name": "test error", "units": "1"},
    "calibrated_loss": {"long_name": "test loss after one fitted temperature", "units": "nat"},
    "temperature": {"long_name": "temperature fitted on the validation split", "units": "1"},
    "test_margin": {"long_name": "mean test margin", "units": "1"},
    "test_margin_std": {"long_name": "standard deviation of the test margins", "units": "1"},
    "image_norm": {"long_name": "mean norm of a scaled training image", "units": "1"},
    "noise_norm": {"long_name": "mean norm of its noise", "units": "1"},
    "class_mean_error": {"long_name": "test error of the nearest class mean", "units": "1"},
    "sign_step_error": {"long_name": "law of the test error after one step of SignGD", "units": "1"},
    "gd_step_error": {"long_name": "law of the test error after one step of GD", "units": "1"},
}


def _loss_and_error(split: str, logits: Array, y: Array) -> tuple[dict[str, Array], Array]:
    """({"SPLIT_loss": (), "SPLIT_error": ()}, margins (n,)) of a split."""
    margins = calibration.margins(logits, y)
    loss = calibration.cross_entropy(logits, y)
    return {f"{split}_loss": loss, f"{split}_error": jnp.mean(margins <= 0)}, margins


@system(DigitsProblem, DigitsHyper)
@functools.cache
def noisy_digits(problem: DigitsProblem) -> Task:
    """A small transformer on real digits whose border is full of noise.

        x = scale * image + noise in the border of width 5, or on every pixel,
        L = mean_i -log softmax(F(x_i))_{y_i}

    Training, validation and test images are disjoint in every run, and the same images are drawn at every scale. The
    observable `calibrated_loss` is the test loss of F/T, with the temperature T that fits the validation images best.
    It separates the effect of errors on the test loss from the effect of the scale of margins. For reference, the
    constant `class_mean_error` is the error of the nearest class mean on the same draws, and with two classes
    `sign_step_error` and `gd_step_error` are the first-step law of both optimizers (`models.one_step_margins`), which
    neglects that images of a class differ, and is NaN with noise on every pixel. A run needs `shared=js.load_digits()`.
    Steps are full-batch.

    Args:
      problem: a DigitsProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no DigitsProblem.

    Examples:
      >>> import jaxsign as js
      >>> problem = js.DigitsProblem(classes=(0, 1), n_train=8, n_val=8, n_test=8, model="two_layer")
      >>> run = js.train(
      ...     jax.random.key(0), noisy_digits(problem), js.DigitsHyper(scale=2.0), js.sign_gd(1e-3), steps=20,
      ...     record=10, shared=js.load_digits(),
      ... )
      >>> run.trace["calibrated_loss"].shape
      (3,)

    References:
      Reconstructed after the noisy digits of arXiv 2410.04870.
    """
    instance("problem", problem, DigitsProblem)

    def logits(params: Any, x: Array) -> Array:
        if problem.model == "vit":
            return models.vit_logits(params, x, problem)
        return models.two_layer_logits(params, x, problem.heads)

    def sample(key: Array, hyper: DigitsHyper, shared: DigitImages | None = None) -> Draw:
        return data_of.sample(key, problem, hyper, shared)

    def sample_test(key: Array, hyper: DigitsHyper, shared: Any = None) -> Array:
        del shared
        size = hyper.noise if problem.test_noise is None else problem.test_noise
        return data_of.noise_of(key, size, problem.n_val + problem.n_test, problem.noise_on)

    def init(key: Array, data: Draw, hyper: DigitsHyper) -> Any:
        del data
        return (models.init_vit if problem.model == "vit" else models.init_two_layer)(key, problem, hyper)

    def prepare(data: Draw, test: Any, params: Any, hyper: Any, degree: Any) -> tuple[Patches, Held, Any]:
        del hyper, degree
        return (*data_of.splits(data, test, problem), params)

    def loss(params: Any, batch: Patches, hyper: DigitsHyper) -> Array:
        del hyper
        return calibration.cross_entropy(logits(params, batch.x), batch.y)

    def observe(params: Any, data: Patches, test: Held | None, hyper: DigitsHyper) -> dict[str, Array]:
        del hyper
        observables, _ = _loss_and_error("train", logits(params, data.x), data.y)
        if test is None:
            return observables
        validation, held = logits(params, test.val.x), logits(params, test.test.x)
        temperature = calibration.temperature(validation, test.val.y)
        of_test, margins = _loss_and_error("test", held, test.test.y)
        return {
            **observables,
            **_loss_and_error("val", validation, test.val.y)[0],
            **of_test,
            "temperature": temperature,
            "calibrated_loss": calibration.cross_entropy(held / temperature, test.test.y),
            "test_margin": jnp.mean(margins),
            "test_margin_std": jnp.std(margins),
        }

    def describe(data: Draw, test: Any, hyper: DigitsHyper) -> dict[str, Array]:
        images = data.images[: problem.n_train]
        norms = {
            name: jnp.mean(jnp.linalg.norm(one.reshape(problem.n_train, -1), axis=1))
            for name, one in (("image_norm", images), ("noise_norm", data.noise))
        }
        train, held = data_of.splits(data, test, problem)
        scores = models.class_mean_scores(train, held.test.x, len(problem.classes))
        constants = norms | {"class_mean_error": jnp.mean(calibration.margins(scores, held.test.y) <= 0)}
        if len(problem.classes) == 2:
            margins = models.one_step_margins(images, data.labels[: problem.n_train], data.noise)
            if problem.test_noise is not None:  # both laws divide by the noise of test images
                margins = tuple(margin * hyper.noise / problem.test_noise for margin in margins)
            errors = [jax.scipy.stats.norm.cdf(-margin) for margin in margins]
            if problem.noise_on == "image":  # the law is of noise outside the digits
                errors = [jnp.full_like(error, jnp.nan) for error in errors]
            constants |= dict(zip(("sign_step_error", "gd_step_error"), errors))
        return constants

    return Task(
        sample=sample,
        sample_test=sample_test,
        init=init,
        prepare=prepare,
        loss=loss,
        observe=observe,
        describe=describe,
        validate=lambda hyper: instance("hyper", hyper, DigitsHyper).validate(),
        attrs=ATTRS,
        problem=problem,
        name="noisy_digits",
    )
