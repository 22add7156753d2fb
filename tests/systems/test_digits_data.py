"""Noisy digits: IDX files and what is wrong with them, the embedded set, balanced disjoint splits, border noise."""

import dataclasses
import gzip

import jax
import numpy as np
import pytest
import scipy.stats

import jaxsign as js
from jaxsign.systems.digits import data as digits
from jaxsign.systems.digits import idx

PROBLEM = js.DigitsProblem(classes=(3, 7), n_train=4, n_val=2, n_test=6)


def encode(array):
    """An IDX file of unsigned bytes, byte by byte."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def image_set(count=60, seed=0):
    """Random images in which every pixel of an image tells its index, with all ten labels in turn."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (count, 28, 28), dtype=np.uint8)
    images[:, 14, 14] = np.arange(count)
    return digits.DigitImages(images, (np.arange(count) % 10).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A directory of a small MNIST, plain."""
    images, labels = image_set()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encode(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encode(labels))
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_plain_and_gzipped(folder, zipped):
    if zipped:
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    found, wanted = js.load_digits(folder), image_set()
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.images.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images-idx3", lambda content: None, "is missing, plain and as train-images-idx3-ubyte.gz"),
        ("labels-idx1", lambda content: None, "is missing, plain and as train-labels-idx1-ubyte.gz"),
        ("images-idx3", lambda content: b"\x00\x00\x0d\x03" + content[4:], r"with 0 0 8 .* got \[0, 0, 13, 3\]"),
        ("images-idx3", lambda content: b"", r"must begin with 0 0 8 .* got \[\]"),
        ("images-idx3", lambda content: content[:9], "is truncated: 9 bytes, and its header alone has 16"),
        ("images-idx3", lambda content: content[:-1], r"is truncated: 47055 bytes instead of 47056"),
        ("labels-idx1", lambda content: content + b"\x00", "is too long: 69 bytes instead of 68"),
        ("images-idx3", lambda content: encode(np.zeros((60, 14, 14))), r"of 28 x 28 pixels, got .*\(60, 14, 14\)"),
        ("images-idx3", lambda content: encode(np.zeros(60)), r"images of 28 x 28 pixels, got the shape \(60,\)"),
        ("labels-idx1", lambda content: encode(np.zeros(59)), r"one label for each of the 60 images .* \(59,\)"),
        ("labels-idx1", lambda content: encode(np.full(60, 11)), r"labels in \[0, 9\], got 11"),
    ],
)  # fmt: skip
def test_malformed_idx_files_are_refused_by_name(folder, name, change, message):
    path = folder / f"train-{name}-ubyte"
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        js.load_digits(folder)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_broken_gzip_file_is_refused_by_name(tmp_path):
    whole = gzip.compress(encode(image_set().labels))
    for content in (b"no gzip", whole[:-12], whole[:12]):
        path = tmp_path / "x-idx1-ubyte.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x-idx1-ubyte.gz cannot be read"):
            idx.read(path)


def test_the_embedded_digits_are_there_with_their_attribution():
    images, labels = js.load_digits()
    assert images.dtype == labels.dtype == np.uint8
    counts = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert np.bincount(labels).tolist() == counts
    assert images[:, 6:22, 6:22].mean() > 10 * images[:, :4].mean() > 0  # digits are in the middle
    text = (digits.importlib.resources.files("jaxsign.systems.digits") / "mnist_10k.txt").read_text()
    assert "CC BY-SA 3.0" in text
    assert "Burges" in text


def test_classes_with_too_few_images_are_named():
    problem = js.DigitsProblem(classes=(5, 1), n_train=1000, n_val=500, n_test=300)
    with pytest.raises(ValueError, match="= 900 images of the digit 5 are needed, got 863 in the embedded image set"):
        js.load_digits(problem=problem)


@pytest.fixture(scope="module")
def draw():
    """`(seed, scale, noise) -> (Draw, test noise)`, compiled once."""

    @jax.jit
    def of(key, scale, noise, shared):
        hyper = js.DigitsHyper(scale, noise)
        task = js.noisy_digits(PROBLEM)
        test = task.sample_test(js.stream(key, "test"), hyper, shared)
        return task.sample(js.stream(key, "data"), hyper, shared), test

    return lambda seed, scale=1.0, noise=1.0, shared=None: of(
        jax.random.key(seed), scale, noise, image_set() if shared is None else shared
    )


def test_splits_are_balanced_disjoint_and_of_their_classes(draw):
    images, labels = image_set()
    order = []
    for seed in range(40):
        found, _ = draw(seed)
        index = np.rint(np.asarray(found.images)[:, 14, 14] * 255).astype(int)
        assert len(set(index.tolist())) == 12  # no image in two splits, none twice
        np.testing.assert_array_equal(labels[index], np.array([3, 7])[np.asarray(found.labels)])
        np.testing.assert_allclose(found.images, images[index] / np.float32(255), rtol=1e-6)
        for part in np.split(np.asarray(found.labels), [4, 6]):
            assert np.bincount(part).tolist() == [len(part) // 2] * 2
        order.append(index.tolist())
    assert len({tuple(one) for one in order}) == 40  # seeds differ
    assert {i for one in order for i in one[:4]} == {3, 7, *range(13, 60, 10), *range(17, 60, 10)}  # each is drawn


def test_noise_is_in_the_border_only_and_standard_there(draw):
    mask = digits.border()
    for row in range(28):
        for column in range(28):
            assert mask[row, column] == (min(row, column) <= 4 or max(row, column) >= 23)
    drawn = [draw(seed) for seed in range(8)]
    parts = [np.concatenate([np.asarray(one.noise) for one, _ in drawn]), np.concatenate([t for _, t in drawn])]
    for noise in parts:
        assert not noise[:, ~mask].any()
        inside = noise[:, mask]
        assert abs(inside.mean()) < 4 / inside.size**0.5
        assert inside.std() == pytest.approx(1, abs=4 / (2 * inside.size) ** 0.5)
    assert len(np.unique(np.concatenate([part[:, mask].ravel() for part in parts]))) > 0.99 * sum(
        part[:, mask].size for part in parts
    )


def test_noise_on_the_whole_image_is_standard_on_every_pixel_and_the_same_in_the_border():
    def drawn(place):
        task = js.noisy_digits(dataclasses.replace(PROBLEM, noise_on=place))
        hyper = js.DigitsHyper(scale=0.5)

        @jax.jit
        def run(key):
            draw = task.sample(js.stream(key, "data"), hyper, image_set())
            test = task.sample_test(js.stream(key, "test"), hyper, None)
            return draw.noise, test, task.describe(draw, test, hyper)

        return jax.tree.map(np.asarray, run(jax.random.key(4)))

    mask = digits.border()
    (train, test, constants), (some, others, known) = drawn("image"), drawn("border")
    for whole, part in ((train, some), (test, others)):
        np.testing.assert_array_equal(np.where(mask, whole, 0), part)
        inside = whole[:, ~mask]
        assert abs(inside.mean()) < 4 / inside.size**0.5
        assert inside.std() == pytest.approx(1, abs=4 / (2 * inside.size) ** 0.5)
    # The law is of noise outside the digits: there is none here.
    assert np.isnan([constants["sign_step_error"], constants["gd_step_error"]]).all()
    assert np.isfinite([known["sign_step_error"], known["gd_step_error"], constants["class_mean_error"]]).all()


def test_noise_in_one_split_alone_is_that_of_the_noisy_and_the_clean_images():
    def drawn(noise, in_test=None):
        task = js.noisy_digits(dataclasses.replace(PROBLEM, test_noise=in_test))
        hyper = js.DigitsHyper(scale=0.5, noise=noise)

        @jax.jit
        def run(key):
            draw = task.sample(js.stream(key, "data"), hyper, image_set())
            test = task.sample_test(js.stream(key, "test"), hyper, None)
            return task.prepare(draw, test, None, hyper, None)[:2]

        return jax.tree.map(np.asarray, run(jax.random.key(4)))

    noisy, clean = drawn(1.0), drawn(0.0)
    assert not np.array_equal(noisy[0].x, clean[0].x)
    for noise, in_test, (train, held) in (
        (1.0, 1.0, (noisy, noisy)), (0.0, 0.0, (clean, clean)), (0.0, 1.0, (clean, noisy)), (1.0, 0.0, (noisy, clean)),
    ):  # fmt: skip
        found = drawn(noise, in_test)
        jax.tree.map(np.testing.assert_array_equal, found, (train[0], held[1]))


def test_the_law_of_a_first_step_knows_the_noise_of_test_images():
    def law(noise=1.0, in_test=None):
        task = js.noisy_digits(dataclasses.replace(PROBLEM, test_noise=in_test))
        hyper = js.DigitsHyper(scale=0.2, noise=noise)

        @jax.jit
        def described(data, test):
            draw = task.sample(data, hyper, image_set())
            return task.describe(draw, task.sample_test(test, hyper, None), hyper)

        constants = described(jax.random.key(1), jax.random.key(2))
        return [float(constants[f"{name}_step_error"]) for name in ("sign", "gd")]

    both, same, less = law(), law(in_test=1.0), law(in_test=0.25)
    assert both == same
    # Margins are 4 times as large in noise of a quarter of the size.
    quantiles = [scipy.stats.norm.isf(errors) for errors in (both, less)]
    np.testing.assert_allclose(quantiles[1], 4 * quantiles[0], rtol=1e-4)
    assert law(in_test=0.0) == [0.0, 0.0]
    assert np.isnan(law(0.0, 1.0)).all()


def test_scales_share_their_draws(draw):
    (one, test), (other, same) = draw(3), draw(3, scale=0.25, noise=2.0)
    np.testing.assert_allclose(other.images, 0.25 * one.images, rtol=1e-6)
    np.testing.assert_allclose(other.noise, 2 * one.noise, rtol=1e-6)
    np.testing.assert_allclose(same, 2 * test, rtol=1e-6)
    np.testing.assert_array_equal(other.labels, one.labels)


def test_a_class_that_is_too_small_gives_nan_and_no_wrong_labels(draw):
    images, labels = image_set()
    found, _ = draw(0, shared=digits.DigitImages(images, np.where(labels == 7, 6, labels).astype(np.uint8)))
    bad = np.isnan(np.asarray(found.images)).all(axis=(1, 2))
    np.testing.assert_array_equal(bad, np.asarray(found.labels) == 1)


def test_patches_are_those_by_hand(draw):
    found, test = draw(1)
    train, held = digits.splits(found, test, PROBLEM)
    noisy = np.asarray(found.images) + np.concatenate([found.noise, test])
    whole = np.concatenate([train.x, held.val.x, held.test.x])
    for image, patches in zip(noisy, whole):
        for token, patch in enumerate(patches):
            row, column = 7 * (token // 4), 7 * (token % 4)
            np.testing.assert_array_equal(patch, image[row : row + 7, column : column + 7].ravel())
    assert [len(part.y) for part in (train, held.val, held.test)] == [4, 2, 6]


def test_a_missing_or_too_small_image_set_is_refused():
    task = js.noisy_digits(PROBLEM)
    for shared, message in (
        (None, "noisy digits need shared=js.load_digits"),
        (image_set(5), "6 images of each class"),
    ):
        with pytest.raises(ValueError, match=message):
            task.sample(jax.random.key(0), js.DigitsHyper(), shared)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": (3,)}, r"classes must be a tuple of 2 to 10 different ints in \[0, 9\], got classes=\(3,\)"),
        ({"classes": (3, 3)}, "2 to 10 different"),
        ({"classes": (3, 12)}, r"got classes=\(3, 12\)"),
        ({"classes": (3, 7.5)}, r"got classes=\(3, 7.5\)"),
        ({"classes": "37"}, "got classes='37'"),
        ({"n_train": 101}, "n_train must be a multiple of the 2 classes, got n_train=101"),
        ({"n_val": 0}, "n_val must be an int >= 1, got n_val=0"),
        ({"model": "cnn"}, "unknown model 'cnn'"),
        ({"noise_on": "corner"}, "unknown noise_on 'corner'.*legal: 'border', 'image'"),
        ({"test_noise": -1.0}, r"test_noise must be a finite number in \[0, inf\), got test_noise=-1.0"),
        ({"patch": 5}, "patch must divide 28.*got patch=5"),
        ({"width": 10, "heads": 4}, "width must be a multiple of heads=4, got width=10"),
    ],
)
def test_bad_problems_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        js.DigitsProblem(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, r"scale must be a finite number in \(0, inf\), got scale=0.0"),
        ({"scale": [1.0, -2.0]}, "got scale=-2.0"),
        ({"noise": -1.0}, r"noise must be a finite number in \[0, inf\), got noise=-1.0"),
        ({"sigma_0": float("nan")}, "got sigma_0=nan"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        js.noisy_digits(PROBLEM).validate(js.DigitsHyper(**fields))
    with pytest.raises(ValueError, match=r"hyper must be a js\.DigitsHyper"):
        js.noisy_digits(PROBLEM).validate(js.RegressionHyper())
    with pytest.raises(ValueError, match=r"problem must be a js\.DigitsProblem"):
        js.noisy_digits(js.RegressionProblem())
