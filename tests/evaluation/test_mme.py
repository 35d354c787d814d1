"""MME's two layouts are read alike, and its scores are those worked out by hand."""

from pathlib import Path

import pytest
from answered import answered, failed

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.mme import TASKS
from causalmm.evaluation.benchmarks.registry import BENCHMARKS

MME = BENCHMARKS["mme"]
EXISTENCE = (
    "1.jpg\tIs there a cup?\tYes\n1.jpg\tIs there a cat?\tNo\n"
    "2.jpg\tIs there a bed?\tYes\n2.jpg\tIs there a car?\tNo\n"
)
COUNT = "1.jpg\tIs there one cup?\tYes\n1.jpg\tAre there two cups?\tNo\n"
OCR = "1.jpg\tIs it a?\tNo\n1.jpg\tIs it b?\tYes\n2.jpg\tIs it a?\tYes\n2.jpg\tIs it b?\tNo\n"
CODE = "0001.png\tIs it 1?\tYes\n0001.png\tIs it 2?\tNo\n"


def flat(root: Path, **tasks: str) -> Path:
    for task, text in tasks.items():
        (root / f"{task}.txt").write_text(text, encoding="utf-8")
    return root


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def scores(report):
    return {
        score.name: tuple(round(each.value, 9) for each in score.metrics.values())
        for score in report.scores
    }


def test_the_flat_layout(tmp_path):
    flat(tmp_path, existence=EXISTENCE)
    picture(tmp_path / "existence" / "1.jpg")
    picture(tmp_path / "existence" / "images" / "2.jpg")
    questions = MME.read(tmp_path)
    assert [each.id for each in questions] == [
        *("existence/1.jpg/1", "existence/1.jpg/2", "existence/2.jpg/1", "existence/2.jpg/2")
    ]
    assert [each.label for each in questions] == ["yes", "no", "yes", "no"]
    assert questions[0].prompt == "Is there a cup?"
    assert questions[0].image == "existence/1.jpg"
    assert questions[0].path == str(tmp_path / "existence" / "1.jpg")
    assert questions[2].path == str(tmp_path / "existence" / "images" / "2.jpg")


def test_a_suffix_is_put_after_every_question(tmp_path):
    flat(tmp_path, existence=EXISTENCE)
    plain, more = MME.read(tmp_path), MME.read(tmp_path, suffix=" In one word.")
    assert [each.prompt for each in more] == [f"{each.prompt} In one word." for each in plain]
    # Answers of other scripts are told apart by the question that the file has.
    assert [each.facts["text"] for each in more] == [each.prompt for each in plain]
    assert MME.files(tmp_path, tasks=None, suffix="") == [tmp_path / "existence.txt"]


@pytest.mark.parametrize("folders", [("questions_answers_YN", "images"), ("", "")])
def test_a_text_file_an_image(tmp_path, folders):
    texts, images = (tmp_path / "existence" / folder for folder in folders)
    for name in ("1", "2"):
        picture(images / f"{name}.jpg")
        texts.mkdir(parents=True, exist_ok=True)
        rows = [line.split("\t", 1)[1] for line in EXISTENCE.splitlines() if line.startswith(name)]
        (texts / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    questions = MME.read(tmp_path)
    other = tmp_path / "flat"
    other.mkdir()
    expected = MME.read(flat(other, existence=EXISTENCE))
    for ours, theirs in zip(questions, expected, strict=True):
        # Named by its text file, so that answers can be scored without the images.
        assert ours.id == theirs.id.replace(".jpg", "")
        assert ours.image == theirs.image.replace(".jpg", "")
        assert (ours.prompt, ours.label) == (theirs.prompt, theirs.label)
        assert Path(ours.path).is_file()


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".JPG", ".PNG", ".Jpg"])
def test_an_image_of_another_kind_is_found_by_its_name(tmp_path, suffix):
    folder = tmp_path / "code_reasoning" / "questions_answers_YN"
    folder.mkdir(parents=True)
    (folder / f"0001.{'TXT' if suffix.isupper() else 'txt'}").write_text(
        "Is it 1?\tYes\nIs it 2?\tNo\n", encoding="utf-8"
    )
    picture(tmp_path / "code_reasoning" / "images" / f"0001{suffix}")
    questions = MME.read(tmp_path)
    assert [each.image for each in questions] == ["code_reasoning/0001"] * 2
    assert {Path(each.path).name for each in questions} == {f"0001{suffix}"}
    answers = answered(questions, ["yes", "no"])
    (tmp_path / "code_reasoning" / "images" / f"0001{suffix}").unlink()
    assert scores(MME.score(MME.read(tmp_path), answers))["total"] == (100, 100, 200)


def test_tasks_come_in_the_order_of_mme_and_can_be_chosen(tmp_path):
    flat(tmp_path, code_reasoning=CODE, count=COUNT, existence=EXISTENCE)
    (tmp_path / "README.txt").write_text("no task", encoding="utf-8")
    tasks = list(dict.fromkeys(each.facts["task"] for each in MME.read(tmp_path)))
    assert tasks == ["existence", "count", "code_reasoning"]
    assert {each.facts["task"] for each in MME.read(tmp_path, tasks=["count"])} == {"count"}
    with pytest.raises(RequestError, match="has no questions of the task OCR"):
        MME.read(tmp_path, tasks=["OCR"])


