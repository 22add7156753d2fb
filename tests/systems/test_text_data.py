"""Noisy text: files and what is wrong with them, words, balanced disjoint splits, a run's own vocabulary, the noise."""

import collections
import dataclasses
import lzma

import jax
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.text import corpus as corpora
from jaxsign.systems.text import data
from jaxsign.systems.text.corpus import Line, encode, tokens
from jaxsign.systems.text.problem import SOURCES

SMALL = js.TextProblem(n_train=8, n_val=4, n_test=6, length=5, vocabulary=12, injected=3, width=4)


def made_up(count=60, seed=0, evaluation=()):
    """Sentences of 1 to 7 of 30 words; the last word of each tells its index."""
    rng = np.random.default_rng(seed)
    names = ["".join(chr(97 + int(digit)) for digit in f"{i:02d}") for i in range(30)]
    lines = []
    for i in range(count):
        words = rng.choice(names, rng.integers(1, 7), p=np.arange(30, 0, -1) / 465).tolist()
        lines.append(Line(" ".join(words), i % 2, SOURCES[i % 3], i in evaluation))
    return lines


def spelled(shared, row):
    return [bytes(shared.spelling[place - 1]).rstrip(b"\0").decode() for place in row if place]


def test_words_are_runs_of_letters():
    assert tokens("Don't STOP'  'quoted' rock'n'roll café x-ray A1b ''") == [
        "don't", "stop", "quoted", "rock'n'roll", "caf", "x", "ray", "a", "b",
    ]  # fmt: skip
    assert tokens("... 10/10 !") == tokens("") == ["<none>"]


def test_the_embedded_sentences_are_there_with_their_attribution():
    shared = js.load_text()
    assert shared.words.shape == (2979, 16)
    assert np.bincount(shared.source).tolist() == [997, 986, 996]
    assert not shared.evaluation.any()
    folder = corpora.importlib.resources.files("jaxsign.systems.text")
    rows = lzma.decompress((folder / "sentences.tsv.xz").read_bytes()).decode().splitlines()[1:]
    for place in (0, 1234, 2978):
        source, label, text = rows[place].split("\t")
        assert (SOURCES[shared.source[place]], shared.labels[place]) == (source, int(label))
        assert spelled(shared, shared.words[place]) == tokens(text)[:16]
    text = (folder / "sentences.txt").read_text()
    assert "CC BY 4.0" in text
    assert "Kotzias" in text


HEADER = "sentence\tlabel\n"


def table(folder, train, dev="a fine film\t1\n"):
    for name, content in (("train", train), ("dev", dev)):
        (folder / f"{name}.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("header", [HEADER, HEADER.replace("\n", "\r\n"), ""])
def test_sst2_is_read_with_and_without_a_header(tmp_path, header):
    table(tmp_path, f'{header}hide "new" secretions \t0\ncontains no wit\t0\r\nlovely \t1', f"{header}a fine film\t1\n")
    shared = js.load_text(tmp_path)
    assert [spelled(shared, row) for row in shared.words] == [
        ["hide", "new", "secretions"], ["contains", "no", "wit"], ["lovely"], ["a", "fine", "film"],
    ]  # fmt: skip
    assert shared.labels.tolist() == [0, 0, 1, 1]
    assert shared.evaluation.tolist() == [False, False, False, True]
    assert {SOURCES[place] for place in shared.source} == {"sst2"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (HEADER, "train.tsv line 2: a sentence is expected, got the end of the file"),
        ("", "train.tsv line 1: a sentence is expected"),
        (HEADER + "good\t1\nbad 0\n", "train.tsv line 3: must be sentence<TAB>label, got 0 tabs"),
        ("a\tb\t1\n", "train.tsv line 1: must be sentence<TAB>label, got 2 tabs"),
        (HEADER + "good\t1\n\nbad\t0\n", "train.tsv line 3: must be sentence<TAB>label, got 0 tabs"),
        ("label\tsentence\n", "train.tsv line 1: label must be 0 or 1, got 'sentence'"),
        (HEADER + "good\t2\n", "train.tsv line 2: label must be 0 or 1, got '2'"),
        (HEADER + " \t1\n", "train.tsv line 2: the sentence is empty"),
        (HEADER.encode() + b"good\t1\ncaf\xe9\t1\n", "train.tsv line 3: not UTF-8 from byte 3 on"),
    ],
)
def test_a_malformed_table_is_refused_by_file_and_line(tmp_path, train, message):
    table(tmp_path, train)
    with pytest.raises(ValueError, match=message) as refusal:
        js.load_text(tmp_path)
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def reviews(folder):
    for part in ("train", "test"):
        for name, text in (("neg", "a bore<br /><br />indeed"), ("pos", "a\ndelight")):
            place = folder / "aclImdb" / part / name
            place.mkdir(parents=True)
            (place / "0_1.txt").write_text(text)
            (place / "urls.html").write_text("not read")


