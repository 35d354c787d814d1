"""causalmm data: what evaluate needs, the same from parquet files as from folders, and checked."""

import json
import shutil
import socket
from argparse import Namespace
from pathlib import Path

import pytest
from hub_tables import (
    caption_rows,
    mme_rows,
    picture,
    pope_rows,
    vlind_rows,
    write_shards,
    write_table,
)
from tiny_evaluation import save_pictures, save_questions, save_yes_no_checkpoint

from causalmm.cli.sole_writer import sole_writer
from causalmm.evaluation import commands
from causalmm.evaluation.data.command import PREPARATIONS, main
from causalmm.evaluation.data.published import difference, published, record_of
from causalmm.evaluation.diagnosis import center
from causalmm.evaluation.diagnosis import command as diagnosis_command
from causalmm.inputs.stored_pictures import StoredPicture
from causalmm.toyworld.benchmarks import MME_TASKS, BenchmarkSettings, write_benchmarks

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "pope"
PARTS = ("random", "popular", "adversarial")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The toy benchmarks as folders (bench), and as data sets of the hub (hub)."""
    home = tmp_path_factory.mktemp("data")
    bench, hub = home / "bench", home / "hub"
    bench.mkdir()
    write_benchmarks(bench, BenchmarkSettings(images=3, training_scenes=3))
    files = {split: bench / f"pope/toy_pope_{split}.json" for split in PARTS}
    write_shards(hub / "pope", pope_rows(files, bench / "pope/images"))
    write_shards(hub / "mme", mme_rows(bench / "mme", MME_TASKS))
    write_shards(hub / "vlind", vlind_rows(bench / "vlind"), "train")
    write_shards(hub / "chair", caption_rows(bench / "chair/images"), "val")
    for name in ("annotations.json", "vocabulary.json"):
        shutil.copy(bench / "chair" / name, hub / "chair" / name)
    return home


@pytest.fixture
def data(tmp_path, capfd):
    """Run the command into `out`; gives what was said on either stream."""

    def run(benchmark, *more, out="out", code=0):
        given = [benchmark, "--out", tmp_path / out, *more]
        assert main([str(each) for each in given]) == code
        return capfd.readouterr()

    return run


def questions(benchmark, folder, **more):
    """Those that evaluate asks of a folder that the command wrote or of one of the toy world's."""
    argv = []
    for name, value in {**flags(benchmark, folder), **more}.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    args = commands.parse_args([benchmark, "run", *argv, "--model", "m", "--out", "o"])
    return commands.BENCHMARKS[benchmark].questions(args)


def flags(benchmark, folder):
    if benchmark == "pope":
        images = folder if (folder / "pictures.json").exists() else folder / "images"
        return {"questions": sorted(folder.glob("*_pope_*.json")), "images": images}
    if benchmark == "chair":
        images = folder if (folder / "pictures.json").exists() else folder / "images"
        files = {name: folder / f"{name}.json" for name in ("annotations", "vocabulary")}
        return {**files, "images": images}
    return {"data": folder}


def asked(benchmark, folder):
    """Without where pictures lie."""
    return [
        (each.id, each.image, each.prompt, each.choices, each.label)
        for each in questions(benchmark, folder)
    ]


# From parquet as from folders


CODES = {"pope": 0, "mme": 1, "vlind": 1, "chair": 0}
"""MME lacks tasks, and VLind-Bench's rows have one picture an instance."""


@pytest.fixture(scope="module")
def prepared(bench):
    """The folders that the command makes of the data sets of the hub's form."""
    for name, code in CODES.items():
        more = ["--dataset", "toy"] * (name == "pope")
        out = bench / "out" / name
        assert main([name, "--source", str(bench / "hub" / name), "--out", str(out), *more]) == code
    rows = json.loads((bench / "bench/vlind/data.json").read_text())
    for row in rows:  # as far as the parquet files tell
        row["aggregated_human_label_good_images"] = {row["best_img_id"]: 2}
    shutil.copytree(bench / "bench/vlind", bench / "folders/vlind")
    (bench / "folders/vlind/data.json").write_text(json.dumps(rows))
    for name in ("pope", "mme", "chair"):
        shutil.copytree(bench / "bench" / name, bench / "folders" / name)
    return bench


@pytest.mark.parametrize("benchmark", PREPARATIONS)
def test_the_same_questions_as_from_folders(benchmark, prepared):
    from_parquet = asked(benchmark, prepared / "out" / benchmark)
    from_folders = asked(benchmark, prepared / "folders" / benchmark)
    assert sorted(from_parquet) == sorted(from_folders)
    if benchmark in ("pope", "mme"):
        assert from_parquet == from_folders  # in their order


