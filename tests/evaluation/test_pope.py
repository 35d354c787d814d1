"""POPE's files are read as they are, and its three rules are counted as worked out by hand."""

import json
from collections import Counter
from pathlib import Path

import pytest
from answered import answered, failed

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks import pope
from causalmm.evaluation.benchmarks.registry import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "pope"
POPE = BENCHMARKS["pope"]
SETS = [
    (data, split)
    for data in ("coco", "aokvqa", "gqa")
    for split in ("random", "popular", "adversarial")
]
ROWS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a cup in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a bed in the image?", "label": "yes"},
    {"question_id": 4, "image": "b.jpg", "text": "Is there a car in the image?", "label": "no"},
]


def write(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    return POPE.read([write(tmp_path / "coco_pope_random.json")])


def by_rule(report, name="coco/random"):
    return {score.rule: score for score in report.scores if score.name == name}


def values(score):
    return {name: each.value for name, each in score.metrics.items()}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real POPE files are not here")
@pytest.mark.parametrize(("dataset", "split"), SETS)
def test_a_real_file(dataset, split):
    questions = POPE.read([REAL / f"{dataset}_pope_{split}.json"], images=Path("pictures"))
    assert len(questions) == 3000
    assert Counter(each.label for each in questions) == {"yes": 1500, "no": 1500}
    assert set(Counter(each.image for each in questions).values()) == {6}
    assert [each.id for each in questions] == [f"{dataset}/{split}/{n}" for n in range(1, 3001)]
    first = questions[0]
    assert first.path == str(Path("pictures") / first.image)
    assert first.prompt.endswith(" in the image? Please answer this question with one word.")
    assert first.choices == ("yes", "no")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real POPE files are not here")
def test_real_files_answered_right_and_answered_yes():
    questions = POPE.read([REAL / f"coco_pope_{split}.json" for split in ("random", "popular")])
    perfect = POPE.score(questions, answered(questions, lambda each: each.label.capitalize()))
    assert [score.name for score in perfect.scores[::3]] == ["coco/random", "coco/popular", "all"]
    assert all(score.metrics["accuracy"].value == 100 for score in perfect.scores)
    assert (perfect.questions, perfect.images) == (6000, 500)
    always = POPE.score(questions, answered(questions, lambda each: "Yes, there is."))
    for score in always.scores:
        half = {"accuracy": 50, "precision": 50, "recall": 100, "yes ratio": 100}
        assert values(score) == pytest.approx(half | {"F1": 200 / 3})


def test_the_suffix_is_an_option(tmp_path):
    file = write(tmp_path / "coco_pope_random.json")
    assert POPE.read([file], suffix="")[0].prompt == "Is there a cup in the image?"
    assert POPE.read([file], suffix=" Yes or no?")[0].prompt.endswith("image? Yes or no?")


def test_dataset_and_split_are_given_where_the_name_does_not_tell(tmp_path):
    files = [write(tmp_path / "mine.jsonl"), write(tmp_path / "coco_pope_random.json")]
    assert {each.facts["set"] for each in POPE.read(files, dataset="toy", split="odd")} == {
        "toy/odd",
        "coco/random",
    }
    with pytest.raises(RequestError, match=r"mine.jsonl is not named DATASET_pope_SPLIT.json"):
        POPE.read(files)


def test_the_three_rules_on_one_table(questions):
    # label:               yes      no          yes      no
    report = POPE.score(questions, answered(questions, ["Yes", "not sure", "NO", "Eyes, yes"]))
    rules = by_rule(report)
    assert list(rules) == ["strict", "official", "released"]
    strict = {"tp": 1, "fp": 1, "tn": 0, "fn": 1, "unreadable": 1, "failed": 0}
    assert rules["strict"].counts == strict
    assert values(rules["strict"]) == pytest.approx(
        {"accuracy": 25, "precision": 50, "recall": 50, "F1": 50, "yes ratio": 200 / 3}
    )
    # "NO" is no no, "not sure" is one.
    official = {"tp": 2, "fp": 1, "tn": 1, "fn": 0, "unreadable": 0, "failed": 0}
    assert rules["official"].counts == official
    assert values(rules["official"]) == pytest.approx(
        {"accuracy": 75, "precision": 200 / 3, "recall": 100, "F1": 80, "yes ratio": 75}
    )
    released = {"tp": 1, "fp": 1, "tn": 1, "fn": 1, "unreadable": 0, "failed": 0}
    assert rules["released"].counts == released
    assert report.unreadable == {"coco/random/2": "not sure"}
    assert "1 answer cannot be read (first: coco/random/2, 'not sure')" in report.table()


def test_a_failed_answer_is_neither_yes_nor_no(questions):
    answers = failed(answered(questions, ["yes", "no", "yes", "no"]), "coco/random/3")
    report = POPE.score(questions, answers)
    for score in by_rule(report).values():
        assert score.counts == {"tp": 1, "fp": 0, "tn": 2, "fn": 0, "unreadable": 0, "failed": 1}
        # It is wrong all the same: a cup and a bed were to be found.
        assert (score.metrics["accuracy"].value, score.metrics["recall"].value) == (75, 50)
        assert score.metrics["yes ratio"].value == pytest.approx(100 / 3)
    assert report.failed == {"coco/random/3": "out of memory"}
    assert "1 answer failed (first: coco/random/3, 'out of memory')" in report.table()


def test_nothing_over_nothing_is_0_with_a_note(questions):
    report = POPE.score(questions, answered(questions, ["no"] * 4))
    score = by_rule(report)["strict"]
    assert (score.metrics["precision"].value, score.metrics["F1"].value) == (0, 0)
    assert score.notes == ("coco/random, strict: precision is 0 / 0, shown as 0",)
    assert score.notes[0] in report.table()


def test_sets_are_counted_apart_and_together(tmp_path):
    files = [write(tmp_path / f"coco_pope_{split}.json") for split in ("random", "popular")]
    questions = POPE.read(files)
    answers = answered(questions, ["yes", "no", "yes", "no", "yes", "yes", "yes", "yes"])
    report = POPE.score(questions, answers)
    accuracies = {
        name: by_rule(report, name)["strict"].metrics["accuracy"].value
        for name in ("coco/random", "coco/popular", "all")
    }
    assert accuracies == {"coco/random": 100, "coco/popular": 50, "all": 75}


def test_missing_answers_are_counted_and_the_first_is_named(questions):
    answers = answered(questions, ["yes"] * 4)
    del answers["coco/random/2"], answers["coco/random/4"]
    with pytest.raises(
        RequestError, match=r"2 of 4 questions have no answer \(first: coco/random/2"
    ):
        POPE.score(questions, answers)


def test_answers_to_another_prompt_or_image_are_refused(questions, tmp_path):
    answers = answered(questions, ["yes"] * 4)
    bare = POPE.read([tmp_path / "coco_pope_random.json"], suffix="")
    with pytest.raises(RequestError, match="the answer to coco/random/1 is about another prompt"):
        POPE.score(bare, answers)
    write(tmp_path / "coco_pope_random.json", [row | {"image": "c.jpg"} for row in ROWS])
    with pytest.raises(RequestError, match="another image"):
        POPE.score(POPE.read([tmp_path / "coco_pope_random.json"]), answers)


def lines(*, row=None, at=1, **changes):
    """The file's text with one row changed; a change to None takes the field away."""
    rows = [dict(each) for each in ROWS]
    rows[at] = row or {
        name: value for name, value in (rows[at] | changes).items() if value is not None
    }
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


WHOLE = lines(at=0, label="yes")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (lines(question_id=None), "line 2 has no question_id"),
        (lines(question_id=[2]), r"line 2 has question_id \[2\]: expected text or a whole number"),
        (lines(question_id=1), "two questions have the id 'coco/random/1'"),
        (lines(image=None), "line 2 has no image"),
        (lines(text=7), "line 2 has text 7: expected text"),
        (lines(label="maybe"), "line 2 has label 'maybe': expected yes or no"),
        (lines(row=["no", "object"]), "line 2 is not a JSON object"),
        (b"[]\n" + WHOLE, "line 1 is not a JSON object"),
        (WHOLE[:-20], r"line 4 is not JSON \(.*\): is the file cut short\?"),
        (b"{\n" + WHOLE, r"line 1 is not JSON \([^()]*\(char 1\)\)$"),
        (b'{"label": "yes", "label": "no"}\n', "the name 'label' is there twice"),
        (WHOLE.decode().encode("utf-16"), "is not text in UTF-8"),
        (lines(text="caf\u00e9?").replace(b"caf\\u00e9", b"caf\xe9"), r"UTF-8 \(byte .* is 0xe9\)"),
        (b"\n\n", "holds no questions"),
        (b"", "holds no questions"),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, text, sentence):
    file = tmp_path / "coco_pope_random.json"
    file.write_bytes(text)
    with pytest.raises(RequestError, match=sentence):
        POPE.read([file])


def test_a_missing_file_and_a_set_given_twice(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        POPE.read([tmp_path / "coco_pope_random.json"])
    file = write(tmp_path / "coco_pope_random.json")
    with pytest.raises(RequestError, match="two questions have the id 'coco/random/1'"):
        POPE.read([file, file])


def test_a_byte_order_mark_windows_ends_and_blank_lines_are_no_matter(tmp_path):
    file = tmp_path / "coco_pope_random.json"
    file.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\r\n\r\n"))
    assert [each.id for each in POPE.read([file])] == [f"coco/random/{n}" for n in range(1, 5)]


def test_choices_are_those_of_the_rules():
    assert pope.HEADLINE in pope.POPE_RULES
    assert pope.CHOICES == ("yes", "no")
