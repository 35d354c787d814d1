"""HallusionBench is read as it is published, and its accuracies are those worked out by hand."""

import json
import random
from pathlib import Path

import pytest
from answered import answered, failed
from family_rows import FAMILIES
from PIL import Image
from tiny_evaluation import save_yes_no_checkpoint

from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import read_answers
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.commands import main
from causalmm.evaluation.question_files import check_images

HALLUSION = BENCHMARKS["hallusion"]


def row(category, kind, group, figure, number, answer, shown="1"):
    name = f"./hallusion_bench/{category}/{kind}/{group}_{figure}.png"
    return {
        "category": category,
        "subcategory": kind,
        "visual_input": shown,
        "set_id": str(group),
        "figure_id": str(figure),
        "question_id": str(number),
        "question": f"Is it {number}?",
        "gt_answer": str(answer),
        "gt_answer_details": "...",
        "filename": name if shown != "0" else None,
    }


ROWS = [
    # An original and an edited figure, two questions each.
    row("VD", "illusion", 0, 0, 0, 1),
    row("VD", "illusion", 0, 0, 1, 0),
    row("VD", "illusion", 0, 1, 0, 0),
    row("VD", "illusion", 0, 1, 1, 1),
    # The same questions without a picture and with one.
    row("VS", "chart", 0, 0, 0, 1, "0"),
    row("VS", "chart", 0, 0, 1, 0, "0"),
    row("VS", "chart", 0, 1, 0, 1, "1"),
    row("VS", "chart", 0, 1, 1, 0, "1"),
    row("VS", "chart", 0, 2, 0, 0, "2"),
    row("VS", "chart", 0, 2, 1, 1, "2"),
]


def write(root: Path, rows=ROWS) -> Path:
    file = root / "HallusionBench.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def values(report, name="all"):
    [score] = [each for each in report.scores if each.name == name]
    return {metric: round(each.value, 9) for metric, each in score.metrics.items()}


# Questions


def test_the_questions(tmp_path):
    questions = HALLUSION.read(write(tmp_path), images=tmp_path, suffix=" Yes or no?")
    assert len(questions) == len(ROWS)
    first, nothing = questions[0], questions[4]
    assert (first.id, first.label) == ("VD/illusion/0_0/0", "yes")
    assert first.prompt == "Is it 0? Yes or no?"
    assert first.path == str(tmp_path / "hallusion_bench" / "VD" / "illusion" / "0_0.png")
    assert (nothing.id, nothing.path) == ("VS/chart/0_0/0", "")
    assert len({each.image for each in questions}) == 5


def test_pictures_lie_in_the_folder_or_beside_it(tmp_path):
    picture = tmp_path / "hallusion_bench" / "VD" / "illusion" / "0_0.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"")
    for images in (tmp_path, tmp_path / "hallusion_bench"):
        assert HALLUSION.read(write(tmp_path), images=images)[0].path == str(picture)


def test_no_picture_is_not_missing(tmp_path, capsys):
    questions = HALLUSION.read(write(tmp_path), images=tmp_path)
    check_images([each for each in questions if not each.path])
    assert capsys.readouterr().err == ""
    with pytest.raises(RequestError, match="none of the 4 images is there"):
        check_images(questions)


# Scores


def test_scores_by_hand(tmp_path):
    questions = HALLUSION.read(write(tmp_path))
    # VD: figure 0 right and right, figure 1 right and wrong.
    # VS: without a picture not known and wrong; figure 1 both right; figure 2 right, unreadable.
    said = ["Yes.", "No", "no", "No", "I cannot tell.", "Yes", "yes", "no", "No, it is", "Maybe"]
    report = HALLUSION.score(questions, answered(questions, said))
    assert [score.name for score in report.scores] == ["all", "VD", "VS"]
    # Question pairs: VD 0 right, VD 1 wrong, VS 0 right, VS 1 wrong. Figures: VD 0, VS 1 of four.
    assert values(report) == {"aAcc": 70, "qAcc": 50, "fAcc": 50, "easy": 75, "hard": 50}
    assert values(report, "VD") == {"aAcc": 75, "qAcc": 50, "fAcc": 50, "easy": 100, "hard": 50}
    assert values(report, "VS") == {
        "aAcc": round(400 / 6, 9),
        "qAcc": 50,
        "fAcc": 50,
        "easy": 50,
        "hard": 50,
    }
    assert report.scores[0].counts == {
        "questions": 10,
        "pairs": 4,
        "figures": 4,
        "unreadable": 2,
        "failed": 0,
    }


def test_what_failed_is_wrong_without_a_picture_too(tmp_path):
    questions = HALLUSION.read(write(tmp_path))
    answers = answered(questions, lambda each: each.label)
    assert set(values(HALLUSION.score(questions, answers)).values()) == {100}
    report = HALLUSION.score(questions, failed(answers, "VS/chart/0_0/0"))
    assert values(report) == {"aAcc": 90, "qAcc": 75, "fAcc": 100, "easy": 75, "hard": 100}
    assert report.scores[0].counts["failed"] == 1


