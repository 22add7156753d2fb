"""Feature space drawn in distribution: moments of the draws, their independence of n, any d, against dense draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import stats

import jaxsign as js
from jaxsign.sweep.forecast import forecast
from jaxsign.training.start import begin

PROBLEM = js.Problem(n=4, d=60, s=6, m_k=3, m_v=5, n_test=40, supports="disjoint")
HYPER = js.Hyper(sigma_p=2.0, sigma_0=0.1)


def starts(problem, engine, count, degree, hyper=HYPER):
    """Starts of `count` seeds: data, test set and parameters of feature space."""
    task = js.two_layer(problem, engine=engine)
    numbers = jax.tree.map(jnp.asarray, hyper)
    one = jax.jit(lambda keys: jax.lax.map(lambda key: begin(task, key, numbers, None, jnp.asarray(degree)), keys))
    return one(jax.random.split(jax.random.key(7), count))


@pytest.mark.parametrize(
    ("degree", "overlap"),
    [(0.0, "exact"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1.0, "exact"), (0.0, "none")))],
)
def test_features_have_the_second_moments_of_dense_draws(degree, overlap):
    """Of training features, of what test features start from, and of how much training patches move them."""
    problem = dataclasses.replace(PROBLEM, overlap=overlap)
    law, dense = (starts(problem, engine, 400, degree) for engine in ("feature_space_law", "feature_space"))

    def moments(start):
        params, test, data = start.params, start.test, start.data
        named = {
            "q_mu": params.w_q.signal, "q": params.w_q.noise, "k": params.w_k.noise, "v_mu": params.w_v.signal,
            "v": params.w_v.noise, "rest_q": test.rest_q, "rest_v": test.rest_v, "metric": data.metric,
        }  # fmt: skip
        if overlap == "exact":
            named["mixing"] = test.mixing
        return {name: np.asarray(value, float).reshape(400, -1) ** 2 for name, value in named.items()}

    mine, theirs = moments(law), moments(dense)
    for name, squares in theirs.items():
        a, b = mine[name].mean(1), squares.mean(1)  # one number a seed
        error = np.sqrt(a.var() / a.size + b.var() / b.size)
        assert abs(a.mean() - b.mean()) < 4 * error, name
        assert b.mean() > 0
    np.testing.assert_array_equal(law.data.value_metric, dense.data.value_metric)


def test_a_test_patch_is_tied_to_the_training_patches_it_overlaps_as_its_weights_say():
    """Regressed on the training features it overlaps, a test feature has the coefficients <xi', xi_i>/||xi_i||^2."""
    problem = dataclasses.replace(PROBLEM, m_k=40, n_test=30, d=30, n=2, s=9)  # half of every patch is shared
    start = starts(problem, "feature_space_law", 40, 1.0)
    features = np.asarray(start.params.w_q.noise, float)[..., 0]  # (seed, row, n)
    rest, mixing = np.asarray(start.test.rest_q, float)[..., 0], np.asarray(start.test.mixing, float).swapaxes(1, 2)
    fresh = rest + np.einsum("srn,sjn->srj", features, mixing)
    # Rows are draws of the weights: the covariance with the training features is what overlap makes it.
    product = np.einsum("srj,srn->sjn", fresh, features) / problem.rows
    norms = np.asarray(start.constants["noise_l2"], float) ** 2
    expected = mixing * HYPER.sigma_0**2 * norms[:, None]
    slope = (product * expected).sum() / (expected**2).sum()
    assert slope == pytest.approx(1.0, abs=0.03)
    spread = (fresh**2).mean((0, 1, 2))
    values = np.asarray(start.test.rest_q, float)
    assert np.isfinite(values).all()
    assert spread == pytest.approx(HYPER.sigma_0**2 * HYPER.sigma_p**2 * problem.s, rel=0.1)


def test_overlaps_are_hypergeometric():
    problem = dataclasses.replace(PROBLEM, n_test=500)
    task = js.two_layer(problem, engine="feature_space_law")
    draw = jax.jit(jax.vmap(lambda key: task.sample_test(key, HYPER, None).drawn.indices))
    shared = np.asarray(draw(jax.random.split(jax.random.key(1), 20)) <= problem.n * problem.s).sum(-1).ravel()
    counts = np.bincount(shared, minlength=problem.s + 1)
    law = stats.hypergeom(problem.d - 1, problem.n * problem.s, problem.s).pmf(np.arange(problem.s + 1))
    assert stats.chisquare(counts[:-1], law[:-1] / law[:-1].sum() * counts[:-1].sum()).pvalue > 1e-3


