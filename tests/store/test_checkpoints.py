"""Checkpoints: what is saved comes back bit for bit; what is damaged or of something else is named and passed over."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsign.store import checkpoints
from jaxsign.store.manifest import checksum

ABOUT = {"sweep": "abc", "runs": "def", "lane_width": 2, "records": 3}


def state(seed=0):
    """Everything that a state may hold: floats with NaN and -0, ints, bools, no entries, scalars, typed keys."""
    rng = np.random.default_rng(seed)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    return {
        "place": np.array([seed, 3], np.int32),
        "state": {
            "weights": [rng.standard_normal((4, 3)).astype(np.float32), odd],
            "moment": jnp.asarray(rng.standard_normal((5, 2))),
            "half": rng.standard_normal(3).astype(np.float16),
            "count": np.array(rng.integers(-5, 5), np.int32),
            "small": rng.integers(0, 255, 7).astype(np.uint8),
            "flags": np.array([True, False]),
            "nothing": np.zeros((0, 4), np.float32),
            "none": None,
            "key": jax.random.key(seed),
            "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        },
        "rows": {"loss": rng.standard_normal((4, 6)).astype(np.float32)},
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def bits(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    return array.shape, array.dtype.name, array.tobytes()


def equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert list(map(bits, jax.tree.leaves(left))) == list(map(bits, jax.tree.leaves(right)))


def files(folder):
    return sorted(f for f in folder.rglob("*") if f.is_file())


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of steps 10 and 20."""
    path = tmp_path / "checkpoints" / "block-000003"
    for step in (10, 20):
        checkpoints.save(path, step, state(step), ABOUT)
    return path


def load(folder, like=None, about=ABOUT):
    return checkpoints.load(folder, state() if like is None else like, about)


@pytest.mark.parametrize("like", [state, lambda: abstract(state())], ids=["arrays", "abstract"])
def test_what_is_saved_comes_back_bit_for_bit(folder, like, capsys):
    step, found = load(folder, like())
    assert step == 20
    equal(found, state(20))
    assert jax.random.bits(found["state"]["key"]) == jax.random.bits(state(20)["state"]["key"])
    assert capsys.readouterr().err == ""
    assert checkpoints.damage(folder.parent) == []


def test_moments_in_bfloat16_come_back_too(folder, capsys):
    like = {"mu": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}  # optax.adam(mu_dtype=jnp.bfloat16)
    checkpoints.save(folder, 30, like, ABOUT)
    step, found = load(folder, abstract(like)) or (None, None)
    assert (step, capsys.readouterr().err) == (30, "")
    equal(found, like)


def test_there_is_none_before_the_first_save(tmp_path):
    assert load(tmp_path) is None
    assert load(tmp_path / "nowhere") is None
    assert checkpoints.damage(tmp_path) == []


def test_only_the_newest_are_kept(folder):
    for step in (30, 100, 200):
        checkpoints.save(folder, step, state(step), ABOUT)
    kept = {"100", "100.json", "200", "200.json"}
    assert checkpoints.KEPT == 2
    assert {f.name for f in folder.iterdir()} == kept
    assert load(folder)[0] == 200  # the largest step, not the last name


def test_a_checkpoint_of_the_same_step_is_replaced(folder):
    checkpoints.save(folder, 20, state(7), ABOUT)
    step, found = load(folder)
    assert step == 20
    equal(found, state(7))
    assert {f.name for f in folder.iterdir()} == {"10", "10.json", "20", "20.json"}


def test_removed_checkpoints_take_the_last_folder_with_them(folder):
    other = folder.with_name("block-000004")
    checkpoints.save(other, 5, state(), ABOUT)
    checkpoints.remove(folder)
    assert load(folder) is None
    assert load(other)[0] == 5
    checkpoints.remove(other)
    assert not folder.parent.exists()
    checkpoints.remove(other)  # nothing there is nothing to do


def passed_over(folder, capsys):
    """The reason for which step 20 is not used; step 10 is there in its place, whole."""
    step, found = load(folder)
    assert step == 10
    equal(found, state(10))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(folder))]
    assert line.startswith(f"{folder / '20'}: not used: ")
    (named,) = checkpoints.damage(folder.parent)
    assert named.startswith(f"{folder / '20'}: ")
    assert named.removeprefix(f"{folder / '20'}: ") == line.removeprefix(f"{folder / '20'}: not used: ")
    return line.removeprefix(f"{folder / '20'}: not used: ")


