"""The sampler against its definition: supports, laws of the draws, slots, pairing, and what it never allocates."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsign as js
from jaxsign import theory
from jaxsign.systems.two_layer import data as signal_noise

ALARM = 1e-3  # seeds are fixed: a p-value below this is a wrong law, not bad luck


@functools.cache
def sampler(problem, test=False):
    """`(key, hyper)` -> data or test set, compiled once a problem."""
    draw = signal_noise.sample_test if test else signal_noise.sample
    program = jax.jit(lambda key, hyper: draw(key, problem, hyper))
    return lambda key, hyper: program(key, jax.tree.map(jnp.float32, hyper))


@pytest.fixture(scope="module")
def many():
    """4000 examples with context 4: (problem, hyper, data)."""
    problem = js.Problem(n=4000, d=21, s=3, m_k=1, m_v=1, context=4)
    hyper = js.Hyper(sigma_p=2.5, mu=1.5, alpha=0.4, label_noise=0.3)
    return problem, hyper, sampler(problem)(jax.random.key(5), hyper)


def test_examples_follow_their_laws(many):
    problem, hyper, data = many
    data = jax.device_get(data)
    support, patches = np.asarray(data.support), np.asarray(data.patches)
    assert support.min() == 1
    assert support.max() == problem.d - 1
    assert all(len(set(row)) == problem.s for row in support.reshape(-1, problem.s))
    values = np.take_along_axis(patches, support, -1)
    assert stats.kstest(values.ravel() / hyper.sigma_p, "norm").pvalue > ALARM
    assert np.count_nonzero(patches[..., 1:]) == support.size  # nothing off the support

    fair = stats.binomtest
    assert fair(int((data.y_clean > 0).sum()), problem.n, 0.5).pvalue > ALARM
    assert fair(int((data.y != data.y_clean).sum()), problem.n, hyper.label_noise).pvalue > ALARM
    assert stats.chisquare(np.bincount(data.signal_slot, minlength=4)).pvalue > ALARM
    table = np.zeros((2, 2, 4))
    for place in zip(data.y > 0, data.y != data.y_clean, data.signal_slot):
        table[tuple(map(int, place))] += 1
    for pair in (table.sum(0), table.sum(1), table.sum(2)):  # label, flip and slot are independent
        assert stats.chi2_contingency(pair).pvalue > ALARM
    # Noise is orthogonal to the signal but for the feature noise, which carries the clean label.
    expected = -hyper.alpha * hyper.mu * np.asarray(data.y_clean)[:, None] * np.ones(problem.patches)
    np.testing.assert_allclose(patches[..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("context", [2, 4])
def test_inputs_hold_the_signal_in_its_slot_and_the_noise_in_order(many, problem, hyper, oracle, context):
    data = many[2] if context == 4 else sampler(problem)(jax.random.key(0), hyper)
    np.testing.assert_array_equal(data.x[:200], oracle.inputs(data)[:200])
    noise = data.patches
    np.testing.assert_array_equal(data.xi, noise if context == 4 else noise[:, 0])


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_label_noise_at_its_ends(problem, rate):
    data = sampler(problem)(jax.random.key(1), js.Hyper(sigma_p=1.0, label_noise=rate))
    np.testing.assert_array_equal(data.y, (1 - 2 * rate) * data.y_clean)


@pytest.mark.parametrize("s", [1, 3])
def test_every_subset_is_equally_likely(s):
    keys, sizes = jax.random.split(jax.random.key(2), 6000), [s, s + 1, s + 4]
    subsets = jax.jit(lambda k, size: signal_noise.subsets(k, size, s))  # one compile a traced size
    for size in sizes:
        sets, counts = np.unique(np.sort(subsets(keys, size), axis=1), axis=0, return_counts=True)
        assert [tuple(row) for row in sets] == list(itertools.combinations(range(size), s))
        assert s == size or stats.chisquare(counts).pvalue > ALARM


def test_large_subsets_cover_their_range_evenly_and_accept_a_traced_size():
    sizes, s, count = np.array([40, 97, 300]), 40, 1500
    keys = jax.random.split(jax.random.key(3), count)
    draws = jax.jit(jax.vmap(lambda k, size: signal_noise.subsets(k, size, s), (None, 0)))(keys, sizes)
    for size, rows in zip(sizes, np.asarray(draws)):
        assert all(len(set(row)) == s for row in rows)
        share = s / size
        hits = np.bincount(rows.ravel(), minlength=size)
        assert hits.size == size
        if size > s:  # inclusion counts: chi-square with the variance of drawing without replacement
            statistic = np.sum((hits - count * share) ** 2) / (count * share * (1 - share)) * (size - 1) / size
            assert ALARM < stats.chi2.sf(statistic, size - 1) < 1 - ALARM


def test_draws_are_paired_across_numbers(problem, hyper):
    draw = functools.partial(sampler(problem), jax.random.key(4))
    base = draw(hyper)
    for factor in (0.25, 4.0, 1.7):
        other = draw(dataclasses.replace(hyper, sigma_p=factor * hyper.sigma_p, mu=factor))
        np.testing.assert_allclose(other.xi, factor * base.xi, rtol=0 if factor != 1.7 else 1e-6)
        for name in ("support", "y", "y_clean", "signal_slot"):
            np.testing.assert_array_equal(getattr(other, name), getattr(base, name))
    flipped = draw(dataclasses.replace(hyper, label_noise=0.5))
    more = draw(dataclasses.replace(hyper, label_noise=0.9))
    assert np.all((flipped.y == base.y) | (more.y != base.y))  # a larger rate flips the same labels and others
    np.testing.assert_array_equal(flipped.basis, base.basis)


def test_seeds_differ(problem, hyper):
    one, other = (jax.device_get(sampler(problem)(jax.random.key(seed), hyper)) for seed in (4, 5))
    assert not np.array_equal(one.support, other.support)
    assert np.intersect1d(one.xi, other.xi).tolist() == [0.0]
    assert len(np.unique(np.asarray(one.support)[:, 0], axis=0)) == 6  # and so do examples


def test_mapping_over_numbers_is_a_loop_and_the_first_examples_do_not_depend_on_n(problem):
    sigmas, rates, more = [0.5, 1.0, 3.0], [0.0, 0.5, 1.0], dataclasses.replace(problem, n=12)

    def draw(sigma_p, rate):
        return signal_noise.sample(jax.random.key(6), more, js.Hyper(sigma_p, alpha=rate, label_noise=rate))

    mapped = jax.jit(jax.vmap(draw))(jnp.array(sigmas), jnp.array(rates))
    for i, (sigma_p, rate) in enumerate(zip(sigmas, rates)):
        single = sampler(problem)(jax.random.key(6), js.Hyper(sigma_p, alpha=rate, label_noise=rate))
        np.testing.assert_allclose(mapped.basis[i, :7], single.basis, rtol=1e-6)
        for name in ("support", "y", "y_clean", "signal_slot"):
            np.testing.assert_array_equal(getattr(mapped, name)[i, :6], getattr(single, name))


def test_fresh_noise_overlaps_training_as_the_data_law_says():
    problem = js.Problem(n=5, d=101, s=10, m_k=1, m_v=1, n_test=3000)
    hyper = js.Hyper(sigma_p=2.5, mu=1.5)
    test = jax.device_get(sampler(problem, test=True)(jax.random.key(0), hyper))
    indices = np.asarray(test.indices)[:, 0]
    assert indices.min() == 1
    assert indices.max() == 100
    assert all(len(set(row)) == 10 for row in indices)
    assert stats.kstest(np.ravel(test.values) / hyper.sigma_p, "norm").pvalue > ALARM
    assert stats.binomtest(int((test.y > 0).sum()), 3000, 0.5).pvalue > ALARM
    # Share of fresh coordinates in fresh training supports, averaged over groups of five test patches.
    groups = indices.reshape(-1, 6, 10)
    shares = [np.isin(group[0], group[1:]).mean() for group in groups]
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - theory.overlap_share(problem)) < 4 * error
    with_other_numbers = sampler(problem, test=True)(jax.random.key(0), js.Hyper(sigma_p=10.0, mu=0.5))
    np.testing.assert_array_equal(with_other_numbers.values, 4 * test.values)
    np.testing.assert_array_equal(with_other_numbers.indices, test.indices)


def test_disjoint_supports_share_nothing_and_fresh_ones_are_uniform_over_the_rest(problem, hyper):
    sizes = dataclasses.replace(problem, supports="disjoint", overlap="none", n_test=2000)
    task, key = js.two_layer(sizes), jax.random.key(0)
    data, test = jax.jit(lambda h: (task.sample(key, h, None), task.sample_test(key, h, None)))(hyper)
    used, fresh = np.ravel(data.support).tolist(), np.asarray(signal_noise.assign_coordinates(test, data).indices)[:, 0]
    free = sorted(set(range(1, 60)) - set(used))
    assert len(used) == 6 * 5
    assert len(free) == 59 - 6 * 5
    assert all(len(set(row)) == 5 for row in fresh)
    assert set(np.ravel(fresh)) == set(free)
    share, hits = 5 / len(free), np.bincount(fresh.ravel())[free]
    statistic = np.sum((hits - 2000 * share) ** 2) / (2000 * share * (1 - share)) * (len(free) - 1) / len(free)
    assert ALARM < stats.chi2.sf(statistic, len(free) - 1) < 1 - ALARM


def _sizes(jaxpr):
    """Sizes of all values inside a jaxpr."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield int(np.prod(getattr(variable.aval, "shape", ())))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@pytest.mark.parametrize("overlap", ["exact", "none"])
def test_no_array_of_test_examples_times_dimensions(oracle, overlap):
    problem = js.Problem(n=4, d=5000, s=3, m_k=2, m_v=2, n_test=400, overlap=overlap)
    task, hyper, key = js.two_layer(problem), js.Hyper(sigma_p=1.0), jax.random.key(0)
    params, data, test = oracle.draw(problem, 0)
    drawn = jax.make_jaxpr(lambda k: task.sample_test(k, hyper, None))(key)
    assert max(_sizes(drawn.jaxpr)) < 20_000  # n_test * d is 2,000,000
    seen = jax.make_jaxpr(lambda p, t: task.observe(p, data, t, hyper))(params, test)
    assert max(_sizes(seen.jaxpr)) <= (1 + problem.n) * problem.d
    one = jax.make_jaxpr(lambda k: signal_noise.subsets(k[None], problem.d - 1, 3))(key)
    assert max(_sizes(one.jaxpr)) < 50  # nothing of size d for one support