def test_first_examples_do_not_depend_on_how_many_there_are():
    few, many = (starts(dataclasses.replace(PROBLEM, n=n), "feature_space_law", 2, 0.0) for n in (3, 5))
    np.testing.assert_array_equal(few.params.w_q.noise, many.params.w_q.noise[:, :, :3])
    np.testing.assert_array_equal(few.data.metric, many.data.metric[:, :3])


@pytest.mark.parametrize("overlap", ["exact", "none"])
def test_a_billion_dimensions_cost_nothing(overlap):
    problem = dataclasses.replace(PROBLEM, d=10**9, overlap=overlap)
    task = js.two_layer(problem, engine="feature_space_law")
    traced = jax.make_jaxpr(lambda key: begin(task, key, HYPER, None, 0.0))(jax.random.key(0))
    sizes = [v.aval.size for equation in traced.jaxpr.eqns for v in equation.outvars if hasattr(v.aval, "size")]
    assert max(sizes) < 10_000
    run = js.train(
        jax.random.key(0), task, HYPER, js.sign_gd(1e-3), steps=200, record=200, test_every=200,
        observables=["train_loss", "test_error"],
    )  # fmt: skip
    assert run.trace["train_loss"][-1] < 0.1
    assert run.trace["test_error"][-1] < 0.4  # no overlap to speak of


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["exact", "none"])
def test_results_have_the_distribution_of_dense_draws(overlap):
    """Stage times, losses and test errors of 256 seeds each, of disjoint draws: Kolmogorov and Smirnov see no
    difference at .001.
    """
    problem, hyper = js.presets.paper_like()
    problem = dataclasses.replace(problem, supports="disjoint", overlap=overlap, n_test=200)
    found = []
    for engine, seeds in (("feature_space_law", range(256)), ("dense", range(1000, 1256))):
        ds = js.run_sweep(
            js.Sweep(
                system=js.two_layer, engine=engine, problem=problem, hyper=hyper, steps=300, axes={"seed": list(seeds)},
                optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4])}, record=js.log_steps(300, 25),
                test_every=300, observables=["train_loss", "test_loss", "test_error", "sign_agreement", "s21"],
            )
        )  # fmt: skip
        last = ds.isel(step=-1, optimizer=0)
        numbers = {name: last[name].values for name in ("train_loss", "test_loss", "test_error", "sign_agreement")}
        numbers["t_II"] = ds.step.values[(ds.sign_agreement.isel(optimizer=0) >= 0.99).argmax("step")]
        mean = ds.s21.isel(optimizer=0).mean(["head", "sample"])
        numbers["t_IV"] = ds.step.values[(mean < 0.01).argmax("step")]
        numbers["log s21"] = np.log(mean.isel(step=-1).values)
        found.append(numbers)
    for name, mine in found[0].items():
        theirs = found[1][name]
        if np.unique([*mine, *theirs]).size > 1:
            assert stats.ks_2samp(mine, theirs).pvalue > 1e-3, name


def test_every_dimension_is_one_program_with_the_draws_of_its_own():
    """Also dimensions that 32-bit floats do not hold."""
    problem = dataclasses.replace(PROBLEM, n_test=20)
    sizes = [60, 2**31 - 2]
    made = js.Sweep(
        system=js.two_layer, problem=problem, hyper=HYPER, optimizers={"sign_gd": js.sign_gd(1e-2)}, steps=6,
        axes={"d": sizes, "seed": 2}, engine="feature_space_law", levels=(0.69,),
    )  # fmt: skip
    assert forecast(made, speed=1.0).programs == 1
    together = js.run_sweep(made)
    for d in sizes:
        alone = js.run_sweep(dataclasses.replace(made, problem=dataclasses.replace(problem, d=d), axes={"seed": 2}))
        xr.testing.assert_equal(together.sel(d=d, drop=True).load(), alone.load())


@pytest.mark.parametrize("d", [60, 70_000, 2**24 + 1, 2**31 - 2])
@pytest.mark.parametrize("overlap", ["exact", "none"])
def test_the_program_for_every_dimension_draws_the_coordinates_of_its_own(d, overlap):
    """Results hardly depend on a large d, coordinates do."""
    task = js.two_layer(dataclasses.replace(PROBLEM, d=d, overlap=overlap), engine="feature_space_law")
    padding, key = task.reduction.padding, jax.random.key(5)
    hyper = jax.tree.map(jnp.asarray, padding.case(HYPER))  # 32-bit floats, as a program takes them
    drawn = padding.task.sample_test(key, hyper).drawn.indices
    np.testing.assert_array_equal(drawn, task.sample_test(key, HYPER).drawn.indices)
    assert int(drawn.max()) > 0.9 * (d - 1 - 24 * (overlap == "none"))