def test_questions_without_a_picture_can_be_left_out(tmp_path):
    questions = HALLUSION.read(write(tmp_path), part="image")
    assert len(questions) == 8
    report = HALLUSION.score(questions, answered(questions, lambda each: each.label))
    assert values(report, "all")["qAcc"] == 100
    assert report.scores[0].notes == (
        "2 questions that show no image are left out: qAcc is of the others",
    )
    by_name = {score.name: score for score in report.scores}
    assert by_name["VS"].notes == ("VS, strict: easy is 0 / 0, shown as 0",)


def published(rows, verdicts, category=None):
    """The accuracies by the keys that the published evaluation groups by, from verdicts of 1 (like
    the right answer), 0 and 2 (unclear), in a calculation of its own."""
    right, pairs, figures = {}, {}, {}
    for each, verdict in zip(rows, verdicts, strict=True):
        if category not in (None, each["category"]):
            continue
        bare = each["category"] == "VS" and each["figure_id"] == "0"
        good = verdict == 1 or (bare and verdict == 2)
        group = (each["category"], each["subcategory"], each["set_id"])
        right[*group, each["figure_id"], each["question_id"]] = good
        pairs.setdefault((*group, each["question_id"]), []).append((each["figure_id"], good))
        if not bare:
            figures.setdefault((*group, each["figure_id"]), []).append(good)

    def share(flags):
        flags = list(flags)
        return round(100 * sum(flags) / len(flags), 9)

    easy = [[good for at, good in pair if at == "0"] for pair in pairs.values()]
    hard = [[good for at, good in pair if at != "0"] for pair in pairs.values()]
    return {
        "aAcc": share(right.values()),
        "qAcc": share(all(good for _, good in pair) for pair in pairs.values()),
        "fAcc": share(map(all, figures.values())),
        "easy": share(all(pair) for pair in easy if pair),
        "hard": share(all(pair) for pair in hard if pair),
    }


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_published_calculation(tmp_path, seed):
    draw = random.Random(seed)
    rows = [
        row(category, kind, group, figure, number, draw.randint(0, 1), shown)
        for category, kind in (("VD", "map"), ("VS", "map"), ("VS", "ocr"))
        for group in range(3)
        for figure in range(draw.randint(2, 3))
        for number in range(draw.randint(1, 3))
        for shown in ["0" if category == "VS" and figure == 0 else "1"]
    ]
    verdicts = draw.choices((1, 1, 1, 0, 2), k=len(rows))
    said = [
        {1: ("no", "yes")[int(each["gt_answer"])], 2: "Hard to say"}.get(
            verdict, ("yes", "no")[int(each["gt_answer"])]
        )
        for each, verdict in zip(rows, verdicts, strict=True)
    ]
    questions = HALLUSION.read(write(tmp_path, rows))
    report = HALLUSION.score(questions, answered(questions, said))
    for name, category in (("all", None), ("VD", "VD"), ("VS", "VS")):
        assert values(report, name) == published(rows, verdicts, category)


# With a model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_without_a_picture_gets_the_answer_it_gets_alone(tmp_path, family):
    save_yes_no_checkpoint(family, tmp_path / "model")
    for name in ("VD/illusion/0_0", "VD/illusion/0_1", "VS/chart/0_1", "VS/chart/0_2"):
        picture = tmp_path / "hallusion_bench" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").resize((60, 40)).save(picture)
    command = ["hallusion", "run", "--data", write(tmp_path), "--images", tmp_path]
    command += ["--model", tmp_path / "model", "--max-new-tokens", "3", "--mode", "multimodal"]
    said = {}
    for size in ("1", "8"):
        more = ["--out", tmp_path / size, "--batch-size", size]
        assert main([*map(str, command + more)]) == 0
        said[size] = {id: each.answer for id, each in read_answers(tmp_path / size).items()}
    assert len(said["1"]) == len(ROWS)
    assert None not in said["1"].values()
    assert said["1"] == said["8"]


# What is wrong


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"category": "XX"}, "row 1 has category 'XX': expected VD or VS"),
        ({"gt_answer": "2"}, "row 1 has gt_answer '2': expected 0 or 1"),
        ({"filename": None}, "row 1 has filename None: expected text"),
        ({"question": " "}, "row 1 has question ' ': expected text"),
        ({"question_id": "1"}, "two questions have the id 'VD/illusion/0_0/1'"),
    ],
)
def test_a_broken_row_gets_a_sentence(tmp_path, change, sentence):
    with pytest.raises(RequestError, match=sentence):
        HALLUSION.read(write(tmp_path, [ROWS[0] | change, *ROWS[1:]]))


def test_other_files_get_a_sentence(tmp_path):
    with pytest.raises(RequestError, match="is not a JSON list of objects"):
        HALLUSION.read(write(tmp_path, {"rows": ROWS}))
    with pytest.raises(RequestError, match="holds no questions of the part image"):
        HALLUSION.read(write(tmp_path, ROWS[4:6]), part="image")