def test_scores_by_hand(tmp_path):
    questions = MME.read(
        flat(tmp_path, existence=EXISTENCE, count=COUNT, OCR=OCR, code_reasoning=CODE)
    )
    said = {
        # One image whole, one half: acc 75, acc+ 50.
        "existence/1.jpg/1": "Yes",
        "existence/1.jpg/2": "no.",
        "existence/2.jpg/1": "yes, there is",
        "existence/2.jpg/2": "Y",
        # acc 50, acc+ 0; the second is unreadable.
        "count/1.jpg/1": "yes",
        "count/1.jpg/2": "There is no second",
        # All right, in four letters: acc 100, acc+ 100.
        "OCR/1.jpg/1": "not",
        "OCR/1.jpg/2": "Ayes",
        "OCR/2.jpg/1": "YES",
        "OCR/2.jpg/2": "N",
        # Nothing.
        "code_reasoning/0001.png/1": "no",
        "code_reasoning/0001.png/2": "yes",
    }
    report = MME.score(questions, answered(questions, said))
    assert scores(report) == {
        "existence": (75, 50, 125),
        "count": (50, 0, 50),
        "OCR": (100, 100, 200),
        "code_reasoning": (0, 0, 0),
        # Scores add up; acc and acc+ are of all questions and images: 8 / 10, 3 / 5.
        "perception": (80, 60, 375),
        "cognition": (0, 0, 0),
        "total": (round(800 / 12, 9), 50, 375),
    }
    by_name = {score.name: score for score in report.scores}
    assert by_name["count"].counts == {"questions": 2, "unreadable": 1, "failed": 0}
    assert by_name["perception"].notes == ("perception is without 7 of its 10 tasks",)
    assert report.unreadable == {"count/1.jpg/2": "There is no second"}


def test_a_perfect_run_gets_2800(tmp_path):
    questions = MME.read(flat(tmp_path, **dict.fromkeys(TASKS, EXISTENCE)))
    report = MME.score(questions, answered(questions, lambda each: each.label))
    totals = {score.name: score.metrics["score"] for score in report.scores}
    assert [totals[name].value for name in ("perception", "cognition", "total")] == [
        2000,
        800,
        2800,
    ]
    assert [totals["total"].low, totals["total"].high] == [2800, 2800]
    assert not any(score.notes for score in report.scores)


def test_a_failed_answer_is_wrong_and_counted(tmp_path):
    questions = MME.read(flat(tmp_path, existence=EXISTENCE))
    answers = answered(questions, lambda each: each.label)
    report = MME.score(questions, failed(answers, "existence/1.jpg/2"))
    assert scores(report)["existence"] == (75, 50, 125)
    assert report.scores[0].counts == {"questions": 4, "unreadable": 0, "failed": 1}


def test_an_image_may_have_two_pairs(tmp_path):
    text = EXISTENCE + "1.jpg\tIs there a hat?\tYes\n1.jpg\tIs there a dog?\tNo\n"
    questions = MME.read(flat(tmp_path, existence=text))
    assert [each.id for each in questions[-2:]] == ["existence/1.jpg/3", "existence/1.jpg/4"]
    right = ["yes", "no", "yes", "yes", "yes", "no"]
    report = MME.score(questions, answered(questions, right))
    assert scores(report)["existence"] == (round(500 / 6, 9), round(200 / 3, 9), 150)


def test_a_fourth_field_is_not_read(tmp_path):
    text = EXISTENCE.replace("\n", "\tsome answer\n")
    assert [each.label for each in MME.read(flat(tmp_path, existence=text))] == ["yes", "no"] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            EXISTENCE.replace("1.jpg\tIs there a cat", "3.jpg\tIs there a cat"),
            "line 1: 1.jpg has one",
        ),
        (EXISTENCE.rsplit("2.jpg", 1)[0], "line 3: 2.jpg has one question, expected two in a row"),
        (EXISTENCE.replace("No", "Maybe", 1), "line 2 has the answer 'Maybe': expected yes or no"),
        (EXISTENCE.replace("\t", " "), "line 1: expected image, question and answer with tabs"),
        (EXISTENCE.replace("cat?\tNo", "cat?"), "line 2: expected image, question and answer"),
        (EXISTENCE.replace("cat", "cup"), "line 2 asks the same about 1.jpg again"),
        (EXISTENCE + EXISTENCE, "line 5 asks the same about 1.jpg again"),
        (EXISTENCE.replace("1.jpg", " ", 1), "line 1 has no image"),
        (EXISTENCE.replace("Is there a cat?", ""), "line 2 has no question"),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, text, sentence):
    with pytest.raises(RequestError, match=sentence):
        MME.read(flat(tmp_path, existence=text))


def test_a_wrong_encoding_and_an_empty_folder(tmp_path):
    with pytest.raises(RequestError, match="holds no MME task"):
        MME.read(tmp_path)
    with pytest.raises(RequestError, match="there is no folder"):
        MME.read(tmp_path / "none")
    (tmp_path / "posters.txt").write_bytes("a.jpg\tAm\u00e9lie?\tYes\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"posters.txt is not text in UTF-8 \(byte 8 is 0xe9\)"):
        MME.read(tmp_path)
