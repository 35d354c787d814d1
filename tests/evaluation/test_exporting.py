"""Exported answers, read by each published rule written anew, give the scores that we give."""

import json
import re
from pathlib import Path

import pytest
from answered import answered, failed
from test_amber import write as write_amber
from test_chair import SYNONYMS
from test_chair import write as write_chair
from test_hallusion import write as write_hallusion
from test_mme import COUNT, EXISTENCE, flat
from test_vlind import INSTANCE
from test_vlind import folder as write_vlind

from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import ANSWERS, answer_line
from causalmm.evaluation.benchmarks.registry import BENCHMARKS

POPE_ROWS = [
    {"question_id": id, "image": f"{id // 2}.jpg", "text": f"Is there a {thing}?", "label": label}
    for id, (thing, label) in enumerate(
        [
            ("cup", "yes"),
            ("cat", "no"),
            ("bed", "yes"),
            ("car", "no"),
            ("dog", "yes"),
            ("hat", "no"),
        ],
        1,
    )
]
POPE_SAID = ["Yes", "Yes, a cat.", "There is no bed", "I know", "yes.", "No"]


class Exported:
    """A run of a benchmark on disk, and what the commands make of it."""

    def __init__(self, folder: Path, name: str, given: dict, said) -> None:
        self.folder, self.name = folder, name
        benchmark = BENCHMARKS[name]
        self.questions = benchmark.read(**given)
        self.answers = answered(self.questions, said)
        self.run, self.out = folder / "run", folder / "out"
        self.run.mkdir()
        flags = json.loads(json.dumps(given, default=str))
        record = {"question_flags": flags, "model": "some/model-7b"}
        (self.run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        self.save()

    def save(self, answers=None) -> None:
        lines = map(answer_line, (answers or self.answers).values())
        (self.run / ANSWERS).write_bytes(b"".join(lines))

    def command(self, action: str, *more, run=None) -> int:
        return commands.main([self.name, action, str(run or self.run), *map(str, more)])

    def export(self, *more, code=0):
        """What was written, parsed if it is JSON."""
        assert self.command("export", "--out", self.out, *more) == code
        if self.out.is_dir():
            return {each.name: each.read_text("utf-8") for each in self.out.iterdir()}
        return json.loads(self.out.read_text("utf-8")) if self.out.exists() else None

    def scores(self) -> dict:
        """Our scores, by set and rule."""
        file = self.folder / "score.json"
        assert self.command("score", "--out", file) == 0
        [report] = json.loads(file.read_text("utf-8"))["reports"].values()
        return {
            (score["name"], score["rule"]): {
                name: each["value"] for name, each in score["metrics"].items()
            }
            for score in report["scores"]
        }


def pope(folder: Path) -> Exported:
    file = folder / "coco_pope_random.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in POPE_ROWS), encoding="utf-8")
    return Exported(folder, "pope", {"questions": [file]}, POPE_SAID)


def mme(folder: Path) -> Exported:
    said = ["Yes", "no.", "yes, there\tis\na bed", "Yes", "nobody", "There is no second"]
    tasks = flat(folder, existence=EXISTENCE, count=COUNT)
    return Exported(folder, "mme", {"data": tasks, "suffix": " One word."}, said)


def vlind(folder: Path) -> Exported:
    other = INSTANCE | {"context_id": 2}
    given = {"data": write_vlind(folder, INSTANCE, other)}
    wrong = {"climate/2/VP1", "climate/3/LP2/5"}
    return Exported(
        folder,
        "vlind",
        given,
        lambda each: "Maybe." if each.id in wrong else f"{each.label.capitalize()}, it is.",
    )


def chair(folder: Path) -> Exported:
    images = {"COCO_val2014_000000000139.jpg": ["dog"], "COCO_val2014_000000000042.jpg": ["bus"]}
    said = ["A dog, a dog and a man.", "Two \u201cbuses\u201d."]
    return Exported(folder, "chair", write_chair(folder, images), said)


def amber(folder: Path) -> Exported:
    said = ["A sun.", "A bird.", "No", "Yes.", "no", "No, it", "yes", "maybe", "Yes", "No"]
    return Exported(folder, "amber", {"data": write_amber(folder)}, said)


def hallusion(folder: Path) -> Exported:
    return Exported(folder, "hallusion", {"data": write_hallusion(folder)}, lambda each: each.label)


MAKERS = {each.__name__: each for each in (pope, mme, vlind, chair, amber, hallusion)}


def test_every_benchmark_with_a_published_scorer_is_tested():
    assert {name for name, each in BENCHMARKS.items() if each.export} == set(MAKERS)


# POPE


def rates(outcomes):
    """In per cent, from pairs of what was said and what is right, yes as positive."""
    tp, fp, tn, fn = (
        outcomes.count(each)
        for each in (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
    )
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": 100 * (tp + tn) / len(outcomes),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "F1": 200 * precision * recall / (precision + recall),
        "yes ratio": 100 * (tp + fp) / len(outcomes),
    }


def test_pope_by_its_own_evaluation(tmp_path):
    exported = pope(tmp_path)
    [(name, text)] = exported.export().items()
    assert name == "coco_pope_random_answers.jsonl"
    outcomes = []
    for line, asked in zip(text.splitlines(), POPE_ROWS, strict=True):
        row = json.loads(line)
        assert row["question"] == asked["text"]
        words = row["answer"].split(".")[0].replace(",", "").split(" ")
        no = "No" in words or "not" in words or "no" in words
        outcomes.append(("no" if no else "yes", asked["label"]))
    assert exported.scores()["coco/random", "official"] == pytest.approx(rates(outcomes))


def test_pope_by_the_released_evaluation(tmp_path):
    exported = pope(tmp_path)
    [text] = exported.export().values()
    outcomes = []
    for line, asked in zip(text.splitlines(), POPE_ROWS, strict=True):
        row = json.loads(line)
        assert row["question_id"] == asked["question_id"]
        assert (row["prompt"], row["image"]) == (asked["text"], asked["image"])
        assert row["model_id"] == "model-7b"
        label, said = asked["label"], row["text"].lower()
        other = "no" if label == "yes" else "yes"
        outcomes.append((label if label in said else other, label))
        # So that what is left out does not part the lines from a file of questions.
        assert row["label"] == label
    assert exported.scores()["coco/random", "released"] == pytest.approx(rates(outcomes))


def test_exported_pope_answers_are_read_again(tmp_path):
    exported = pope(tmp_path)
    before = exported.scores()
    exported.export()
    [file] = exported.out.iterdir()
    questions = tmp_path / "coco_pope_random.json"
    out = tmp_path / "again.json"
    assert exported.command("score", "--questions", questions, "--out", out, run=file) == 0
    [report] = json.loads(out.read_text("utf-8"))["reports"].values()
    again = {
        (score["name"], score["rule"]): {
            name: each["value"] for name, each in score["metrics"].items()
        }
        for score in report["scores"]
    }
    assert again == before


# MME


def test_mme_by_its_own_calculation(tmp_path):
    exported = mme(tmp_path)
    ours, total = exported.scores(), 0
    files = exported.export()
    assert sorted(files) == ["count.txt", "existence.txt"]
    for name, text in files.items():
        lines = [line.split("\t") for line in text.splitlines()]
        asked = {"existence.txt": EXISTENCE, "count.txt": COUNT}[name]
        assert ["\t".join(line[:3]) for line in lines] == asked.splitlines()
        right = []
        for _, _, truth, said in lines:
            said = said.lower()
            if said not in ("yes", "no"):
                said = "yes" if "yes" in said[:4] else "no" if "no" in said[:4] else "other"
            right.append(said == truth.lower())
        pairs = list(zip(right[::2], right[1::2], strict=True))
        acc, acc_plus = sum(right) / len(right), sum(map(all, pairs)) / len(pairs)
        rule = "first four characters"
        assert ours[name.removesuffix(".txt"), rule]["score"] == pytest.approx(
            100 * (acc + acc_plus)
        )
        total += 100 * (acc + acc_plus)
    assert ours["total", rule]["score"] == pytest.approx(total)
    assert files["existence.txt"].splitlines()[2] == (
        "2.jpg\tIs there a bed?\tYes\tyes, there is a bed"
    )


# VLind-Bench


def test_vlind_by_its_own_pipeline(tmp_path):
    exported = vlind(tmp_path)
    holds = dict.fromkeys(("a", "b", "c", "bc", "d", "LP", "C"), 0.0)
    instances = exported.export()
    for row in instances:
        good = [id for id, votes in row["aggregated_human_label_good_images"].items() if votes >= 2]

        def both(name, get=lambda found: found, row=row):
            first, second = (get(row[f"causalmm_pred_{name.format(at)}"]) for at in (1, 2))
            return first["answer"] == "True" and second["answer"] == "False"

        a, b, c = both("a{}_image"), both("b{}"), both("c{}_image")
        share = sum(both("d{}", lambda found, id=id: found[id]) for id in good) / len(good)
        holds["a"] += a
        holds["b"] += b
        holds["c"] += a and c
        holds["C"] += c
        holds["bc"] += a and b and c
        holds["d"] += share * (a and b and c)
        holds["LP"] += share
    count = len(instances)
    assert count == 2
    assert exported.scores()["all", "first true or false"] == pytest.approx(
        {
            "S_CK": 100 * holds["a"] / count,
            "S_VP": 100 * holds["b"] / count,
            "S_CB": 100 * holds["c"] / holds["a"],
            "S_LP": 100 * holds["d"] / holds["bc"],
            "CB accuracy": 100 * holds["C"] / count,
            "LP accuracy": 100 * holds["LP"] / count,
        }
    )
    assert instances[1]["causalmm_pred_b1"] == {"response": "Maybe.", "answer": "NA"}


# CHAIR


def test_chair_by_a_count_of_its_own(tmp_path):
    exported = chair(tmp_path)
    rows = exported.export()
    assert [row["image_id"] for row in rows] == [139, 42]
    there = {139: {"dog"}, 42: {"bus"}}
    names = {name: thing for thing, others in SYNONYMS.items() for name in (thing, *others)}
    names |= {"buses": "bus"}
    said = [
        [names[word] for word in re.findall("[a-z]+", row["caption"].lower()) if word in names]
        for row in rows
    ]
    invented = [
        [thing for thing in things if thing not in there[row["image_id"]]]
        for row, things in zip(rows, said, strict=True)
    ]
    ours = exported.scores()["all", "vocabulary"]
    assert ours["CHAIR_i published"] == pytest.approx(
        100 * sum(map(len, invented)) / sum(map(len, said))
    )
    assert ours["CHAIR_s"] == 100 * sum(map(bool, invented)) / len(rows)
    assert ours["CHAIR_i published"] == pytest.approx(25)
    assert {"recall", "words"} <= ours.keys()


# AMBER


def test_amber_by_its_own_inference(tmp_path):
    exported = amber(tmp_path)
    truth = {row["id"]: row for row in json.loads((tmp_path / "annotations.json").read_text())}
    counts = dict.fromkeys(("asked", "right", "no", "said no", "rightly no"), 0)
    rows = exported.export()
    assert [row["id"] for row in rows] == list(range(1, 11))
    for row in rows[2:]:
        label, said = truth[row["id"]]["truth"], row["response"]
        counts["asked"] += 1
        counts["right"] += said == label.capitalize()
        counts["no"] += label == "no"
        counts["said no"] += said == "No"
        counts["rightly no"] += said == "No" and label == "no"
    ours = exported.scores()["discriminative", "strict"]
    precision = counts["rightly no"] / counts["said no"]
    recall = counts["rightly no"] / counts["no"]
    assert ours["accuracy"] == pytest.approx(100 * counts["right"] / counts["asked"])
    assert ours["precision"] == pytest.approx(100 * precision)
    assert ours["recall"] == pytest.approx(100 * recall)
    assert ours["F1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert [row["response"] for row in rows[:4]] == ["A sun.", "A bird.", "No", "Yes"]
    assert rows[7]["response"] == "maybe"


# HallusionBench


def test_hallusion_keeps_its_rows(tmp_path):
    exported = hallusion(tmp_path)
    given = json.loads((tmp_path / "HallusionBench.json").read_text("utf-8"))
    rows = exported.export()
    assert [row.pop("model_prediction") for row in rows] == [
        ("no", "yes")[int(row["gt_answer"])] for row in given
    ]
    assert rows == given


# What is missing


def content(written):
    """The lines, rows or fields that hold answers."""
    if isinstance(written, dict):
        return [line for text in written.values() for line in text.splitlines()]
    return written


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("gone", ["failed", "not asked"])
def test_what_has_no_answer_is_not_exported(tmp_path, capsys, name, gone):
    exported = MAKERS[name](tmp_path)
    whole = content(exported.export())
    for file in exported.out.iterdir() if exported.out.is_dir() else [exported.out]:
        file.unlink()
    last = exported.questions[-1].id
    if gone == "failed":
        exported.save(failed(exported.answers, last))
        told = f"1 of {len(exported.questions)} questions have no answer (first: {last}, out of mem"
    else:
        exported.save({id: each for id, each in exported.answers.items() if id != last})
        told = f"1 of {len(exported.questions)} questions have no answer (first: {last}, not asked)"
    assert exported.command("export", "--out", exported.out) == 1
    said = capsys.readouterr().err
    assert told in said
    assert "nothing is written; --partial leaves them out" in said
    assert "Traceback" not in said
    assert not exported.out.exists() or not list(exported.out.iterdir())
    kept = content(exported.export("--partial"))
    assert told in capsys.readouterr().err
    # MME's lines come in pairs, and VLind-Bench's questions by the instance.
    dropped = {"mme": 2}.get(name, 1)
    assert len(kept) == len(whole) - dropped
    assert all(each in whole for each in kept)


def test_an_answer_scored_with_others_is_left_out_with_them(tmp_path, capsys):
    exported = mme(tmp_path)
    exported.save(failed(exported.answers, "existence/1.jpg/2"))
    files = exported.export("--partial")
    assert [line.split("\t")[0] for line in files["existence.txt"].splitlines()] == ["2.jpg"] * 2
    said = capsys.readouterr().err
    assert "4 of 6 answers; 1 are left out with those that they are scored together with" in said


@pytest.mark.parametrize("code", [0, 2])
def test_a_folder_of_something_else_is_not_written_to(tmp_path, capsys, code):
    exported = mme(tmp_path)
    exported.export()
    if code:
        (exported.out / "notes.txt").write_text("mine", encoding="utf-8")
    assert exported.command("export", "--out", exported.out) == code
    assert ("holds other files (first: notes.txt)" in capsys.readouterr().err) == bool(code)


def test_what_is_wrong_is_told(tmp_path, capsys):
    exported = chair(tmp_path)
    exported.out.mkdir()
    assert exported.command("export", "--out", exported.out) == 2
    assert "out is a folder, expected a file" in capsys.readouterr().err
    assert exported.command("export", "--out", tmp_path / "none" / "a.json") == 2
    assert "there is no folder" in capsys.readouterr().err
    exported.save({"": failed(exported.answers, exported.questions[0].id).popitem()[1]})
    (exported.run / ANSWERS).write_bytes(b"")
    assert exported.command("export", "--partial", "--out", tmp_path / "a.json") == 1
    assert "there is no answer to export" in capsys.readouterr().err


def test_one_run_is_exported(tmp_path, capsys):
    exported = chair(tmp_path)
    both = tmp_path / "both"
    both.mkdir()
    exported.run.rename(both / "greedy")
    (both / "sample").mkdir()
    for name in ("run.json", ANSWERS):
        (both / "sample" / name).write_bytes((both / "greedy" / name).read_bytes())
    assert exported.command("export", "--out", exported.out, run=both) == 2
    assert "holds 2 runs: give one of them" in capsys.readouterr().err
    assert exported.command("export", "--out", exported.out, run=both / "sample") == 0
