"""Every observable against NumPy loops over the full weights and inputs; the underflow alarm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.two_layer import observables

pytestmark = pytest.mark.x64
observe = jax.jit(observables.observe)


@pytest.mark.parametrize(("heads", "context"), [(1, 2), (2, 3)])
def test_observables_are_their_definitions(problem, oracle, eps, heads, context):
    sizes = dataclasses.replace(problem, heads=heads, context=context)
    params, data, test = oracle.draw(sizes, 3, sigma_0=0.2, mu=1.5, alpha=0.2, label_noise=0.4)
    seen = observe(params, data, test)
    assert np.any(data.y != data.y_clean)

    w_q, w_k, w_v, y = (np.asarray(a, float) for a in (params.w_q, params.w_k, params.w_v, data.y))
    xi = np.asarray(data.basis, float)[1:].reshape(6, context - 1, 60)
    v, mu = w_v[0].mean(0) - w_v[1].mean(0), np.eye(60)[0] * 1.5
    noises = {
        "query_noise": np.einsum("rd,i,ipd->rip", w_q, y, xi),
        "key_noise": np.einsum("rd,i,ipd->rip", w_k, y, xi),
        "value_noise": np.einsum("d,i,ipd->ip", v, y, xi),
    }
    canonical = [np.concatenate([[c * mu], patches]) for c, patches in zip(np.asarray(data.y_clean), xi)]
    attention = np.stack([oracle.attention(params, x) for x in canonical], 1)  # (head, sample, query, key)
    noises["s21"] = attention[:, :, 1:, 0]
    noises["log_s21"] = np.log(attention[:, :, 1:, 0])
    noises["s22"] = np.stack([attention[:, :, 1 + p, 1 + p] for p in range(context - 1)], -1)
    q, k = noises["query_noise"], noises["key_noise"]
    expected = {name: value if context > 2 else value[..., 0] for name, value in noises.items()}
    expected |= {
        "query_signal": w_q @ mu,
        "key_signal": w_k @ mu,
        "value_signal": v @ mu,
        "s11": attention[:, :, 0, 0],
        "sign_agreement": np.mean(np.sign(q) == np.sign(k)),
        "train_loss": oracle.loss(params, oracle.inputs(data), data.y),
    }
    votes = [(np.sign(row).sum(), np.sign(signal)) for row, signal in zip(k, w_q @ mu)]
    expected["majority_agreement"] = np.mean([np.sign(vote) == sign for vote, sign in votes if vote])
    fresh = oracle.dense(test, 60)
    margins = np.array([label * oracle.logit(params, x) for label, x in zip(np.asarray(test.y), fresh)])
    expected |= {"test_loss": np.logaddexp(0, -margins).mean(), "test_error": np.mean(margins <= 0)}
    assert set(seen) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=500 * eps, atol=50 * eps, err_msg=name)

    sizes_of = {"row": 4 * heads, "sample": 6, "head": heads, "patch": context - 1}
    for name, names in observables.dims(context).items():
        value = seen[name] if name in seen else observables.noise_norms(data)[name]
        assert value.shape == tuple(sizes_of[dim] for dim in names), name
    assert set(seen) <= set(observables.ATTRS)
    assert "test_loss" not in jax.eval_shape(lambda: observables.observe(params, data, None))


def test_noise_norms_leave_the_signal_coordinate_out(problem, oracle, eps):
    data = oracle.draw(problem, 3, alpha=5.0)[1]
    norms, xi = jax.jit(observables.noise_norms)(data), np.asarray(data.basis, float)[1:, 1:]
    np.testing.assert_allclose(norms["noise_l1"], np.abs(xi).sum(1), rtol=20 * eps)
    np.testing.assert_allclose(norms["noise_l2"], np.linalg.norm(xi, axis=1), rtol=20 * eps)


def test_a_tied_vote_is_left_out_of_the_majority(problem, oracle):
    params, data, _ = oracle.draw(problem, 3)
    inverse = np.linalg.pinv(np.asarray(data.basis)[1:] * np.asarray(data.y)[:, None])
    votes = np.array([[1, 1, 1, -1, -1, -1]] * 4)  # every row is tied: nothing to agree with
    for row, expected in ((None, np.nan), (2, float(params.w_q[2, 0] > 0))):
        if row is not None:
            votes[row] = 1
        keyed = dataclasses.replace(params, w_k=jnp.asarray(votes @ inverse.T, params.w_k.dtype))
        np.testing.assert_equal(float(observe(keyed, data, None)["majority_agreement"]), expected)


def test_log_attention_and_alarm_beyond_underflow(problem, oracle):
    params, data, test = oracle.draw(problem, 3, sigma_0=0.1)
    task, hyper = js.two_layer(problem), js.Hyper(sigma_p=2.0)

    @jax.jit
    def alarm(params, data):
        slope = jax.grad(task.loss)(params, data, hyper)
        rang = {name: look(params, data, hyper, slope) for name, look in task.watch.items()}
        return rang["first_frozen_query_noise"] & rang["first_frozen_step"]

    assert not alarm(params, data)
    aligned = dataclasses.replace(params, w_k=params.w_q)  # noise attends to itself, ever more sharply
    sharp = jax.tree.map(lambda w: 60 * w, aligned)
    seen = observe(sharp, data, None)
    assert np.any(seen["s21"] == 0)
    assert np.all(np.isfinite(seen["log_s21"]))
    assert np.min(seen["log_s21"]) < -100
    assert alarm(sharp, data)
    zero = jax.tree.map(jnp.zeros_like, params)  # here the law itself says 0
    assert not alarm(zero, data)
    assert observe(zero, data, test)["test_error"] == 1  # a logit of 0 is an error
    faint = dataclasses.replace(params, w_v=1e-6 * params.w_v)  # the same labels, however small the logits
    error = observe(params, data, test)["test_error"]
    assert 0 < error < 1
    assert observe(faint, data, test)["test_error"] == error
