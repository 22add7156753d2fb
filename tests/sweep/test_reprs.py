"""What notebooks and terminals show of sweeps, tasks, runs and Datasets."""

import json

import jax
import optax

import jaxsign as js

PROBLEM, HYPER = js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=4), js.Hyper(sigma_p=2.0)
SWEEP = js.Sweep(
    system=js.two_layer, problem=PROBLEM, hyper=HYPER, steps=4,
    optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.1, 0.3]), "sign_gd": js.sign_gd(1e-3)},
    axes={"snr": [0.1, 1.0], "seed": 3},
)  # fmt: skip


def test_reprs_fit_on_a_line():
    assert repr(SWEEP) == "Sweep(two_layer, 18 runs of 4 steps, snr: 2, optimizer: 3, seed: 3)"
    task = js.two_layer(PROBLEM)
    assert repr(task) == f"Task('two_layer' of {PROBLEM!r})"
    assert repr(
        js.Sweep(system=task, problem=None, hyper=HYPER, optimizers={"gd": optax.sgd(0.1)}, steps=1)
    ).startswith("Sweep(two_layer, 1 run of 1 steps")


def test_notebooks_show_tables():
    html = SWEEP._repr_html_()
    for cell in ("<th>snr</th><td>0.1 ... 1.0 (2)</td>", "gd(learning_rate=0.1)", "<th>runs</th><td>18</td>"):
        assert cell in html
    assert "<th>task</th><td>two_layer</td>" in js.two_layer(PROBLEM)._repr_html_()
    run = js.train(jax.random.key(1), js.two_layer(PROBLEM), HYPER, optax.sgd(0.1), steps=4)
    html = run._repr_html_()
    assert f"<th>train_loss at step 4</th><td>{float(run.trace['train_loss'][-1]):.6g}</td>" in html
    assert "<th>status</th><td>finished</td>" in html


def test_a_dataset_says_what_it_is(tmp_path):
    ds = js.run_sweep(SWEEP, tmp_path, progress=False)
    line = "18 runs of 4 steps of two_layer over snr, optimizer, seed; optimizers: gd, sign_gd"
    assert ds.attrs["description"] == js.run_sweep(SWEEP, progress=False).attrs["description"] == line
    assert list(ds.attrs) == ["description", "manifest"]
    assert json.loads(ds.attrs["manifest"])["runs"]["total"] == 18
