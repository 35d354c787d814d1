"""The answers file: a line an answer, whatever kills its writers and however many they are."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalmm.errors import RequestError
from causalmm.evaluation.answers_file import (
    ANSWERS,
    answer_line,
    drop_failed,
    find_runs,
    finish,
    gather,
    part_file,
    read_answers,
)
from causalmm.evaluation.records import Answer, Question
from causalmm.inputs.json_lines import cut_torn_line


def question(number):
    return Question(id=f"q/{number}", image=f"{number}.jpg", path="x", prompt=f"is it {number} ?")


def answer(number, **changes):
    asked = question(number)
    said = {"answer": f"yes {number}", "seconds": 0.5} | changes
    return Answer(question_id=asked.id, image=asked.image, prompt=asked.prompt, **said)


SCORED = answer(
    1, answer="Ja, \u2028 \U0001f600", scores={"factual": (0.25, 0.5), "adjusted": (0.125, 1e-9)}
)
FAILED = answer(2, answer=None, error="no image file at 2.jpg")


def write(file, answers, torn=b""):
    file.write_bytes(b"".join(map(answer_line, answers)) + torn)
    return file


def test_a_line_is_read_as_it_was_written(tmp_path):
    write(tmp_path / ANSWERS, [SCORED, FAILED, answer(3)])
    wanted = {each.question_id: each for each in (SCORED, FAILED, answer(3))}
    assert read_answers(tmp_path) == read_answers(tmp_path / ANSWERS) == wanted
    record = json.loads(answer_line(SCORED))
    assert list(record) == [
        *("question_id", "image", "prompt", "answer", "error", "seconds", "scores")
    ]
    assert record["scores"]["factual"] == [0.25, 0.5]


def test_half_a_surrogate_pair_is_kept(tmp_path):
    write(tmp_path / ANSWERS, [answer(1, answer="\ud800")])
    assert read_answers(tmp_path)["q/1"].answer == "\ud800"


def test_a_line_cut_short_does_not_count(tmp_path):
    file = write(tmp_path / ANSWERS, [answer(1)], torn=answer_line(answer(2))[:-1])
    assert list(read_answers(tmp_path)) == ["q/1"]
    cut_torn_line(file)
    assert file.read_bytes() == answer_line(answer(1))
    cut_torn_line(file)
    assert file.read_bytes() == answer_line(answer(1))
    cut_torn_line(tmp_path / "nowhere")


@given(
    count=st.integers(1, 12),
    processes=st.integers(1, 11),
    seed=st.integers(0, 99),
    doubled=st.booleans(),
)
def test_parts_together_are_the_file_of_one_process(
    tmp_path_factory, count, processes, seed, doubled
):
    folder = tmp_path_factory.mktemp("run")
    rng = random.Random(seed)
    questions = [question(number) for number in range(count)]
    order = rng.sample(range(count), count)
    for number in order + order[: count // 2] * doubled:
        with open(part_file(folder, rng.randrange(processes)), "ab") as part:
            part.write(answer_line(answer(number)))
    assert set(read_answers(folder)) == {each.id for each in questions}
    if rng.random() < 0.5:
        # As where another one was quicker.
        finish(folder, questions)
    assert list(finish(folder, questions)) == [each.id for each in questions]
    assert [each.name for each in folder.iterdir()] == [ANSWERS]
    wanted = b"".join(answer_line(answer(number)) for number in range(count))
    assert (folder / ANSWERS).read_bytes() == wanted


def test_nothing_is_finished_before_its_last_answer(tmp_path):
    questions = [question(number) for number in range(3)]
    write(tmp_path / ANSWERS, [answer(0)])
    part = write(part_file(tmp_path, 1), [answer(2)], torn=answer_line(answer(1))[:20])
    assert finish(tmp_path, questions) is None
    assert part.exists()
    # For those who begin, one file of what there is, in the order of the questions.
    assert list(gather(tmp_path, questions)) == ["q/0", "q/2"]
    assert not part.exists()
    assert (tmp_path / ANSWERS).read_bytes() == answer_line(answer(0)) + answer_line(answer(2))


def test_a_single_part_of_another_process_is_taken_over(tmp_path):
    write(part_file(tmp_path, 3), [answer(1)])
    gather(tmp_path, [question(0), question(1)])
    assert [each.name for each in tmp_path.iterdir()] == [ANSWERS]


def test_what_failed_can_be_forgotten(tmp_path):
    write(tmp_path / ANSWERS, [answer(1)])
    write(part_file(tmp_path, 1), [FAILED, answer(3)])
    drop_failed(tmp_path)
    assert list(read_answers(tmp_path)) == ["q/1", "q/3"]
    before = (tmp_path / ANSWERS).stat().st_mtime_ns
    drop_failed(tmp_path)
    assert (tmp_path / ANSWERS).stat().st_mtime_ns == before


def test_answers_to_other_questions_are_refused(tmp_path):
    write(tmp_path / ANSWERS, [answer(1)])
    with pytest.raises(RequestError, match=r"another question \(q/1\)"):
        gather(tmp_path, [question(0)])
    other = Question(id="q/1", image="1.jpg", path="x", prompt="another")
    with pytest.raises(RequestError, match="another question"):
        gather(tmp_path, [other])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"[]", "question_id: None"),
        (b'{"question_id": "1"', "question_id: None"),
        (answer_line(answer(1, error="both")).strip(), "either an answer or an error"),
        (answer_line(answer(1, answer=None)).strip(), "either an answer or an error"),
        (answer_line(answer(1, scores={"factual": (1,)})).strip(), "pairs of numbers"),
        (answer_line(answer(1)).replace(b"0.5", b'"0.5"').strip(), "seconds: '0.5'"),
    ],
)
def test_a_line_that_is_no_answer_is_told(tmp_path, line, what):
    (tmp_path / ANSWERS).write_bytes(answer_line(answer(0)) + line + b"\n")
    with pytest.raises(RequestError, match=f"line 2 is no answer.*{what}"):
        read_answers(tmp_path)


def test_runs_are_found_in_folders_of_several(tmp_path):
    for name in ("causalmm", "zebra", "greedy", "ape"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / ANSWERS, [answer(1)])
    (tmp_path / "empty").mkdir()
    assert list(find_runs(tmp_path)) == ["greedy", "causalmm", "ape", "zebra"]
    assert find_runs(tmp_path / "ape") == {"ape": tmp_path / "ape"}
    assert find_runs(tmp_path / "ape" / ANSWERS) == {"ape": tmp_path / "ape" / ANSWERS}
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(RequestError, match="no answers at"):
            find_runs(nothing)
        with pytest.raises(RequestError, match="no answers at"):
            read_answers(nothing)
