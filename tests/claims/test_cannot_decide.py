"""Only `js.CannotDecide` means "not decided": whatever else a claim, a setting, a drawing or a factory raises shows."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.measures import MEASURES
from jaxsign.analysis.reading import Defect
from jaxsign.claims import digits
from jaxsign.claims import dynamics as two_layer
from jaxsign.claims.claim import at_level
from jaxsign.cli import command as cli
from jaxsign.report import drawings as drawing
from jaxsign.training.mode import choose_mode

STEPS, SEEDS = np.arange(0, 401, 10), 4


def runs(preset="paper_like", families=("sign_gd", "gd"), steps=STEPS, **changes):
    """Runs of the paper's system with every trace that stages, S2 and the report read."""
    problem, hyper = getattr(js.presets, preset)()
    definition = {
        "problem": dataclasses.asdict(problem),
        "hyper": dataclasses.asdict(hyper),
        "system": {"name": "x.two_layer"},
    }
    rng, lead = np.random.default_rng(0), (len(families), SEEDS, len(steps))
    t = steps / 100
    row = rng.choice([-1.0, 1.0], (*lead[:2], 1, 3))
    values = {
        "train_loss": ((), np.exp(-t) * np.ones(lead)), "test_loss": ((), (1 + t) * np.ones(lead)),
        "test_error": ((), 0.4 / (1 + t) * np.ones(lead)),
        "sign_agreement": ((), np.minimum(0.5 + t, 1) * np.ones(lead)),
        "value_noise": (("sample",), (t - 0.05)[:, None] * np.ones((*lead, 5))),
        "query_noise": (("row", "sample"), rng.standard_normal((*lead, 3, 5))),
        "query_signal": (("row",), row * t[:, None]),
        "s21": (("head", "sample"), 0.5 * np.exp(-2 * t)[:, None, None] * np.ones((*lead, 1, 5))),
    }  # fmt: skip
    dims = ("optimizer", "seed", "step")
    return xr.Dataset(
        {name: ((*dims, *own), array) for name, (own, array) in values.items()}
        | {"status": (dims[:2], np.zeros(lead[:2], np.int8))},
        {
            "optimizer": list(families), "family": ("optimizer", list(families)), "seed": np.arange(SEEDS),
            "step": steps, "learning_rate": ("optimizer", [1e-4] * len(families)),
        },
        {"manifest": json.dumps({"definition": definition, **changes})},
    )  # fmt: skip


def raising(error):
    def broken(*args, **keywords):
        raise error

    return broken


ERRORS = [
    ValueError("boom"), KeyError("boom"), AttributeError("boom"), ZeroDivisionError("boom"), IndexError("boom"),
    TypeError("boom"), OSError("boom"), NotImplementedError("boom"),
]  # fmt: skip


def defect(call, *words):
    """The error of a call: a Defect with these words, from the exception that it came from, and no CannotDecide."""
    with pytest.raises(RuntimeError) as caught:
        call()
    assert isinstance(caught.value, Defect)
    assert not isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)
    return caught.value


# What a measure or a prediction may do wrong.


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_a_claims_number_raises_is_an_error(error, monkeypatch):
    broken = dataclasses.replace(MEASURES["sign_agreement_20"], number=raising(error))
    monkeypatch.setitem(MEASURES, "sign_agreement_20", broken)
    found = defect(
        lambda: js.check(runs(), ["S2"]), "claim S2 in the setting paper_like", "sign agreement at t=20", "boom"
    )
    assert found.__cause__ is error
    assert js.check(runs(), ["B1"]).rows  # which does not read it


@pytest.mark.parametrize("number", [None, 1j, np.complex64(1), "0.5", np.ones(3), [0.5, 0.5]], ids=repr)
def test_a_number_that_is_none_is_an_error(number, monkeypatch):
    broken = dataclasses.replace(MEASURES["sign_agreement_20"], number=lambda run: number)
    monkeypatch.setitem(MEASURES, "sign_agreement_20", broken)
    defect(lambda: js.check(runs(), ["S2"]), "claim S2", "sign agreement at t=20")


def test_whole_numbers_and_truth_values_are_numbers(monkeypatch):
    for number in (1, True, np.int32(1), np.float16(1), np.bool_(True)):
        right = dataclasses.replace(MEASURES["sign_agreement_20"], number=lambda run, number=number: number)
        monkeypatch.setitem(MEASURES, "sign_agreement_20", right)
        (row,) = js.check(runs(), ["S2"]).rows
        assert row.parts[1].median == 1


def asked(measure, predict=None, **more):
    parts = (js.Part("the number", measure, (0.0, 1.0), predict),)
    return [
        js.Claim(
            id="X1", statement="A number lies inside", source="ours", family="sign_gd", steps=(0,), parts=parts, **more
        )
    ]


