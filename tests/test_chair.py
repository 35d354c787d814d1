"""Captions are searched for objects as CHAIR asks, and its measures are as worked out by hand."""

import json
from pathlib import Path

import pytest
from answered import answered, failed
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks import BENCHMARKS
from causalmm.evaluation.vocabulary import Vocabulary, read_vocabulary

CHAIR = BENCHMARKS["chair"]
SYNONYMS = {
    "person": ["man", "woman", "child", "rider"],
    "dog": ["puppy"],
    "hot dog": [],
    "dining table": ["table"],
    "wine glass": ["glass"],
    "knife": [],
    "skis": [],
    "bus": ["double decker bus"],
    "sandwich": [],
    "potted plant": ["plant"],
    "teddy bear": ["teddy"],
    "bear": [],
    "mouse": [],
    "potato": [],
    "scarf": [],
    "toes": [],
}
VOCABULARY = Vocabulary(SYNONYMS)


def write(root: Path, annotations, vocabulary=SYNONYMS) -> dict[str, Path]:
    files = {"annotations": root / "annotations.json", "vocabulary": root / "vocabulary.json"}
    for file, value in zip(files.values(), (annotations, vocabulary), strict=True):
        file.write_text(json.dumps(value), encoding="utf-8")
    return files


def ask(root: Path, annotations):
    files = write(root, annotations)
    return CHAIR.read(files["annotations"], vocabulary=files["vocabulary"])


def values(report):
    return {name: round(each.value, 9) for name, each in report.scores[0].metrics.items()}


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A man and his puppy.", {"person", "dog"}),
        ("A hot dog on a table", {"hot dog", "dining table"}),
        ("A hot, hungry dog", {"dog"}),
        ("Hot-dogs!", {"hot dog"}),
        ("two hot dogs and a dog", {"hot dog", "dog"}),
        ("a teddy bear and a teddy", {"teddy bear"}),
        ("a bear beside teddy bears", {"teddy bear", "bear"}),
        ("people, men, women and children", {"person"}),
        (
            "Knives, buses, glasses, sandwiches and puppies",
            {"knife", "bus", "wine glass"} | {"sandwich", "dog"},
        ),
        ("a ski", {"skis"}),
        ("the dog's tail", {"dog"}),
        ("mice, potatoes, scarves, a toe", {"mouse", "potato", "scarf", "toes"}),
        ("It is close to the doghouse, mandarins and plantations", set()),
        ("DINING\nTABLES", {"dining table"}),
        ("", set()),
    ],
)
def test_objects_of_a_caption(caption, objects):
    assert VOCABULARY.mentioned(caption) == objects


def test_every_name_and_its_plural_stands_for_its_object():
    for thing, names in SYNONYMS.items():
        for name in (thing, *names):
            assert VOCABULARY.object(name) == thing
            assert VOCABULARY.mentioned(f"Some {name.upper()}, there") == {thing}
    assert VOCABULARY.object("cat") is None


WORDS = st.lists(
    st.sampled_from(["hot", "dog", "dogs", "teddy", "bear", "bears", "table", "on", "red"]),
    max_size=8,
)


@settings(deadline=None)
@given(WORDS)
def test_long_names_come_before_short_ones(words):
    text = f" {' '.join(words)} "
    expected = set()
    # Take out the long names first, then look for the short ones in what is left.
    for long, thing in (("hot dog", "hot dog"), ("teddy bear", "teddy bear")):
        for name in (long + "s", long):
            while f" {name} " in text:
                expected.add(thing)
                text = text.replace(f" {name} ", " | ")
    short = {"dog": "dog", "dogs": "dog", "bear": "bear", "bears": "bear"}
    short |= {"teddy": "teddy bear", "table": "dining table"}
    expected |= {short[word] for word in text.split() if word in short}
    assert VOCABULARY.mentioned(" ".join(words)) == expected


def test_a_name_that_is_given_counts_before_one_that_is_derived():
    both = Vocabulary({"glass": [], "spectacles": ["glasses"]})
    assert both.mentioned("glasses") == {"spectacles"}
    with pytest.raises(RequestError, match="the vocabulary has 'Bat' for 'club' and 'animal'"):
        Vocabulary({"club": ["bat"], "animal": ["Bat"]})
    with pytest.raises(RequestError, match="expected a word"):
        Vocabulary({"dog": ["--"]})


