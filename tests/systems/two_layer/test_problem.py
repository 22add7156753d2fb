"""Problem, Hyper, presets and keys: legal ranges, messages, equality, derived axes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.training.rng import seed_key, seed_words

GOOD = {"n": 6, "d": 60, "s": 5, "m_k": 4, "m_v": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"s": 60}, ["s=60", "[1, d-1] = [1, 59]"]),
        ({"s": 0}, ["s=0", "int >= 1"]),
        ({"n": 12, "supports": "disjoint"}, ["n*(context-1)*s=60", "<= d-1 = 59"]),
        ({"context": 3, "supports": "disjoint"}, ["n*(context-1)*s=60", "<= d-1 = 59"]),
        ({"n": 11, "overlap": "none"}, ["overlap", "<= d-1 = 59", "got 60"]),
        ({"d": 1}, ["d=1", "int >= 2"]),
        ({"context": 1}, ["context=1", "int >= 2"]),
        ({"supports": "disjont"}, ["supports", "'disjont'", "did you mean 'disjoint'", "'independent'"]),
        ({"supports": None}, ["supports", "None", "'independent', 'disjoint'"]),
        ({"overlap": "nonne"}, ["overlap", "'nonne'", "did you mean 'none'", "'exact'"]),
        ({"kernel": "gauss"}, ["kernel", "'gauss'", "did you mean 'gaussian'", "'softmax'"]),
    ],
)
def test_bad_problem_names_field_value_and_range(change, words):
    with pytest.raises(ValueError) as caught:
        js.Problem(**GOOD | change)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("field", ["n", "d", "s", "m_k", "m_v", "heads", "context", "n_test"])
@pytest.mark.parametrize("value", [0, -3, 4.0, 2.5, math.nan, True, np.True_, "4", None, [4]], ids=repr)
def test_counts_are_positive_ints(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be an int >= \d, got {field}="):
        js.Problem(**GOOD | {field: value})


def test_the_largest_legal_sizes_are_legal():
    js.Problem(**GOOD | {"s": 59})
    js.Problem(**GOOD | {"n": 11, "supports": "disjoint"})
    js.Problem(**GOOD | {"n": 10, "supports": "disjoint", "overlap": "none"})


def test_equal_problems_are_one_key_and_one_task():
    plain, numpy = js.Problem(**GOOD), js.Problem(**{name: np.int64(value) for name, value in GOOD.items()})
    assert plain == numpy
    assert hash(plain) == hash(numpy)
    assert type(numpy.n) is int
    assert js.two_layer(plain) is js.two_layer(numpy, engine="dense", overlap="exact")
    assert js.two_layer(plain, overlap="none") is js.two_layer(dataclasses.replace(plain, overlap="none"))
    assert js.two_layer(plain) is not js.two_layer(plain, overlap="none")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.n = 7


def test_bad_engine_and_overlap():
    problem = js.Problem(**GOOD)
    with pytest.raises(ValueError, match="unknown engine 'dens'; did you mean 'dense'"):
        js.two_layer(problem, engine="dens")
    with pytest.raises(ValueError, match="unknown overlap 'exat'; did you mean 'exact'"):
        js.two_layer(problem, overlap="exat")
    with pytest.raises(ValueError, match=r'overlap="none" needs .* <= d-1 = 59 .* got 60'):
        js.two_layer(dataclasses.replace(problem, n=11), overlap="none")


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("sigma_p", -0.5, "[0, inf)"),
        ("sigma_p", math.nan, "[0, inf)"),
        ("sigma_p", math.inf, "[0, inf)"),
        ("sigma_p", np.array([1.0, 2.0, -0.5]), "[0, inf)"),
        ("sigma_p", "2", "[0, inf)"),
        ("sigma_p", None, "[0, inf)"),
        ("sigma_p", True, "[0, inf)"),
        ("mu", 0.0, "(0, inf)"),
        ("mu", -1.0, "(0, inf)"),
        ("sigma_0", -1e-3, "[0, inf)"),
        ("sigma_0", math.nan, "[0, inf)"),
        ("alpha", math.inf, "(-inf, inf)"),
        ("label_noise", 1.5, "[0, 1]"),
        ("label_noise", -0.1, "[0, 1]"),
        ("residual", math.inf, "(-inf, inf)"),
    ],
)
def test_bad_hyper_names_field_value_and_range(problem, field, value, legal):
    hyper = dataclasses.replace(js.Hyper(sigma_p=1.0), **{field: value})  # nothing is checked when built
    with pytest.raises(ValueError) as caught:
        hyper.validate(problem)
    shown = value[-1] if isinstance(value, np.ndarray) else value
    assert f"{field} must be a finite number in {legal}, got {field}=" in str(caught.value)
    assert f"{shown}" in str(caught.value)


def test_hyper_is_a_pytree_of_its_numbers(problem):
    hyper = js.Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3, alpha=0.5, label_noise=0.1, residual=0.3)
    hyper.validate(problem)
    assert jax.tree.leaves(hyper) == [2.0, 1.0, 3e-3, 0.5, 0.1, 0.3]

    @jax.jit
    def noise_to_signal(hyper):
        return hyper.with_axis(problem, "snr", hyper.alpha).sigma_p

    many = jax.tree.map(lambda leaf: jnp.full(2, leaf), hyper)
    np.testing.assert_allclose(jax.vmap(noise_to_signal)(many), 1.0 / (0.5 * math.sqrt(5)), rtol=1e-6)


def test_snr_both_ways(problem):
    def snr(hyper):
        return hyper.mu / (hyper.sigma_p * math.sqrt(problem.s))

    base = js.Hyper(sigma_p=9.0, mu=1.5)
    derived = base.with_axis(problem, "snr", 0.3)
    assert derived.mu == 1.5
    assert snr(derived) == pytest.approx(0.3)
    assert base.sigma_p == 9.0
    assert base.with_axis(problem, "mu", 2.0) == js.Hyper(sigma_p=9.0, mu=2.0)
    by_noise = js.Hyper.from_snr(problem, 0.3, sigma_0=0.1)
    by_signal = js.Hyper.from_snr(problem, 0.3, vary="mu", sigma_p=4.0)
    assert (by_noise.mu, by_noise.sigma_0, by_signal.sigma_p) == (1.0, 0.1, 4.0)
    assert snr(by_noise) == pytest.approx(0.3)
    assert snr(by_signal) == pytest.approx(0.3)


def test_bad_axes_and_snr(problem):
    hyper = js.Hyper(sigma_p=1.0)
    with pytest.raises(ValueError, match=r"unknown axis 'sigmap'; did you mean 'sigma_p'.*'snr'"):
        hyper.with_axis(problem, "sigmap", 1.0)
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"snr must be a finite number in \(0, inf\), got snr="):
            hyper.with_axis(problem, "snr", value)
        with pytest.raises(ValueError, match=r"snr must be a finite number in \(0, inf\), got snr="):
            js.Hyper.from_snr(problem, value)
    with pytest.raises(ValueError, match="unknown vary 'sigma'; did you mean 'sigma_p'"):
        js.Hyper.from_snr(problem, 1.0, vary="sigma")
    with pytest.raises(ValueError, match="sigma_p is computed from snr; give vary='mu'"):
        js.Hyper.from_snr(problem, 1.0, sigma_p=2.0)
    with pytest.raises(ValueError, match="needs sigma_p"):
        js.Hyper.from_snr(problem, 1.0, vary="mu")
    with pytest.raises(ValueError, match="unknown Hyper field 'sigma0'; did you mean 'sigma_0'"):
        js.Hyper.from_snr(problem, 1.0, sigma0=2.0)


def test_presets_are_the_two_settings():
    sizes = {"n": 20, "d": 2000, "s": 40, "m_k": 20, "m_v": 20, "heads": 1, "context": 2}
    paper, hyper = js.presets.paper_like()
    limit, same = js.presets.disjoint()
    assert hyper == same == js.Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3, alpha=0.0, label_noise=0.0)
    for problem, supports, overlap in ((paper, "independent", "exact"), (limit, "disjoint", "none")):
        assert (problem.supports, problem.overlap) == (supports, overlap)
        assert {name: getattr(problem, name) for name in sizes} == sizes


def test_streams_are_folded_in_by_number():
    key = jax.random.key(3, impl="threefry2x32")
    assert jnp.all(jax.random.key_data(seed_key(3)) == jax.random.key_data(key))
    for seed in (0, 3, 2**31 - 1, 2**31, 2**32 - 1):  # the words are made without a device
        assert np.array_equal(seed_words(seed), jax.random.key_data(seed_key(seed)))
    for number, name in enumerate(["data", "init", "train", "test"]):
        expected = jax.random.fold_in(key, number)
        assert jnp.all(jax.random.key_data(js.stream(key, name)) == jax.random.key_data(expected))
    with pytest.raises(ValueError, match="unknown stream 'tests'; did you mean 'test'"):
        js.stream(key, "tests")
    for seed in (-1, 2**32, 1.0, True):
        with pytest.raises(ValueError, match=rf"^seed must be an int.*seed={seed}"):
            seed_key(seed)
