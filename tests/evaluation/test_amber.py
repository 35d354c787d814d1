"""AMBER's files are read, and its measures are those worked out by hand."""

import json
import random
from pathlib import Path

import pytest
from answered import answered, failed

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.amber_words import WordLists, read_word_lists
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.compare import compare
from causalmm.evaluation.over_seeds import over_seeds, table
from causalmm.evaluation.tally import join

AMBER = BENCHMARKS["amber"]
RELATION = {
    "grass": ["ground"],
    "ground": ["floor"],
    "person": ["people", "man", "woman"],
    "man": ["person", "people"],
    "ship": ["boat"],
    "bird": [],
    "sun": [],
    "television": ["TV", "screen"],
    "can": [],
    "forest": ["tree", "leave"],
    "light": [],
}
CAPTIONED = [
    {"id": 1, "type": "generative", "truth": ["grass", "person", "ship", "ship"], "hallu": ["sun"]},
    {"id": 2, "type": "generative", "truth": ["ground", "bird"], "hallu": ["man", "television"]},
]
ASKED = [
    (3, "discriminative-hallucination", "no", "Is there a sun in this image?"),
    (4, "discriminative-hallucination", "no", "Is there a bird in this image?"),
    (5, "discriminative-attribute-state", "yes", "Is the grass green in this image?"),
    (6, "discriminative-attribute-state", "no", "Is the grass blue in this image?"),
    (7, "discriminative-attribute-number", "yes", "Are there two ships in this image?"),
    (8, "discriminative-attribute-action", "no", "Does the person swim in this image?"),
    (9, "discriminative-relation", "yes", "Is there direct contact between the person and ship?"),
    (10, "relation", "no", "Is there direct contact between the person and sun?"),
]
PARTS = {
    "existence": (3, 4),
    "attribute": (5, 6, 7, 8),
    "relation": (9, 10),
    "discriminative": range(3, 11),
    "generative": (1, 2),
    "all": range(1, 11),
}


def write(root: Path, annotations=None, relation=RELATION) -> Path:
    annotations = annotations or [
        *CAPTIONED,
        *({"id": id, "type": kind, "truth": truth} for id, kind, truth, _ in ASKED),
    ]
    queries = {1: "Describe this image.", 2: "Describe this image."}
    queries |= {id: text for id, _, _, text in ASKED}
    (root / "query").mkdir(exist_ok=True)
    files = {"annotations.json": annotations, "relation.json": relation}
    for part, ids in PARTS.items():
        name = part if part in ("all", "generative", "discriminative") else f"discriminative-{part}"
        files[f"query/query_{name}.json"] = [
            {"id": id, "image": f"AMBER_{1 + id % 2}.jpg", "query": queries[id]} for id in ids
        ]
    for name, value in files.items():
        (root / name).write_text(json.dumps(value), encoding="utf-8")
    (root / "safe_words.txt").write_text("light\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> WordLists:
    folder = write(tmp_path_factory.mktemp("amber"))
    return read_word_lists(folder / "relation.json", folder / "safe_words.txt")


def values(report, name):
    [score] = [each for each in report.scores if each.name == name]
    return {metric: round(each.value, 9) for metric, each in score.metrics.items()}


# Questions


def test_the_questions_of_every_part(tmp_path):
    write(tmp_path)
    for part, ids in PARTS.items():
        questions = AMBER.read(tmp_path, part=part, images=tmp_path, suffix=" Yes or no?")
        assert [each.id for each in questions] == [str(id) for id in ids]
    first, second, third = questions[:3]
    assert first.image == "AMBER_2.jpg"
    assert first.path == str(tmp_path / "AMBER_2.jpg")
    assert (first.prompt, first.choices, first.label) == ("Describe this image.", None, None)
    assert third.prompt == "Is there a sun in this image? Yes or no?"
    assert (third.choices, third.label) == (("yes", "no"), "no")
    assert [file.name for file in AMBER.files(tmp_path, part="existence")] == [
        *("query_discriminative-existence.json", "annotations.json")
    ]
    assert len(AMBER.files(tmp_path, part="all")) == 4


def test_yes_or_no_questions_need_no_word_lists(tmp_path):
    write(tmp_path)
    (tmp_path / "relation.json").unlink()
    assert len(AMBER.read(tmp_path, part="discriminative")) == 8
    with pytest.raises(RequestError, match="relation.json cannot be read"):
        AMBER.read(tmp_path)


# Captions


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("A man, two women and People on the GROUND.", ["man", "woman", "people", "ground"]),
        ("You can see hot leaves on trees", ["tree"]),
        ("a tv, a TV, televisions", ["TV", "TV", "television"]),
        ("lights, birds, boats and a steamship", ["light", "bird", "boat"]),
        ("", []),
    ],
)
def test_words_of_the_lists(lists, caption, mentions):
    assert lists.mentions(caption) == mentions