def flips(raw):
    """One byte changed, in the middle and at the end."""
    for place in sorted({len(raw) // 2, len(raw) - 1}) if raw else ():
        bad = bytearray(raw)
        bad[place] ^= 0x10
        yield bytes(bad)


def cuts(raw):
    """Cut in half, gone."""
    yield from (raw[: len(raw) // 2],) if raw else ()
    yield None


# Orbax's loop leaves tasks behind whose errors nobody asked for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_file_never_comes_back_as_numbers(folder, capsys):
    noticed = {}
    for file in files(folder / "20"):
        raw = file.read_bytes()
        for bad in [*flips(raw), *cuts(raw)]:
            if bad is None:
                file.unlink()
            else:
                file.write_bytes(bad)
            step, found = load(folder)
            equal(found, state(step))  # whatever comes back is what was saved
            words = [line for line in capsys.readouterr().err.splitlines() if "not used: " in line]
            assert [line.startswith(f"{folder / '20'}: not used: ") for line in words] == [True] * (step == 10)
            noticed.setdefault(file, []).append(step == 10)
            file.write_bytes(raw)
    # Orbax keeps some files that it never reads; those that hold the numbers cannot be gone or changed unnoticed
    data = [seen for file, seen in noticed.items() if file.parent.name == "d" and seen[-1]]
    assert data
    assert all(map(all, data))
    assert load(folder)[0] == 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_numbers_of_a_damaged_checkpoint_are_not_used_and_the_reason_is_printed(folder, capsys):
    for file in files(folder / "20"):
        if file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:-1])
    assert passed_over(folder, capsys).startswith("its file 20/")


@pytest.mark.parametrize("harm", [flips, cuts])
def test_a_damaged_record_is_not_used(folder, harm, capsys):
    record = folder / "20.json"
    raw = record.read_bytes()
    for bad in harm(raw):
        if bad is None:
            continue
        record.write_bytes(bad)
        if bad.strip() == raw.strip():  # the last newline
            assert load(folder)[0] == 20
        else:
            assert passed_over(folder, capsys).startswith(("its record is damaged", "its record cannot be read"))


def test_without_its_record_a_checkpoint_does_not_count(folder, capsys):
    (folder / "20.json").unlink()
    step, found = load(folder)
    assert step == 10
    equal(found, state(10))
    assert capsys.readouterr().err == ""
    checkpoints.save(folder, 20, state(20), ABOUT)  # what is there without a record is replaced
    assert load(folder)[0] == 20


@pytest.mark.parametrize("edit", [
    lambda whole: whole["about"].update(runs="other"),
    lambda whole: whole["leaves"][0].__setitem__(3, 0),
    lambda whole: whole.update(step=21),
    lambda whole: whole.pop("leaves"),
])  # fmt: skip
def test_an_edited_record_is_not_used(folder, edit, capsys):
    record = folder / "20.json"
    whole = json.loads(record.read_text())
    edit(whole)
    record.write_text(json.dumps(whole))
    assert passed_over(folder, capsys) == "its record is damaged"


def test_a_leaf_must_have_the_crc_of_its_record(folder, capsys):
    record = folder / "20.json"
    whole = json.loads(record.read_text())
    name = whole["leaves"][2][0]
    whole["leaves"][2][3] ^= 1
    record.write_text(json.dumps({**whole, "checksum": checksum(whole)}))  # not even by someone who knows how
    assert passed_over(folder, capsys) == f"leaf {name} does not have the CRC that it was saved with"


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"checksum": 1}'])
def test_a_record_that_is_something_else_is_not_used(folder, text, capsys):
    (folder / "20.json").write_text(text)
    assert passed_over(folder, capsys).startswith("its record")


@pytest.mark.parametrize("other", [{**ABOUT, "lane_width": 4}, {**ABOUT, "records": 2}, {**ABOUT, "more": 1}, {}])
def test_a_checkpoint_of_something_else_is_not_used(folder, other, capsys):
    assert load(folder, about=other) is None
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{folder / str(step)}: not used: it is of another definition, plan or set of runs" for step in (20, 10)
    ]
    assert checkpoints.damage(folder.parent) == []  # whole all the same


@pytest.mark.parametrize("change", [
    lambda like: like["state"].pop("count"),
    lambda like: like["state"].update(extra=np.zeros(2)),
    lambda like: like["state"].update(small=np.zeros(7, np.int8)),
    lambda like: like["state"].update(moment=np.zeros((5, 2), np.float16)),
    lambda like: like["state"].update(moment=like["state"]["moment"].T),
    lambda like: like["state"].update(nothing=np.zeros((0, 5), np.float32)),
    lambda like: like["state"].update(key=jax.random.key(0, impl="rbg")),
    lambda like: like["rows"].update(other=like["rows"].pop("loss")),
])  # fmt: skip
def test_a_state_of_another_structure_shape_or_dtype_is_not_used(folder, change, capsys):
    like = state()
    change(like)
    assert load(folder, like) is None
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(".*not used: (.*dtypes)(: .*)?", r"\1", line) for line in lines] == [
        "its arrays have another structure, other shapes or dtypes"
    ] * 2


def test_the_older_one_of_another_state_is_found_behind_a_newer_one(folder, capsys):
    checkpoints.save(folder, 30, {"x": np.zeros(3)}, {**ABOUT, "runs": "other"})
    step, found = load(folder)
    assert step == 20
    equal(found, state(20))
    assert "not used: it is of another definition, plan or set of runs" in capsys.readouterr().err


def test_damage_names_every_damaged_checkpoint_of_every_block(folder):
    other = folder.with_name("block-000007")
    checkpoints.save(other, 40, state(), ABOUT)
    assert checkpoints.damage(folder.parent) == []
    (folder / "10.json").write_text("{")
    (other / "40.json").write_text("{")
    lines = checkpoints.damage(folder.parent)
    assert [line.split(": ")[0] for line in lines] == [str(folder / "10"), str(other / "40")]
    assert all("its record is damaged" in line for line in lines)