@pytest.mark.parametrize("inner", ["", "aclImdb"])
def test_imdb_is_read_from_its_folders(tmp_path, inner):
    reviews(tmp_path)
    shared = js.load_text(tmp_path / inner)
    assert [spelled(shared, row) for row in shared.words] == [["a", "bore", "indeed"], ["a", "delight"]] * 2
    assert shared.labels.tolist() == [0, 1, 0, 1]
    assert shared.evaluation.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/pos/0_1.txt", b"fine\n\xff\n", r"0_1.txt line 2: not UTF-8 from byte 0 on"),
        ("test/neg/0_1.txt", b" \n", r"0_1.txt line 1: the review is empty"),
        ("train/neg/0_1.txt", None, r"train/neg must hold reviews as \*.txt, got none"),
    ],
)
def test_a_malformed_review_is_refused_by_file_and_line(tmp_path, name, content, message):
    reviews(tmp_path)
    path = tmp_path / "aclImdb" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        js.load_text(tmp_path)
    assert "\n" not in str(refusal.value)


def test_other_directories_and_too_few_sentences_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir must hold train.tsv and dev.tsv \(SST-2\) or aclImdb/train/pos"):
        js.load_text(tmp_path)
    table(tmp_path, "good\t1\nbad\t0\n")
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(ValueError, match=r"dev.tsv cannot be read: No such file"):
        js.load_text(tmp_path)
    with pytest.raises(ValueError, match=r"\(n_train\)/2 = 1500 negative sentences are needed, got 1491 in the embedd"):
        js.load_text(problem=js.TextProblem(n_train=3000))
    with pytest.raises(
        ValueError, match=r"\(n_train \+ n_val \+ n_test\)/2 = 1650 negative .* got 1491 in the embedded"
    ):
        js.load_text(problem=js.TextProblem(n_train=2000))
    with pytest.raises(ValueError, match=r"\(n_test\)/2 = 500 negative .* got 497 .* with held_out='yelp'"):
        js.load_text(problem=js.TextProblem(n_train=200, held_out="yelp", n_test=1000))
    with pytest.raises(ValueError, match=r"\(n_test\)/2 = 450 .* got 0 .* with held_out='sst2'"):
        js.load_text(problem=js.TextProblem(n_train=200, held_out="sst2", n_test=900))


@pytest.mark.parametrize("held_out", ["none", "amazon"])
@pytest.mark.parametrize("evaluation", [(), range(20, 60)])
def test_splits_are_balanced_disjoint_and_from_where_they_may_be(held_out, evaluation):
    shared = encode(made_up(evaluation=evaluation), 5)
    problem = js.TextProblem(n_train=8, n_val=4, n_test=6, length=5, held_out=held_out)
    seen, choose = collections.Counter(), jax.jit(data.choose, static_argnums=2)
    for seed in range(20):
        splits, enough = choose(jax.random.key(seed), shared, problem)
        assert bool(enough)
        drawn = np.concatenate([np.asarray(split) for split in splits.values()])
        assert len(set(drawn.tolist())) == 18
        seen.update(drawn.tolist())
        for name, split in splits.items():
            assert shared.labels[np.asarray(split)].mean() == 0.5
            source = {SOURCES[place] for place in shared.source[np.asarray(split)]}
            assert held_out == "none" or (source == {"amazon"}) == (name == "test")
            if evaluation:
                assert shared.evaluation[np.asarray(split)].all() == (name != "train")
                assert shared.evaluation[np.asarray(split)].any() == (name != "train")
    assert len(seen) > 40
    nested = choose(jax.random.key(0), shared, js.TextProblem(n_train=4, n_val=4, n_test=6, held_out=held_out))
    first = choose(jax.random.key(0), shared, problem)
    assert set(nested[0]["train"].tolist()) < set(first[0]["train"].tolist())


