"""Which coordinates several patches use, and how many there can be: against enumeration and plain draws."""

import itertools

import jax
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.two_layer.data import PaddedSize, sample
from jaxsign.systems.two_layer.overlaps import shared_coordinates, shared_moments, shared_slots

HYPER = js.Hyper(sigma_p=2.0, alpha=0.3)


def problem(**sizes):
    return js.Problem(**{"n": 5, "d": 60, "s": 7, "m_k": 2, "m_v": 2, "n_test": 1} | sizes)


@pytest.mark.parametrize(("m", "s", "patches"), [(1, 1, 3), (4, 2, 2), (4, 3, 3), (5, 1, 4), (5, 5, 2), (6, 2, 3)])
def test_the_moments_are_those_of_all_equally_likely_supports(m, s, patches):
    counts = []
    for drawn in itertools.product(itertools.combinations(range(m), s), repeat=patches):
        users = np.bincount(np.concatenate(drawn), minlength=m)
        counts.append(np.sum(users > 1))
    mean, variance = shared_moments(m, s, patches)
    assert mean == pytest.approx(np.mean(counts), rel=1e-12)
    assert variance == pytest.approx(np.var(counts), rel=1e-9, abs=1e-12)


#: (n, context, d, s): the preset, its larger d and more examples, few shared coordinates, nearly all.
SIZES = [(20, 2, 2000, 40), (20, 2, 20000, 40), (40, 2, 2000, 40), (5, 3, 300, 7), (6, 2, 40, 9), (3, 2, 500, 200)]


@pytest.mark.parametrize(("n", "context", "d", "s"), SIZES)
def test_no_draw_comes_near_the_number_of_slots(n, context, d, s):
    patches = n * (context - 1)
    slots = shared_slots(problem(n=n, context=context, d=d, s=s), patches)
    rng, counts = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = [rng.choice(d - 1, s, replace=False, shuffle=False) for _ in range(patches)]
        counts.append(np.sum(np.bincount(np.ravel(drawn), minlength=d - 1) > 1))
    most = min(d - 1, patches * s // 2)
    assert slots <= most
    # Of 1000 draws the largest lies about 3.2 standard deviations above the mean; a probability of 1e-9 is 6 or more.
    assert slots == most or np.max(counts) + 2 * np.std(counts) <= slots
    assert slots <= max(16, 2 * np.mean(counts) + 32)


def test_more_patches_need_no_fewer_slots():
    slots = [shared_slots(problem(d=300), n) for n in range(1, 40)]
    assert slots == sorted(slots)
    assert slots[0] == 0
    assert slots[1] == 7  # two patches of 7 cannot share more


def test_disjoint_supports_share_nothing_and_full_ones_everything():
    assert shared_slots(problem(supports="disjoint"), 5) == 0
    assert shared_slots(problem(s=59, supports="independent"), 5) == 59
    assert shared_slots(problem(d=10**9), 5) == 16  # improbable, but not impossible


def by_hand(support, d):
    """{coordinate: slot} in plain Python."""
    users = {}
    for i, patch in enumerate(np.asarray(support).reshape(-1, np.shape(support)[-1]).tolist()):
        for c in patch:
            users.setdefault(c, set()).add(i)
    shared = sorted(c for c, who in users.items() if len(who) > 1 and c != 0)
    assert all(c < d for c in shared)
    return {c: slot for slot, c in enumerate(shared)}


@pytest.mark.parametrize("count", [8, 5])
def test_shared_coordinates_are_found_in_order_and_padding_shares_none(count):
    made = problem(n=8)
    slots = 40

    @jax.jit
    def draw(key):
        data = sample(key, made, HYPER, PaddedSize(8, count, made.d))
        return data, shared_coordinates(data, slots)

    data, found = draw(jax.random.key(3))
    expected = by_hand(data.support[:count], made.d)
    assert 0 < len(expected) < slots
    assert found.fit
    np.testing.assert_array_equal(found.used, np.arange(slots) < len(expected))
    np.testing.assert_array_equal(found.coordinate[: len(expected)], list(expected))
    np.testing.assert_array_equal(found.slot, [expected.get(c, slots) for c in range(made.d)])


def test_slots_that_do_not_suffice_are_reported():
    data = jax.jit(lambda key: sample(key, problem(n=8), HYPER))(jax.random.key(3))
    needed = len(by_hand(data.support, 60))
    tried = needed - 1, needed, needed + 1
    fits = jax.jit(lambda data: [shared_coordinates(data, slots).fit for slots in tried])(data)
    assert [bool(fit) for fit in fits] == [False, True, True]


def test_rare_overlaps_are_poisson():
    """Mean and variance agree, where differences of squares would be lost to rounding."""
    mean, variance = shared_moments(10**9, 3, 4)
    assert mean == pytest.approx(6 * 9 / 10**9, rel=1e-6)  # pairs of patches, times the overlap of two
    assert variance == pytest.approx(mean, rel=1e-6)
