"""Answers in the form of LLaVA's and VCD's scripts are scored; what does not match is told."""

import json

import pytest

from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import answer_line
from causalmm.evaluation.commands import parse_args
from causalmm.evaluation.records import Answer

QUESTIONS = [
    (1, "a.jpg", "Is there a cup in the image?", "yes"),
    (2, "a.jpg", "Is there a cat in the image?", "no"),
    (3, "b.jpg", "Is there a dog in the image?", "yes"),
    (4, "b.jpg", "Is there a bus in the image?", "no"),
    (5, "c.jpg", "Is there a pie in the image?", "yes"),
    (6, "c.jpg", "Is there a bed in the image?", "no"),
]
TEXTS = ["Yes, there is a cup.", "Yes", "No.", "no", "I cannot tell", "Not really, it is snow"]
# By hand, of the six answers above: what each rule takes them for, in the order of the questions:
#     strict    yes yes no no - -      official  yes yes no no yes yes     released  y y n n n n
COUNTS = {  # tp, fp, tn, fn, unreadable
    "strict": (1, 1, 1, 1, 2),
    "official": (2, 2, 1, 1, 0),
    "released": (1, 1, 2, 2, 0),
}
METRICS = {  # accuracy, precision, recall, F1, yes ratio
    "strict": (2 / 6, 1 / 2, 1 / 3, 2 / 5, 2 / 4),
    "official": (3 / 6, 2 / 4, 2 / 3, 4 / 7, 4 / 6),
    "released": (3 / 6, 1 / 2, 1 / 3, 2 / 5, 2 / 6),
}


@pytest.fixture
def folder(tmp_path):
    for split in ("random", "popular"):
        write(
            tmp_path / f"coco_pope_{split}.json",
            [
                {"question_id": id, "image": image, "text": text, "label": label}
                for id, image, text, label in QUESTIONS
            ],
        )
    return tmp_path


def write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end, encoding="utf-8")
    return path


def llava(**changes):
    """As by LLaVA's model_vqa_loader.py, the last question first."""
    rows = [
        {
            "question_id": id,
            "prompt": f"{text}\nAnswer the question using a single word or phrase.",
            "text": said,
            "answer_id": f"x{id}",
            "model_id": "llava-v1.5-7b",
            "metadata": {},
        }
        | changes
        for (id, _, text, _), said in zip(QUESTIONS, TEXTS, strict=True)
    ]
    return rows[::-1]


def vcd(**changes):
    """As by VCD's object_hallucination_vqa_llava.py, whose prompt lacks its suffix."""
    rows = llava()
    for row, (_, image, text, _) in zip(rows, QUESTIONS[::-1], strict=True):
        row |= {"prompt": text, "image": image} | changes
    return rows


def act(action, folder, *answers, questions=("random",), flags=()):
    files = [str(folder / f"coco_pope_{split}.json") for split in questions]
    out = folder / "out.json"
    given = [*map(str, answers), "--questions", *files, "--out", str(out), *flags]
    args = parse_args(["pope", action, *given])
    args.act(args)
    return json.loads(out.read_text())