def test_the_vocabulary_is_that_of_the_training_split_alone():
    lines = made_up()
    shared = encode(lines, 5)
    drawn = jax.jit(lambda key: data.sample(key, SMALL, js.TextHyper(), shared))
    first = jax.random.split(js.stream(jax.random.key(3), "data"), 5)[0]
    splits, _ = jax.jit(lambda key: data.choose(key, shared, SMALL))(first)
    draw = drawn(js.stream(jax.random.key(3), "data"))
    rows = [tokens(lines[i].text)[:5] for i in splits["train"].tolist()]
    times = collections.Counter(word for row in rows for word in row)
    kept = min(12, len(times))
    assert int(draw.known) == kept
    found = {}
    for row, own in zip(rows, np.asarray(draw.train.tokens)):
        for word, token in zip(row, own):
            assert found.setdefault(word, int(token)) == token
    assert sorted(token for token in found.values() if token) == list(range(1, kept + 1))
    ranked = sorted((token, times[word]) for word, token in found.items() if token)
    assert [count for _, count in ranked] == sorted(times.values(), reverse=True)[:kept]
    held = [tokens(lines[i].text)[:5] for name in ("val", "test") for i in splits[name].tolist()]
    for row, own in zip(held, np.asarray(draw.held.tokens)):
        assert [found.get(word, 0) for word in row] == own[: len(row)].tolist()
    assert any(word not in times for row in held for word in row)  # an unknown word is 0
    # Other words in the sentences that are not trained on change no token of the training sentences.
    other = [
        line if i in splits["train"].tolist() else line._replace(text="aa bb cc dd " * 3)
        for i, line in enumerate(lines)
    ]
    changed = encode([*other, *(Line(line.text, 1, "imdb", True) for line in lines)], 5)  # the same words are numbered
    corpus = shared._replace(words=changed.words[: len(lines)])
    again = jax.jit(lambda key: data.sample(key, SMALL, js.TextHyper(), corpus))(js.stream(jax.random.key(3), "data"))
    np.testing.assert_array_equal(again.train.tokens, draw.train.tokens)
    assert int(again.known) == kept


def test_injected_words_are_fresh_known_and_know_no_label():
    shared = encode(made_up(), 5)
    task = js.noisy_text(SMALL)

    @jax.jit
    def prepared(seed, labels):
        key = jax.random.key(seed)
        draw = task.sample(js.stream(key, "data"), js.TextHyper(), shared._replace(labels=labels))
        test = task.sample_test(js.stream(key, "test"), js.TextHyper(), None)
        trained, held, _ = task.prepare(draw, test, None, None, None)
        return trained.texts, held.texts, draw.known, test.lots

    train, held, known, _ = prepared(0, shared.labels)
    for texts in (train, held):
        words = np.asarray(texts.tokens[:, 5:])
        assert ((words >= 1) & (words <= int(known))).all()
        assert np.asarray(texts.mask[:, 5:]).all()
        assert len({tuple(row) for row in words.tolist()}) > 6  # fresh for each sentence
    assert not np.array_equal(train.tokens[:8, 5:], held.tokens[:8, 5:])
    flipped = prepared(0, 1 - shared.labels)
    for found, usual in zip(flipped[:2], (train, held)):
        if int(flipped[2]) == int(known):
            np.testing.assert_array_equal(found.tokens[:, 5:], usual.tokens[:, 5:])
    # The numbers that choose the words come from keys that no label reaches: the program for them reads no label.
    lots = jax.make_jaxpr(lambda key: task.sample_test(key, js.TextHyper(), None).lots)(jax.random.key(0))
    assert len(lots.jaxpr.invars) == 1
    counts = np.zeros((2, 13))
    for seed in range(200):
        train, _, known, _ = prepared(seed, shared.labels)
        if int(known) == 12:
            for label in (0, 1):
                own = np.asarray(train.tokens)[np.asarray(train.y) == 2 * label - 1, 5:]
                counts[label] += np.bincount(own.ravel(), minlength=13)
    assert counts[:, 0].sum() == 0
    share = counts[:, 1:] / counts[:, 1:].sum(1, keepdims=True)
    np.testing.assert_allclose(share, 1 / 12, atol=0.02)  # uniform, whatever the label