@pytest.mark.parametrize("benchmark", PREPARATIONS)
def test_the_same_answers_as_from_folders(benchmark, prepared, tmp_path, monkeypatch):
    """End to end on a demonstration model, with no network."""

    def refuse(*_):
        raise AssertionError("something asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    answers = {}
    for kind in ("out", "folders"):
        given = flags(benchmark, prepared / kind / benchmark)
        if benchmark == "pope":
            given["questions"] = given["questions"][:1]
        argv = [benchmark, "run", "--model", "demo-llava", "--max-new-tokens", "4", "--limit", "2"]
        for name, value in given.items():
            argv += [f"--{name}", *(value if isinstance(value, list) else [value])]
        out = tmp_path / kind
        assert commands.main([str(each) for each in (*argv, "--out", out)]) == 0
        lines = (out / "answers.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert all(row.pop("seconds") > 0 and row["error"] is None for row in rows)
        answers[kind] = {row["question_id"]: row for row in rows}
    assert answers["out"] == answers["folders"]
    assert len(answers["out"]) > 1
    # And so a run that was begun with one goes on with the other.
    assert commands.main([str(each) for each in (*argv, "--out", tmp_path / "out")]) == 0
    assert commands.main([benchmark, "score", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("benchmark", ["pope", "mme", "chair"])
def test_folders_are_prepared_alike(benchmark, prepared, data, tmp_path):
    said = data(benchmark, "--source", prepared / "bench" / benchmark, code=CODES[benchmark])
    ours, theirs = tmp_path / "out", prepared / "out" / benchmark
    for file in (each for each in ours.rglob("*") if each.is_file()):
        if file.name not in ("manifest.json", "pictures.json"):
            assert file.read_bytes() == (theirs / file.relative_to(ours)).read_bytes()
    one, other = (json.loads((each / "manifest.json").read_text()) for each in (ours, theirs))
    assert one.pop("sources") != other.pop("sources")
    assert one == other  # the digest of the pictures among it
    assert one["pictures"] > 2
    assert f"causalmm evaluate {benchmark} run --" in said.out


def test_diagnose_finds_the_pictures_too(prepared):
    out = prepared / "out/pope"
    files = [out / f"toy_pope_{split}.json" for split in ("random", "adversarial")]
    given = {"questions": files[:1], "images": out, "suffix": "", "limit": None}
    args = Namespace(
        **given, dataset=None, split=None, contradicting=files[1], contradicting_label=None
    )
    wanted = {each.image: each.path for each in questions("pope", out)}
    for found in (
        diagnosis_command.asked(args),
        center.read_questions(Namespace(**given, free_text=True)),
        diagnosis_command.asked(
            Namespace(**vars(args) | {"contradicting": prepared / "out/vlind"})
        )[-2:],
    ):
        if found[0].image in wanted:
            assert all(each.path == wanted[each.image] for each in found)
        assert all(isinstance(each.path, StoredPicture) for each in found)


def test_the_folder_of_vlind_bench(bench, data, tmp_path):
    home = tmp_path / "VLind-Bench Dataset"
    shutil.copytree(bench / "bench/vlind", home)
    data("vlind", "--source", home)
    assert asked("vlind", tmp_path / "out") == asked("vlind", home)
    paths = [[each.path for each in questions("vlind", at)] for at in (tmp_path / "out", home)]
    assert paths[0] == paths[1]


# Question files against those that were published


def test_a_changed_question_is_named():
    lines = {str(n): f'{{"question_id": {n}, "text": "{n}?"}}\n'.encode() for n in range(1, 31)}
    known = record_of(lines)
    assert difference("a/b", lines, known) is None
    changed = lines | {"7": b"other\n", "30": b"another\n"}
    assert difference("a/b", changed, known) == (
        "a/b is not the published file of 30 questions: changes 7, 30"
    )
    less = {id: line for id, line in lines.items() if int(id) > 12} | {"31": b"more\n"}
    assert difference("a/b", less, known).endswith(
        ": misses 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more; adds 31"
    )
    backwards = dict(reversed(lines.items()))
    assert difference("a/b", backwards, known).endswith("the questions are in another order")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real POPE files are not here")
def test_the_published_files_are_known(tmp_path, data):
    home = tmp_path / "real"
    shutil.copytree(REAL, home)
    (home / "aokvqa_pope_random.json").unlink()
    file = home / "gqa_pope_popular.json"
    text = file.read_text("utf-8")
    file.write_text(text.replace("Is there", "Are there", 1), "utf-8")
    said = data("pope", "--source", home, code=1)
    assert said.out.count("is the published file of 3000 questions") == 7
    assert "gqa/popular is not the published file of 3000 questions: changes 1\n" in said.err
    assert "aokvqa/random is missing (3000 questions)\n" in said.err
    assert "pictures are missing: " in said.err


def test_what_is_known_of_mme_is_its_2374_questions():
    assert sum(published()["mme"].values()) == 2374
    assert set(published()["mme"]) == set(commands.BENCHMARKS["mme"].flags["tasks"]["choices"])


def test_missing_tasks_and_questions_are_named(prepared, data):
    said = data("mme", "--source", prepared / "hub/mme", code=1)
    assert "error: existence has 6 questions, the published one 60\n" in said.err
    assert "error: OCR is missing (40 questions)\n" in said.err


# Bad input


@pytest.fixture
def tiny(tmp_path):
    """A folder with four pictures and a question file, and its rows as of a data set."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_pictures(folder)
    return folder, pope_rows({"random": save_questions(folder)}, folder)


def refused(data, *sources, benchmark="pope", code=2, out="out", more=()):
    given = [part for source in sources for part in ("--source", source)]
    said = data(benchmark, *given, *more, out=out, code=code)
    assert "Traceback" not in said.err
    return said.err


def test_missing_pictures_are_named(tiny, data, tmp_path):
    folder, _ = tiny
    (folder / "c.png").unlink()
    err = refused(data, folder, code=1)
    assert "error: 1 of 4 pictures are missing: c.png\n" in err
    # The others are asked about all the same.
    kept = questions("pope", tmp_path / "out")
    assert [Path(each.path).is_file() for each in kept] == [each.image != "c.png" for each in kept]


def test_bytes_that_are_no_picture(tiny, data, tmp_path):
    _, rows = tiny
    bad = next(row for row in rows if row["image_source"] == "b.png")
    bad["image"] = {"bytes": b"no picture", "path": "b.png"}
    write_shards(tmp_path / "hub", rows)
    err = refused(data, tmp_path / "hub", code=1, more=("--dataset", "tiny"))
    assert "error: b.png cannot be read: " in err
    assert "is not an image that Pillow can read\n" in err


def test_a_missing_column(tiny, data, tmp_path):
    _, rows = tiny
    for row in rows:
        del row["category"]
    write_table(tmp_path / "hub/a.parquet", rows)
    assert "a.parquet has no column category: it has id, question_id," in refused(
        data, tmp_path / "hub"
    )


def test_a_parquet_file_cut_short(tiny, data, tmp_path):
    file = write_table(tmp_path / "hub/a.parquet", tiny[1])
    file.write_bytes(file.read_bytes()[:-9])
    assert "a.parquet is no whole parquet file (" in refused(data, tmp_path / "hub")


def test_a_parquet_file_exchanged_later(tiny, data, tmp_path):
    file = write_table(tmp_path / "hub/a.parquet", tiny[1])
    data("pope", "--source", tmp_path / "hub", "--dataset", "tiny")
    write_table(file, [*tiny[1], tiny[1][0] | {"question_id": "8"}])
    model = save_yes_no_checkpoint("llava", tmp_path / "model")
    argv = ["pope", "run", "--questions", tmp_path / "out/tiny_pope_random.json", "--images",
            tmp_path / "out", "--model", model, "--out", tmp_path / "run"]  # fmt: skip
    commands.main([str(each) for each in argv])
    lines = (tmp_path / "run/answers.jsonl").read_text("utf-8").splitlines()
    assert all("`causalmm data` read it" in json.loads(line)["error"] for line in lines)


def test_two_sources_with_different_questions(tiny, data, tmp_path):
    folder, rows = tiny
    rows[2]["question"] = "is it another ?"
    rows[4]["answer"] = {"yes": "no", "no": "yes"}[rows[4]["answer"]]
    write_table(tmp_path / "hub/a.parquet", rows)
    err = refused(data, folder, tmp_path / "hub", more=("--dataset", "tiny"))
    assert "have different questions of tiny/random: 3, 5\n" in err
    rows = mme_rows_of(tiny[0])
    write_table(tmp_path / "one/a.parquet", rows)
    rows[1] = rows[1] | {"answer": "Yes"}
    write_table(tmp_path / "two/b.parquet", rows)
    err = refused(data, tmp_path / "one", tmp_path / "two", benchmark="mme", out="mme")
    assert "b.parquet answer differently: count/a.png, 'are there two ?'" in err


def mme_rows_of(folder):
    image = picture(folder / "a.png")
    about = {"question_id": "count/a.png", "image": image, "category": "count"}
    return [
        {**about, "question": f"are there {number} ?", "answer": answer}
        for number, answer in (("one", "Yes"), ("two", "No"))
    ]


def test_questions_and_pictures_may_lie_apart(tiny, data, tmp_path):
    folder, _ = tiny
    (tmp_path / "texts").mkdir()
    (folder / "tiny_pope_random.json").rename(tmp_path / "texts/tiny_pope_random.json")
    data("pope", "--source", tmp_path / "texts", "--source", folder)
    assert all(Path(each.path).is_file() for each in questions("pope", tmp_path / "out"))


def test_a_folder_of_something_else(tiny, data, tmp_path):
    folder, _ = tiny
    (tmp_path / "bare").mkdir()
    for benchmark, what in (
        ("pope", "bare holds no questions of POPE"),
        ("mme", "bare holds no MME task"),
        ("vlind", "bare holds no questions of VLind-Bench"),
        ("chair", r"there is no synonyms.txt in"),
    ):
        assert what in refused(data, tmp_path / "bare", benchmark=benchmark, out=benchmark)
    assert "neither a folder nor a data set in the local cache" in refused(data, "no/such")
    assert "lies in --source" in refused(data, folder, out="tiny/out")


def test_out_is_new_or_of_the_same_questions(tiny, data, tmp_path):
    folder, _ = tiny
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    assert "holds other files" in refused(data, folder, out="full")
    data("pope", "--source", folder)
    before = {each: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    data("pope", "--source", folder)
    assert before == {each: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    assert "was not written by `causalmm data mme`" in refused(data, folder, benchmark="mme")
    file = folder / "tiny_pope_random.json"
    file.write_text(file.read_text().replace("banana", "apple", 1))
    assert "random.json holds other questions (first: line " in refused(data, folder)
    with sole_writer(tmp_path / "out" / "manifest.json"):
        assert "another process is writing" in refused(data, folder)


# COCO's annotations


@pytest.fixture
def coco(tmp_path):
    """Two pictures, one labelled, one of which captions name more, in COCO's own form."""
    folder = tmp_path / "coco"
    (folder / "val2014").mkdir(parents=True)
    save_pictures(folder / "val2014")
    images = [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}]
    labels = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "dining table"}],
        "annotations": [{"image_id": 5, "category_id": 1}, {"image_id": 5, "category_id": 2}],
    }
    captions = {
        "images": images,
        "annotations": [
            {"image_id": 5, "caption": "A puppy by a desk."},
            {"image_id": 6, "caption": "Two cats, and a hot dog"},
        ],
    }
    (folder / "instances_val2014.json").write_text(json.dumps(labels))
    (folder / "captions_val2014.json").write_text(json.dumps(captions))
    (folder / "synonyms.txt").write_text("dog, puppy\ncat\ndining table, desk\nhot dog\n")
    return folder