@pytest.mark.parametrize(
    ("caption", "invented", "covered", "likely_invented"),
    [
        # "ground" stands for grass, which comes before what is called so.
        ("ground", 0, 1, 0),
        ("grass and ground", 0, 1, 0),
        ("a floor", 1, 0, 0),
        # The second ship is never covered.
        ("a ship, a boat, ships", 0, 1, 0),
        ("a man and a woman", 0, 1, 0),
        ("a bird in the sun in the sun", 3, 0, 1),
        ("a light", 0, 0, 0),
        ("grass, a person, a ship, the sun", 1, 3, 1),
    ],
)
def test_a_caption_by_hand(lists, caption, invented, covered, likely_invented):
    found = lists.counts(caption, CAPTIONED[0]["truth"], CAPTIONED[0]["hallu"])
    assert found["mentions"] == len(lists.mentions(caption))
    assert found["invented"] == invented
    assert found["inventing captions"] == (invented > 0)
    assert found["covered"] == covered
    assert found["likely invented"] == likely_invented
    assert (found["there"], found["likely"]) == (4, 1)


def marked(mentions, truth, likely):
    """The same counts from flags by place, as inference.py keeps them: those of the words that
    stand for objects first, then those of the objects. Words are alike where they are equal."""
    invented, flags = 0, {"truth": [0] * len(truth), "likely": [0] * len(likely)}

    def mark(word, name, objects):
        words = [(each, at) for at, name in enumerate(objects) for each in RELATION[name]]
        words += [(each, at) for at, each in enumerate(objects)]
        for each, at in words:
            if each == word:
                flags[name][at] = 1
                return True
        return False

    for word in mentions:
        if word == "light" or mark(word, "truth", truth):
            continue
        mark(word, "likely", likely)
        invented += 1
    return invented, sum(flags["truth"]), sum(flags["likely"])


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_the_published_loop(lists, seed):
    draw = random.Random(seed)
    words = sorted({*RELATION, *(word for each in RELATION.values() for word in each)})
    truth, likely = (draw.choices(sorted(RELATION), k=draw.randint(1, 5)) for _ in range(2))
    caption = " and ".join(draw.choices(words, k=12))
    found = lists.counts(caption, truth, likely)
    assert marked(lists.mentions(caption), truth, likely) == tuple(
        found[name] for name in ("invented", "covered", "likely invented")
    )


def test_captions_by_hand(tmp_path):
    questions = AMBER.read(write(tmp_path), part="generative")
    said = ["A person on grass under the sun.", "A bird."]
    report = AMBER.score(questions, answered(questions, said))
    assert [score.name for score in report.scores] == ["generative"]
    assert values(report, "generative") == {
        "CHAIR": 25,  # the sun, of person, grass, sun, bird
        "Cover": 50,  # grass, person; bird: of 6
        "Hal": 50,
        "Cog": round(100 / 3, 9),  # the sun, of sun; man, television
        "words": 4.5,
    }
    assert report.scores[0].counts == {"captions": 2, "mentions": 4, "invented": 1, "failed": 0}


def test_a_failed_caption_is_left_out(tmp_path):
    questions = AMBER.read(write(tmp_path), part="generative")
    answers = failed(answered(questions, ["A sun.", "A bird."]), "1")
    report = AMBER.score(questions, answers)
    assert values(report, "generative") == {"CHAIR": 0, "Cover": 50, "Hal": 0, "Cog": 0, "words": 2}
    assert report.scores[0].counts["failed"] == 1
    assert report.scores[0].notes == ("failed captions are left out: 1 of 2",)


# Yes or no