def test_a_vocabulary_of_lines(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("person, man, woman\n\nhot dog\ndog,puppy,\n", encoding="utf-8")
    read = read_vocabulary(file)
    assert read.objects == ("person", "hot dog", "dog")
    assert read.mentioned("a woman and a puppy") == {"person", "dog"}
    file.write_text("dog\ncat\ndog, hound\n", encoding="utf-8")
    with pytest.raises(RequestError, match="line 3 names 'dog' again"):
        read_vocabulary(file)
    file.write_text("dog\n, ,\n", encoding="utf-8")
    with pytest.raises(RequestError, match="line 2 names nothing"):
        read_vocabulary(file)


def test_one_request_an_image(tmp_path):
    files = write(tmp_path, {"a.jpg": ["dog", "Men"], "b.jpg": []})
    first, second = CHAIR.read(
        files["annotations"], vocabulary=files["vocabulary"], images=Path("pictures"), prompt="Say."
    )
    assert (first.id, first.image, first.prompt) == ("a.jpg", "a.jpg", "Say.")
    assert first.path == str(Path("pictures") / "a.jpg")
    assert first.choices is None
    assert (first.facts["objects"], second.facts["objects"]) == ({"dog", "person"}, frozenset())


def test_measures_by_hand(tmp_path):
    questions = ask(
        tmp_path,
        {"a.jpg": ["dog", "dining table"], "b.jpg": ["person"], "c.jpg": ["bus"], "d.jpg": []},
    )
    report = CHAIR.score(
        questions,
        answered(
            questions,
            [
                # Two of two, one of them said twice.
                "A dog on a table, a good puppy",
                # One of one, and one invented twice.
                "A man with a knife, and another knife",
                "A street",
                "A bear",
            ],
        ),
    )
    assert values(report) == {
        "CHAIR_i": 40,  # knife and bear of dog, table, person, knife, bear
        "CHAIR_s": 50,
        "recall": 75,  # dog, table, person of these and the bus
        "words": (8 + 8 + 2 + 2) / 4,
    }
    assert report.scores[0].counts == {"captions": 4, "named": 5, "invented": 2, "failed": 0}


def test_a_failed_caption_is_left_out_and_counted(tmp_path):
    questions = ask(tmp_path, {"a.jpg": ["dog"], "b.jpg": ["person"]})
    report = CHAIR.score(
        questions, failed(answered(questions, ["a bear", "a man"]), "b.jpg", "no image")
    )
    assert values(report) == {"CHAIR_i": 100, "CHAIR_s": 100, "recall": 0, "words": 2}
    assert report.scores[0].counts == {"captions": 1, "named": 1, "invented": 1, "failed": 1}
    assert "failed captions are left out: 1 of 2" in report.table()
    assert report.failed == {"b.jpg": "no image"}


def test_captions_that_name_nothing(tmp_path):
    questions = ask(tmp_path, {"a.jpg": []})
    report = CHAIR.score(questions, answered(questions, [""]))
    assert values(report) == {"CHAIR_i": 0, "CHAIR_s": 0, "recall": 0, "words": 0}
    assert "all, vocabulary: CHAIR_i is 0 / 0, shown as 0" in report.table()


@pytest.mark.parametrize(
    ("annotations", "vocabulary", "sentence"),
    [
        ({"a.jpg": ["unicorn"]}, SYNONYMS, "has 'unicorn' in a.jpg, which the vocabulary lacks"),
        ({"a.jpg": [3]}, SYNONYMS, "has 3 in a.jpg, which the vocabulary lacks"),
        ({"a.jpg": "dog"}, SYNONYMS, "is not a JSON object of lists of objects by image"),
        (["a.jpg"], SYNONYMS, "is not a JSON object of lists of objects by image"),
        ({}, SYNONYMS, "holds no images"),
        ({"a.jpg": []}, {"dog": "puppy"}, "is not a JSON object of lists of synonyms by object"),
        ({"a.jpg": []}, {}, "names no objects"),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, annotations, vocabulary, sentence):
    files = write(tmp_path, annotations, vocabulary)
    with pytest.raises(RequestError, match=sentence):
        CHAIR.read(files["annotations"], vocabulary=files["vocabulary"])


def test_an_image_twice_a_cut_file_and_an_empty_prompt(tmp_path):
    files = write(tmp_path, {})
    for text, sentence in (
        ('{"a.jpg": [], "a.jpg": ["dog"]}', "is not JSON .*the name 'a.jpg' is there twice"),
        ('{"a.jpg": ["do', "is not JSON"),
    ):
        files["annotations"].write_text(text)
        with pytest.raises(RequestError, match=sentence):
            CHAIR.read(files["annotations"], vocabulary=files["vocabulary"])
    with pytest.raises(RequestError, match="the prompt is empty"):
        CHAIR.read(files["annotations"], vocabulary=files["vocabulary"], prompt=" ")