def first(ds):
    return ds["sign_agreement"].isel(step=0, drop=True)


MEASURED = {
    "nothing": lambda ds: None,
    "a float": lambda ds: 0.5,
    "an array": lambda ds: np.full(SEEDS, 0.5),
    "a dataset": lambda ds: ds,
    "no seed": lambda ds: first(ds).mean(),
    "a step too many": lambda ds: ds["sign_agreement"],
    "one step too many": lambda ds: ds["sign_agreement"].isel(step=[0]),
    "rows too many": lambda ds: ds["query_signal"].isel(step=0),
    "a seed too few": lambda ds: first(ds).isel(seed=slice(1, None)),
    "one seed": lambda ds: first(ds).isel(seed=[0]),
    "other seeds": lambda ds: first(ds).isel(seed=slice(None, None, -1)),
    "complex": lambda ds: first(ds) + 0j,
    "text": lambda ds: first(ds).astype(str),
    "none among them": lambda ds: first(ds).astype(object).where(ds["seed"] > 0, None),
    "dates": lambda ds: first(ds).astype("datetime64[ns]"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_measure_must_return_a_real_number_for_each_seed(name):
    defect(
        lambda: js.check(runs(), asked(MEASURED[name])),
        "claim X1 in the setting paper_like",
        "the measure of 'the number'",
    )


def test_axes_of_one_point_and_objects_that_are_numbers_are_accepted():
    one = runs().expand_dims(snr=[0.1]).assign_attrs(runs().attrs)
    for measure in (first, lambda ds: first(ds).astype(object), lambda ds: (first(ds) > 0.4).where(ds["seed"] > -1)):
        for ds in (runs(), one):
            (row,) = js.check(ds, asked(measure)).rows
            assert (row.seeds, row.inside) == (SEEDS, SEEDS)


@pytest.mark.parametrize(
    "predict",
    [*map(raising, ERRORS), lambda ds: None, lambda ds: "0.5", lambda ds: 1j, lambda ds: [0.5, 0.5], lambda ds: ds],
)
def test_a_prediction_must_return_a_real_number(predict):
    defect(lambda: js.check(runs(), asked(first, predict)), "claim X1", "the prediction of 'the number'")


def test_a_law_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(two_layer.theory, "sign_test_error", raising(ValueError("boom")))
    steps = np.array([0, 50, 100, 500])
    defect(lambda: js.check(runs(steps=steps), ["C2e"]), "claim C2e", "boom")


def test_choosing_runs_and_naming_settings_may_not_fail_either(monkeypatch):
    broken = dataclasses.replace(asked(first)[0], trusted_until=10)
    frozen = runs().assign(first_frozen_step=(("optimizer", "seed"), np.full((2, SEEDS), "x", object)))
    defect(lambda: js.check(frozen, [broken]), "claim X1 in the setting paper_like")
    monkeypatch.setattr(two_layer, "setting_of", raising(ValueError("boom")))
    defect(lambda: js.check(runs(), ["S2"]), "naming the setting of a Dataset of two_layer", "boom")
    defect(lambda: js.report.render({"mine": runs()}), "naming the setting", "boom")


def test_a_bug_in_the_problem_of_a_setting_is_no_custom_setting(monkeypatch):
    def broken(problem, base, names):
        raise ValueError("boom")

    monkeypatch.setattr(two_layer, "_with", broken)
    defect(lambda: js.check(runs(), ["S2"]), "boom")


# What a Dataset may lack: always a reason, never an error.


def test_cannot_decide_is_public_and_carries_its_reason():
    assert issubclass(js.CannotDecide, ValueError)  # as js.find_stages and js.plot promise
    for call in (
        lambda: js.find_stages(runs().drop_vars("s21")), lambda: js.find_stages(runs().drop_vars("status")),
        lambda: js.find_stages(runs().sel(step=[0, 50])), lambda: js.find_stages(runs().isel(row=0)),
        lambda: js.at_train_loss(runs().drop_vars("train_loss"), 0.1), lambda: plot.loss(runs(), name="x"),
    ):  # fmt: skip
        with pytest.raises(js.CannotDecide, match=r"\w"):
            call()
    with pytest.raises(ValueError, match="level must be") as caught:
        js.at_train_loss(runs(), -1)
    assert not isinstance(caught.value, js.CannotDecide)  # what is asked is wrong, not the Dataset

    def lacking(ds):
        raise js.CannotDecide("needs the moon")

    for claims in (asked(lacking), asked(first, lacking)):
        table = js.check(runs(), claims)
        assert (table.rows, table.missing) == ((), (("X1", "paper_like", "needs the moon"),))


def schedule(ds):
    return ds.assign_coords(learning_rate=("optimizer", np.array(["cosine", "0.3"], object)))


def flat(ds):
    return ds.assign(
        {name: ds[name].isel(step=-1, drop=True) for name in ("train_loss", "sign_agreement", "test_error")}
    )


LACKING = {
    "a chosen seed": (lambda ds: ds.isel(seed=0), "dimensions optimizer and seed"),
    "a chosen optimizer": (lambda ds: ds.isel(optimizer=0), "dimensions optimizer and seed"),
    "no seeds": (lambda ds: ds.isel(seed=[]), "no seeds"),
    "no status": (lambda ds: ds.drop_vars("status"), "no status"),
    "no families": (lambda ds: ds.drop_vars("family"), "family"),
    "no steps": (lambda ds: ds.isel(step=-1, drop=True), "step 0 is not recorded"),
    "a chosen step": (lambda ds: ds.isel(step=0), "step 0 is not recorded"),
    "numbers instead of traces": (flat, "over steps"),
    "no traces": (lambda ds: ds[["status"]].assign_coords(step=ds["step"]), "sign_agreement"),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_dataset_lacks_is_a_reason_for_every_claim(name):
    change, words = LACKING[name]
    ds = change(runs()).assign_attrs(runs().attrs)
    assert any(words in reason for _, _, reason in js.check(ds, ["S2"]).missing)
    js.check(ds)
    js.check([ds, runs(), ds])


def test_a_schedule_in_a_grid_is_no_number_and_no_error():
    ds = schedule(runs(steps=np.arange(0, 1501, 2))).assign(
        noise_l1=(("optimizer", "seed", "sample"), np.ones((2, SEEDS, 5)))
    )
    reasons = {claim: reason for claim, _, reason in js.check(ds, ["C1", "S2"]).missing}
    assert reasons == {"C1": "needs a number as the learning rate, got 'cosine'"}
    ax = plot.loss(ds.isel(sample=slice(0, 5)))
    assert len([line for line in ax.lines if js.plot.has_band(line)]) == 2  # both curves; a law needs a rate
    js.check(ds)


def test_test_quantities_that_were_never_measured_are_a_reason(quick):
    ds = runs().assign(test_error=np.nan * runs()["test_error"])
    with pytest.raises(js.CannotDecide, match="test_error is NaN at every recorded step"):
        at_level(ds, 0.1, "test_error")
    ((_, _, reason),) = js.check(ds, ["B3"]).missing
    assert reason == "test_error is NaN at every recorded step of every run"
    page = js.report.render({"mine": ds})
    assert "training loss" in page


def test_levels_and_tuned_rates_ask_for_one_point_of_other_axes():
    ds = runs().expand_dims(n_train=[50], scale=[0.5, 1.0], noise=[1.0, 2.0]).assign_attrs(runs().attrs)
    with pytest.raises(js.CannotDecide, match=r"one point of every other axis, got several on \['noise'\]"):
        digits.tuned(ds, "gd", "end")


def test_dropping_any_observable_or_step_is_never_an_error():
    rng, whole = np.random.default_rng(1), runs(steps=np.array([0, 20, 50, 100, 150, 200, 300, 400]))
    for _ in range(12):
        names = [name for name in whole.data_vars if rng.random() < 0.7]
        steps = np.flatnonzero(rng.random(whole.sizes["step"]) < 0.7)
        ds = whole[names].isel(step=steps) if steps.size else whole[names]
        js.check(ds.assign_attrs(whole.attrs))


# The report.


@pytest.fixture
def quick(monkeypatch):
    """Pictures are drawn but not laid out, which takes most of the time."""
    monkeypatch.setattr(plot, "svg", lambda fig: "<svg/>")


DRAWING = [(plot, "loss"), (plot, "error_at_loss"), (plot, "dynamics"), (plot, "phase"), (drawing, "find_stages")]


@pytest.mark.parametrize(("target", "name"), DRAWING, ids=[name for _, name in DRAWING])
def test_a_drawing_that_fails_is_an_error_and_leaves_the_earlier_page(target, name, quick, monkeypatch, tmp_path):
    one = {"mine": runs(families=("sign_gd",))}
    page = js.report.write(tmp_path / "page.html", one).read_text()
    for error in (ValueError("boom"), KeyError("boom")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, raising(error))
            found = defect(lambda: js.report.write(tmp_path / "page.html", one), "boom")
        assert name != "loss" or "the drawing 'training loss' in 'Losses'" in str(found)
    assert (tmp_path / "page.html").read_text() == page
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_drawing_that_lacks_something_is_left_out(quick, monkeypatch):
    mine = with_levels(runs(), (0.5, 0.1))
    before = [one.title for one in drawing.drawings(mine, "a")]
    monkeypatch.setattr(plot, "error_at_loss", raising(js.CannotDecide("no law")))
    after = [one.title for one in drawing.drawings(mine, "a")]
    assert set(before) - set(after) == {"test error against training loss"}


def test_a_broken_claim_breaks_the_report(monkeypatch):
    broken = dataclasses.replace(MEASURES["sign_agreement_20"], number=raising(ValueError("boom")))
    monkeypatch.setitem(MEASURES, "sign_agreement_20", broken)
    defect(lambda: js.report.render({"mine": runs()}), "claim S2", "boom")


# The command.

BROKEN = """
import dataclasses, sys
from jaxsign.analysis.measures import MEASURES

def broken(run):
    raise ValueError("boom")

MEASURES["sign_agreement_20"] = dataclasses.replace(MEASURES["sign_agreement_20"], number=broken)
from jaxsign.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    sweep = js.Sweep(
        system=js.two_layer, problem=js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16), hyper=js.Hyper(sigma_p=2.0),
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}, axes={"seed": 2}, steps=20, record=1,
        observables=["train_loss", "sign_agreement"],
    )  # fmt: skip
    js.run_sweep(sweep, folder / "runs")
    return folder / "runs"


def test_the_command_shows_the_traceback_of_a_defect(stored, tmp_path):
    command = [sys.executable, "-c", BROKEN, "claims", str(stored), "--csv", str(tmp_path / "claims.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # neither done nor bad input
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr
    assert "claim S2 in the setting custom" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_the_commands_let_a_defect_through(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "loss", raising(ValueError("boom")))
    defect(lambda: cli.main(["report", str(stored), "--out", str(tmp_path / "page.html")]), "training loss")
    assert not list(tmp_path.iterdir())
    assert cli.main(["claims", str(stored)]) == 0


# Optimizers that are probed.


@pytest.mark.parametrize("engine", ["dense", "support", "feature_space", "hybrid", "auto"])
@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError], ids=lambda error: error.__name__)
def test_what_a_factory_raises_is_its_own(engine, error, problem, hyper):
    def factory(learning_rate):
        raise error("boom")

    task = js.two_layer(dataclasses.replace(problem, supports="disjoint"), engine=engine)
    with pytest.raises(error, match="boom") as caught:
        choose_mode(task, factory, [{"learning_rate": 0.1}], hyper)
    assert "engine=" not in str(caught.value)

    def update(updates, state, params=None):
        raise error("boom")

    late = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    with pytest.raises(error, match="boom"):
        choose_mode(task, lambda: late, [{}], hyper)


def masked(learning_rate):
    """SignGD of the value layer alone, by a mask that names all parameters of the model."""
    return optax.masked(js.sign_gd(learning_rate), js.Params(w_q=False, w_k=False, w_v=True, heads=1))


def named(learning_rate):
    """The same by a function that looks for the names."""
    frozen = optax.partition(
        {"on": js.sign_gd(learning_rate), "off": optax.set_to_zero()},
        lambda params: jax.tree.map_with_path(lambda path, _: "on" if path[-1].name == "w_v" else "off", params),
    )
    return frozen


@pytest.mark.parametrize("factory", [masked, named], ids=lambda factory: factory.__name__)
def test_an_optimizer_that_names_parameters_passes_over_what_it_cannot_take(factory, problem, hyper):
    disjoint = dataclasses.replace(problem, supports="disjoint")
    found = choose_mode(js.two_layer(disjoint, engine="auto"), factory, [{"learning_rate": 0.1}], hyper)
    assert not found.task.reduction.homogeneous
    assert "feature_space" in found.why
    reason = {"masked": "it treats parameters by their names or shapes", "named": "it moves nowhere"}
    assert reason[factory.__name__] in found.why


def test_an_optimizer_that_is_not_exact_is_refused_as_before(problem, hyper):
    disjoint = dataclasses.replace(problem, supports="disjoint")
    factory, points = optax.adam, [{"learning_rate": 0.1, "eps": 1e-3}]
    with pytest.raises(ValueError, match=r"two_layer_feature_space cannot run .* not homogeneous"):
        choose_mode(js.two_layer(disjoint, engine="feature_space"), factory, points, hyper)
    found = choose_mode(js.two_layer(disjoint, engine="auto"), factory, points, hyper)
    assert (found.task.name, "not homogeneous" in found.why) == ("two_layer_support", True)


def test_a_claim_judges_something():
    with pytest.raises(ValueError, match="at least one with an interval"):
        js.Claim(id="X", statement="", source="ours", family="sign_gd", parts=(js.Part("a number", first, None),))
