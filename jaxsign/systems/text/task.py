"""Noisy text as a Task: which loss is trained, and what is measured on the validation and test sentences?"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems import system
from jaxsign.systems.text import data as data_of
from jaxsign.systems.text import models
from jaxsign.systems.text.corpus import Sentences
from jaxsign.systems.text.data import Draw, Fresh, Texts
from jaxsign.systems.text.problem import TextHyper, TextProblem
from jaxsign.training.task import Task
from jaxsign.validation.values import instance

Array = jax.Array
ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "nat"},
    "train_error": {"long_name": "training error, observed labels", "units": "1"},
    "val_loss": {"long_name": "validation loss", "units": "nat"},
    "val_error": {"long_name": "validation error", "units": "1"},
    "test_loss": {"long_name": "test loss", "units": "nat"},
    "test_error": {"long_name": "test error", "units": "1"},
    "clean_attention": {"long_name": "attention on a training sentence's own tokens", "units": "1"},
    "injected_attention": {"long_name": "attention on the tokens injected into a training sentence", "units": "1"},
    "test_injected_attention": {"long_name": "attention on the tokens injected into a test sentence", "units": "1"},
    "injected_share": {"long_name": "injected share of a training sentence's tokens", "units": "1"},
    "words_known": {"long_name": "words in the vocabulary", "units": "1"},
    "unknown_share": {"long_name": "share of the test sentences' own tokens that are unknown", "units": "1"},
}


class Trained(NamedTuple):
    """What is trained on.

    Args:
      texts: Texts of the training sentences.
      noise: (n_train, length, width) noise on their embedded words, or None.
    """

    texts: Texts
    noise: Array | None


class Held(NamedTuple):
    """The sentences that are not trained on.

    Args:
      texts: Texts of the validation sentences, then those of the test sentences.
      key: key of the noise on their embedded words.
    """

    texts: Texts
    key: Array


def _loss_and_error(split: str, margins: Array) -> dict[str, Array]:
    """{"SPLIT_loss": (), "SPLIT_error": ()}; a margin that is not > 0 is an error."""
    return {f"{split}_loss": jnp.mean(jax.nn.softplus(-margins)), f"{split}_error": jnp.mean(~(margins > 0))}


@system(TextProblem, TextHyper)
@functools.cache
def noisy_text(problem: TextProblem) -> Task:
    """Sentiment of real sentences with noise injected: one layer of attention, or the paper's model.

        L = mean_i log(1 + exp(-y_i F(x_i))),   x_i = a sentence's first words and K random words of the vocabulary

    Three kinds of noise: K injected words a sentence, fresh for each training, validation and test sentence (with
    `test_injected` another number of them in validation and test sentences); normal
    noise on embedded words, likewise; flipped training labels. The three splits are disjoint in every run and hold as
    many positive as negative sentences. The vocabulary is that of the run's own training split. A run needs
    `shared=js.load_text(None, problem)`. Steps are full-batch.

    Args:
      problem: a TextProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no TextProblem.

    Examples:
      >>> import jaxsign as js
      >>> problem = js.TextProblem(n_train=20, n_val=10, n_test=10, length=8, vocabulary=50, injected=4, width=4)
      >>> run = js.train(
      ...     jax.random.key(0), noisy_text(problem), js.TextHyper(), js.sign_gd(1e-2), steps=20, record=10,
      ...     shared=js.load_text(None, problem),
      ... )
      >>> run.trace["injected_attention"].shape
      (3,)

    References:
      The question of arXiv 2410.04870 on real data; model, data and sizes are reconstructed.
    """
    instance("problem", problem, TextProblem)

    def sample(key: Array, hyper: TextHyper, shared: Sentences | None = None) -> Draw:
        return data_of.sample(key, problem, hyper, shared)

    def sample_test(key: Array, hyper: TextHyper, shared: Any = None) -> Fresh:
        del hyper, shared
        lots, noise = jax.random.split(key)
        return Fresh(jax.random.uniform(lots, (problem.n_val + problem.n_test, problem.held_injected)), noise)

    def init(key: Array, data: Draw, hyper: TextHyper) -> Any:
        del data
        return models.init(key, problem, hyper)

    def prepare(data: Draw, test: Fresh | None, params: Any, hyper: Any, degree: Any) -> tuple[Any, Any, Any]:
        del hyper, degree
        trained = Trained(data.train, data.noise)
        if test is None:
            return trained, None, params
        own = data.train.tokens[:, : problem.length]
        return trained, Held(data_of.inject(data.held, test.lots, data.known, own, problem), test.key), params

    def loss(params: Any, batch: Trained, hyper: TextHyper) -> Array:
        del hyper
        logits, _ = models.attend(params, batch.texts, batch.noise, problem)
        return jnp.mean(jax.nn.softplus(-batch.texts.y * logits))

    def observe(params: Any, data: Trained, test: Held | None, hyper: TextHyper) -> dict[str, Array]:
        del hyper
        logits, r = models.attend(params, data.texts, data.noise, problem)
        clean, injected = models.attention_mass(r, problem.injected)
        observables = _loss_and_error("train", data.texts.y * logits)
        observables |= {"clean_attention": clean, "injected_attention": injected}
        if test is None:
            return observables
        # Validation and test sentences in one pass: each pass costs every program some seconds to compile.
        noise = data_of.embedding_noise(test.key, problem, test.texts.y.size)
        logits, r = models.attend(params, test.texts, noise, problem)
        val, tested = jnp.split(test.texts.y * logits, [problem.n_val])
        mass = models.attention_mass(r[:, problem.n_val :], problem.held_injected)[1]
        return {
            **observables,
            **_loss_and_error("val", val),
            **_loss_and_error("test", tested),
            "test_injected_attention": mass,
        }

    def describe(data: Draw, test: Any, hyper: TextHyper) -> dict[str, Array]:
        del test, hyper
        own = jnp.sum(data.train.mask, axis=1) - problem.injected
        tested = data.held.mask[problem.n_val :]
        unknown = tested & (data.held.tokens[problem.n_val :] == 0)
        return {
            "injected_share": jnp.mean(problem.injected / (own + problem.injected)),
            "words_known": data.known,
            "unknown_share": jnp.sum(unknown) / jnp.sum(tested),
        }

    return Task(
        sample=sample, sample_test=sample_test, init=init, prepare=prepare, loss=loss, observe=observe,
        describe=describe, validate=lambda hyper: instance("hyper", hyper, TextHyper).validate(), attrs=ATTRS,
        problem=problem, name="noisy_text",
    )  # fmt: skip