def test_no_is_the_positive_class(tmp_path):
    questions = AMBER.read(write(tmp_path), part="discriminative")
    #         existence    state          number action  relation
    said = ["No", "Yes.", "no", "No, it", "Yes", "maybe", "Yes", "No"]
    report = AMBER.score(questions, answered(questions, said))
    assert [score.name for score in report.scores] == [
        *("discriminative", "existence", "attribute", "state", "number", "action", "relation")
    ]
    # Right: 3, 6, 7, 9, 10. Said no: 3, 5, 6, 10, of which 3, 6 and 10 rightly. No is right of
    # 3, 4, 6, 8 and 10.
    assert values(report, "discriminative") == {
        "accuracy": 62.5,
        "precision": 75,
        "recall": 60,
        "F1": round(600 / 9, 9),
        "yes ratio": round(300 / 7, 9),
    }
    counts = {score.name: score.counts for score in report.scores}
    assert counts["discriminative"] == {
        "tp": 3,
        "fp": 1,
        "tn": 2,
        "fn": 1,
        "unreadable": 1,
        "failed": 0,
    }
    assert values(report, "existence")["precision"] == 100
    assert values(report, "existence")["recall"] == 50
    # 5 wrong, 6 right, 7 right, 8 cannot be read
    assert values(report, "attribute") == {
        "accuracy": 50,
        "precision": 50,
        "recall": 50,
        "F1": 50,
        "yes ratio": round(100 / 3, 9),
    }
    assert values(report, "relation") == {
        "accuracy": 100,
        "precision": 100,
        "recall": 100,
        "F1": 100,
        "yes ratio": 50,
    }


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("existence", ["existence"]),
        ("attribute", ["attribute", "state", "number", "action"]),
        ("relation", ["relation"]),
    ],
)
def test_sets_of_the_same_questions_are_one_row(tmp_path, part, names):
    questions = AMBER.read(write(tmp_path), part=part)
    report = AMBER.score(questions, answered(questions, lambda each: each.label))
    assert [score.name for score in report.scores] == names
    assert {score.metrics["accuracy"].value for score in report.scores} == {100}


def test_captions_and_answers_are_compared_in_one_table(tmp_path):
    questions = AMBER.read(write(tmp_path))
    runs = {
        "base": answered(questions, lambda each: each.label or "A bird and a sun."),
        "other": answered(questions, lambda each: "No" if each.label else "Grass."),
    }
    found = compare("amber", AMBER.tally, questions, runs)
    lines = [line.split("|") for line in found.table().splitlines() if line.startswith("| ")]
    header, generative = lines[0], lines[2]
    cells = dict(zip((each.strip() for each in header), map(str.strip, generative), strict=True))
    assert (cells["run"], cells["accuracy"]) == ("base", "-")
    assert cells["CHAIR"].startswith("75.0 ")
    by_name = {each.name: each for each in found.differences}
    assert by_name["generative"].metrics["CHAIR"].value == -25
    assert by_name["generative"].metrics["words"].value == -4
    assert by_name["relation"].metrics["accuracy"].value == -50


def test_captions_and_answers_are_one_table_over_seeds(tmp_path):
    questions = AMBER.read(write(tmp_path))
    runs = {
        f"seed={seed}": join(
            questions, answered(questions, lambda each, text=text: each.label or text)
        )
        for seed, text in enumerate(["A bird.", "Grass."])
    }
    said = table(over_seeds(AMBER.tally, runs))
    lines = [line for line in said.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    header, generative, relation = rows[0], rows[2], rows[-1]
    captions = dict(zip(header, generative, strict=True))
    assert captions["CHAIR"].endswith("± 0.0")
    assert (captions["accuracy"], captions["words"][:3]) == ("-", "1.5")
    assert relation[0] == "relation"
    assert relation[-1].startswith("50.0 ")


# What is wrong


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": 10, "type": "relation", "truth": "maybe"}, "id 10 has truth 'maybe': expected yes"),
        ({"id": 10, "type": "other", "truth": "no"}, "id 10 has type 'other': expected one of gen"),
        ({"id": 11, "type": "relation", "truth": "no"}, "annotations.json has no id 10"),
        ({"id": 10, "truth": "no"}, "id 10 has no type"),
        (
            {"id": 10, "type": "generative", "truth": ["dog"], "hallu": []},
            "id 10 has 'dog' in truth, which relation.json lacks",
        ),
        (
            {"id": 10, "type": "generative", "truth": ["sun"], "hallu": "bird"},
            "id 10 has hallu 'bird': expected a list of objects",
        ),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, change, sentence):
    write(tmp_path)
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:-1] + [change]))
    with pytest.raises(RequestError, match=sentence):
        AMBER.read(tmp_path)


def test_other_files_get_a_sentence(tmp_path):
    with pytest.raises(RequestError, match="annotations.json cannot be read"):
        AMBER.read(tmp_path)
    write(tmp_path, annotations={"id": 1})
    with pytest.raises(RequestError, match="annotations.json is not a JSON list of objects"):
        AMBER.read(tmp_path)
    write(tmp_path, relation={"sun": "star"})
    with pytest.raises(RequestError, match="is not a JSON object of lists of words by object"):
        AMBER.read(tmp_path)