def test_words_by_frequency_are_injected_as_often_as_they_stand_in_training_sentences():
    shared = encode(made_up(), 5)
    problem = dataclasses.replace(SMALL, injected_law="frequency")
    task = js.noisy_text(problem)

    @jax.jit
    def prepared(seed):
        key = jax.random.key(seed)
        draw = task.sample(js.stream(key, "data"), js.TextHyper(), shared)
        test = task.sample_test(js.stream(key, "test"), js.TextHyper(), None)
        trained, held, _ = task.prepare(draw, test, None, None, None)
        return trained.texts.tokens, held.texts.tokens, test.lots, draw.known

    found, expected = np.zeros((2, 2, 13))
    for seed in range(200):
        train, held, lots, known = (np.asarray(part) for part in prepared(seed))
        own = np.sort(train[:, :5][train[:, :5] > 0])  # every training word by its token: word number k of this list
        by_hand = own[np.minimum((lots * lots.dtype.type(own.size)).astype(int), own.size - 1)]
        np.testing.assert_array_equal(held[:, 5:], by_hand)
        assert own.max() <= known
        for place, words in enumerate((train[:, 5:], held[:, 5:])):
            found[place] += np.bincount(words.ravel(), minlength=13)
            expected[place] += words.size * np.bincount(own, minlength=13) / own.size
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max()))
    assert expected[0].max() > 1.5 * expected[0][1:].mean()  # frequent words are injected more often than others
    sampled = jax.jit(lambda key: [data.sample(key, one, js.TextHyper(), shared) for one in (SMALL, problem)])
    clean, other = sampled(js.stream(jax.random.key(0), "data"))
    np.testing.assert_array_equal(clean.train.tokens[:, :5], other.train.tokens[:, :5])  # comparisons are paired


def test_words_in_one_split_alone_are_those_of_the_noisy_and_the_clean_problem():
    shared = encode(made_up(), 5)

    def drawn(**injected):
        problem = dataclasses.replace(SMALL, **injected)
        task = js.noisy_text(problem)

        @jax.jit
        def run(key):
            draw = task.sample(js.stream(key, "data"), js.TextHyper(), shared)
            test = task.sample_test(js.stream(key, "test"), js.TextHyper(), None)
            trained, held, _ = task.prepare(draw, test, None, None, None)
            return trained.texts, held.texts, task.describe(draw, test, js.TextHyper())

        return jax.tree.map(np.asarray, run(jax.random.key(2)))

    noisy, clean = drawn(), drawn(injected=0)
    assert noisy[0].tokens.shape == (8, 8)
    assert clean[0].tokens.shape == (8, 5)
    for injected, in_test, (train, held) in (
        (3, 3, (noisy, noisy)), (0, 0, (clean, clean)), (0, 3, (clean, noisy)), (3, 0, (noisy, clean)),
    ):  # fmt: skip
        found = drawn(injected=injected, test_injected=in_test)
        for one, other in ((found[0], train[0]), (found[1], held[1])):
            jax.tree.map(np.testing.assert_array_equal, one, other)
        jax.tree.map(np.testing.assert_array_equal, found[2], train[2])