@pytest.mark.parametrize("rows", [llava(), vcd()], ids=["llava", "vcd"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_the_score_is_that_counted_by_hand(folder, rows, end):
    found = act("score", folder, write(folder / "answers-vcd.jsonl", rows, end))
    assert found["runs"] == {"answers-vcd": None}
    scores = found["reports"]["answers-vcd"]["scores"]
    assert [each["rule"] for each in scores] == list(COUNTS)
    for score in scores:
        counts, metrics = score["counts"], score["metrics"]
        wanted = dict(zip(("tp", "fp", "tn", "fn"), COUNTS[score["rule"]], strict=False))
        assert {name: counts[name] for name in wanted} == wanted
        assert counts["unreadable"] == COUNTS[score["rule"]][-1]
        assert [each["value"] for each in metrics.values()] == pytest.approx(
            [100 * each for each in METRICS[score["rule"]]]
        )


def test_a_record_beside_it_is_of_other_answers(folder):
    (folder / "run.json").write_text('{"question_flags": {"limit": 1}}')
    found = act("score", folder, write(folder / "vcd.jsonl", vcd()))
    assert found["runs"] == {"vcd": None}


def test_it_is_compared_with_a_run(folder):
    run = folder / "run"
    run.mkdir()
    suffix = " Please answer this question with one word."
    answers = [
        Answer(question_id=f"coco/random/{id}", image=image, prompt=text + suffix, answer=label)
        for id, image, text, label in QUESTIONS[:4]
    ]
    (run / "answers.jsonl").write_bytes(b"".join(map(answer_line, answers)))
    # Of which only the run says how many images it was asked about, and of which file.
    flags = {"questions": [str(folder / "coco_pope_random.json")], "limit": 2}
    (run / "run.json").write_text(json.dumps({"question_flags": flags}))
    args = parse_args(
        ["pope", "compare", str(write(folder / "vcd.jsonl", vcd())), str(run), "--out"]
        + [str(folder / "out.json")]
    )
    args.act(args)
    [only] = json.loads((folder / "out.json").read_text())["differences"]
    assert (only["run"], only["base"], only["questions"]) == ("run", "vcd", 4)
    assert only["metrics"]["accuracy"]["value"] == pytest.approx(50)
    assert (only["only_run_right"], only["only_base_right"]) == (2, 0)


def test_a_limit_leaves_out_the_rest(folder):
    file = write(folder / "vcd.jsonl", vcd())
    report = act("score", folder, file, flags=["--limit", "2"])["reports"]["vcd"]
    assert report["questions"] == 4
    assert report["scores"][0]["metrics"]["accuracy"]["value"] == 50


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (vcd()[1:], r"1 of 6 questions have no answer \(first: coco/random/6\)"),
        (vcd() + vcd()[:2], r"2 of 6 question_ids are there more than once \(first: 6\)"),
        (
            [*vcd(), *({"question_id": id, "text": ""} for id in (9, 8))],
            r"2 of 8 question_ids are of no question \(first: 9\)",
        ),
        (vcd(image="z.jpg"), "line 1: the answer to coco/random/6 is about another image"),
        (vcd(prompt="Is it?"), "line 1: the answer to coco/random/6 is about another prompt"),
        ([*vcd()[:2], {"question_id": 3}], "line 3 has text None: expected the answer"),
        ([*vcd()[:2], {"text": "Yes"}], "line 3 has no question_id"),
        ([*vcd()[:2], {"question_id": [3], "text": ""}], "expected text or a whole number"),
    ],
)
def test_what_does_not_match_is_told(folder, rows, sentence):
    with pytest.raises(RequestError, match=sentence):
        act("score", folder, write(folder / "vcd.jsonl", rows))


def test_a_line_cut_short_is_told(folder):
    file = write(folder / "vcd.jsonl", vcd())
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(RequestError, match="line 6 is not JSON .* is the file cut short"):
        act("score", folder, file)


def test_an_id_of_two_files_is_no_id(folder):
    file = write(folder / "vcd.jsonl", vcd())
    both = "question_id 6 is that of coco/random/6 and coco/popular/6"
    with pytest.raises(RequestError, match=both):
        act("score", folder, file, questions=("random", "popular"))
    rows = [row | {"question_id": f"coco/popular/{row['question_id']}"} for row in vcd()]
    rows += [row | {"question_id": f"coco/random/{row['question_id']}"} for row in vcd()]
    act("score", folder, write(file, rows), questions=("random", "popular"))


def test_an_empty_answer_is_an_answer(folder):
    found = act("score", folder, write(folder / "vcd.jsonl", vcd(text="")))
    assert found["reports"]["vcd"]["scores"][0]["counts"]["unreadable"] == 6