def objects(tmp_path):
    return json.loads((tmp_path / "out/annotations.json").read_text())


def test_objects_are_those_of_labels_and_of_human_captions(coco, data, tmp_path):
    err = refused(data, coco, benchmark="chair", code=1)
    assert objects(tmp_path) == {"a.png": ["dining table", "dog"], "b.png": ["cat", "hot dog"]}
    assert "the labels are of 2 pictures, those of val2014 of 40504\n" in err
    assert "the vocabulary has 4 objects, the published one 80\n" in err
    assert "captions" not in err


def test_captions_may_come_with_the_pictures(coco, data, tmp_path):
    captions = {"b.png": ["a cat", "one desk"], "c.png": ["a dog"]}
    write_table(tmp_path / "hub/a.parquet", caption_rows(coco / "val2014", captions))
    shutil.rmtree(coco / "val2014")
    (coco / "captions_val2014.json").unlink()
    err = refused(data, coco, tmp_path / "hub", benchmark="chair", code=1)
    assert objects(tmp_path) == {"a.png": ["dining table", "dog"], "b.png": ["cat", "dining table"]}
    assert "1 of 2 pictures have no human captions (first: a.png)" in err
    assert "missing" not in err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("dining table\"", "sofa\""), "has the label 'sofa', which no synonym has"),
        (('"image_id": 5', '"image_id": 9'), "an annotation of image_id 9, which is not there"),
        (('"categories"', '"kinds"'), "has no categories with id and name, as COCO's have"),
    ],
)  # fmt: skip
def test_labels_of_another_form(coco, data, change, sentence):
    file = coco / "instances_val2014.json"
    file.write_text(file.read_text().replace(*change))
    assert sentence in refused(data, coco, benchmark="chair")