def test_labels_are_flipped_in_training_alone_and_paired():
    shared = encode(made_up(), 5)
    sample = jax.jit(lambda key, p: data.sample(key, SMALL, js.TextHyper(label_noise=p), shared))
    flips = {p: [] for p in (0.0, 0.25, 0.5, 1.0)}
    for seed in range(50):
        key = js.stream(jax.random.key(seed), "data")
        clean = sample(key, 0.0)
        for p in flips:
            noisy = sample(key, p)
            flips[p].append(np.asarray(noisy.train.y != clean.train.y))
            np.testing.assert_array_equal(noisy.held.y, clean.held.y)
            np.testing.assert_array_equal(noisy.train.tokens, clean.train.tokens)
    rates = [np.mean(values) for values in flips.values()]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 1], atol=0.08)
    assert (np.asarray(flips[0.25]) <= np.asarray(flips[0.5])).all()


def test_noise_on_embedded_words_is_fresh_and_of_its_size():
    shared = encode(made_up(), 5)
    problem = js.TextProblem(n_train=8, n_val=4, n_test=6, length=5, width=64, embedding_noise=0.3)
    drawn = jax.jit(lambda key: [data.sample(key, one, js.TextHyper(), shared).noise for one in (problem, SMALL)])
    noise, none = drawn(jax.random.key(0))
    noise = np.asarray(noise)
    assert noise.shape == (8, 5, 64)
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert none is None
    held = np.asarray(data.embedding_noise(jax.random.key(1), problem, 10))
    assert abs(np.corrcoef(held[:8].ravel(), noise.ravel())[0, 1]) < 0.06


def test_what_cannot_be_drawn_is_refused_or_nan():
    with pytest.raises(ValueError, match=r"noisy text needs shared=js.load_text\(\), got shared=None"):
        data.sample(jax.random.key(0), SMALL, js.TextHyper(), None)
    with pytest.raises(ValueError, match="= 18 sentences are needed, got 10 in all"):
        data.sample(jax.random.key(0), SMALL, js.TextHyper(), encode(made_up(10), 5))
    with pytest.raises(
        ValueError, match=r"length must be that of shared=js.load_text\(None, problem\), 4, got length=5"
    ):
        data.sample(jax.random.key(0), SMALL, js.TextHyper(), encode(made_up(), 4))
    unbalanced = encode([line._replace(label=1) for line in made_up()], 5)
    assert np.isnan(data.sample(jax.random.key(0), SMALL, js.TextHyper(), unbalanced).train.y).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_train": 7}, "n_train must be even, half of each sentiment, got n_train=7"),
        ({"n_val": 0}, "n_val must be an int >= 1, got n_val=0"),
        ({"injected": -1}, "injected must be an int >= 0, got injected=-1"),
        ({"test_injected": -1}, "test_injected must be an int >= 0, got test_injected=-1"),
        ({"length": 2.0}, "length must be an int >= 1, got length=2.0"),
        ({"kernel": "softmx"}, "unknown kernel 'softmx'"),
        ({"model": "bert"}, "unknown model 'bert'"),
        ({"held_out": "imbd"}, "unknown held_out 'imbd'"),
        ({"width": 5, "heads": 2}, "width must be a multiple of heads=2, got width=5"),
        ({"embedding_noise": -0.1}, r"embedding_noise must be a finite number in \[0, inf\), got embedding_noise=-0.1"),
        ({"embedding_noise": 0.1, "model": "two_layer"}, "embedding_noise must be 0 for the model 'two_layer'"),
    ],
)
def test_bad_problems_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as refusal:
        js.TextProblem(**fields)
    assert "\n" not in str(refusal.value)


def test_bad_numbers_are_refused_in_one_line():
    task = js.noisy_text(SMALL)
    for fields, message in (
        ({"label_noise": 1.5}, r"label_noise must be a finite number in \[0, 1\], got label_noise=1.5"),
        ({"sigma_0": float("nan")}, r"sigma_0 must be a finite number in \[0, inf\), got sigma_0=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            task.validate(js.TextHyper(**fields))
    with pytest.raises(ValueError, match=r"hyper must be a js\.TextHyper"):
        task.validate(js.DigitsHyper())
    with pytest.raises(ValueError, match=r"problem must be a js\.TextProblem"):
        js.noisy_text(js.DigitsProblem())
