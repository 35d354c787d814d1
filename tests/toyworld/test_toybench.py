"""Benchmarks of the toy world: files that the real readers take, labels as the scenes have it."""

import json
import re
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from answered import answered
from PIL import Image

from causalmm.evaluation import commands
from causalmm.evaluation.answers_file import read_answers
from causalmm.evaluation.benchmarks import chair, mme, pope, vlind
from causalmm.families.registry import find
from causalmm.toyworld import CHECKPOINTS, benchmarks
from causalmm.toyworld import questions as ask
from causalmm.toyworld.benchmarks import (
    IMAGES_AN_INSTANCE,
    BenchmarkSettings,
    frequent_classes,
    instances,
    write_benchmarks,
)
from causalmm.toyworld.commands import make_toybench
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import SceneStyle, scene
from causalmm.toyworld.vocabulary import CANONICAL, CLASSES, GROUP_OF, GROUPS, plural

FEW = BenchmarkSettings(images=3, training_scenes=40)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder of the smallest kind, and what was said of it."""
    folder = tmp_path_factory.mktemp("toybench")
    return folder, write_benchmarks(folder, FEW)


def scenes(block, style, settings=FEW):
    """By the name of the picture."""
    drawn = islice(settings.scenes(block, style), settings.images)
    return {settings.file(number): each for number, each in drawn}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# -- POPE


@pytest.fixture(scope="module")
def asked_by_pope(few):
    folder = few[0] / "pope"
    files = [folder / f"toy_pope_{split}.json" for split in benchmarks.POPE_SPLITS]
    return pope.read(files, images=folder / "images")


def test_pope_asks_for_what_is_there_and_what_is_not(few, asked_by_pope):
    drawn = scenes("pope", benchmarks._TWO_OF_A_GROUP)
    assert len(asked_by_pope) == sum(few[1]["questions"]["pope"].values()) == 3 * 3 * 4
    popular = frequent_classes(FEW.training_scenes)
    for split in benchmarks.POPE_SPLITS:
        part = [each for each in asked_by_pope if each.facts["set"] == f"toy/{split}"]
        for file, shown in drawn.items():
            here = [each for each in part if each.image == file]
            assert [each.label for each in here] == ["yes", "no", "yes", "no"]
            names = [re.search(r"an? (\w+) in", each.prompt)[1] for each in here]
            assert names[::2] == list(shown.names)
            absent, group = names[1::2], GROUP_OF[shown.names[0]]
            assert not {*absent} & {*shown.names}
            near = {*GROUPS[group]} - {*shown.names}
            far = [name for name in popular if GROUP_OF[name] != group]
            if split == "adversarial":
                assert {*absent} == near
            elif split == "popular":
                assert absent == far[:2]
            else:
                assert {*absent} <= {*far[2:]}
                assert len({*absent}) == 2


def test_pope_asks_in_the_words_of_training(asked_by_pope):
    for each in asked_by_pope:
        name = re.search(r"an? (\w+) in", each.prompt)[1]
        assert each.prompt == ask.existence(name, True, ask.ONE_WORD).text


def test_pictures_are_the_scenes(few):
    for folder, block, style in (
        ("pope", "pope", benchmarks._TWO_OF_A_GROUP),
        ("chair", "chair", SceneStyle()),
    ):
        drawn = scenes(block, style)
        assert {*drawn} == {each.name for each in (few[0] / folder / "images").iterdir()}
        for file, shown in drawn.items():
            assert np.array_equal(pixels(few[0] / folder / "images" / file), shown.image)


def test_frequent_classes_are_counted():
    ranked = frequent_classes(40)
    assert sorted(ranked) == sorted(CLASSES)
    seen = [name for number in range(40) for name in scene(number, split="train").names]
    counts = [seen.count(name) for name in ranked]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


# -- MME

NUMBERS = {word: number for number, word in enumerate(ask.NUMBERS)}


def holds(question, shown):
    """Whether it is so, read from the question's words."""
    at = {item.name: place for place, item in enumerate(shown.items)}
    colours = {item.name: item.colour for item in shown.items}
    if found := re.fullmatch(r"(?:Is|Are) there (\w+) objects? in the image\?", question):
        return NUMBERS[found[1]] == len(shown.items)
    if found := re.fullmatch(r"Is there an? (\w+) in the image\?", question):
        return found[1] in at
    if found := re.fullmatch(r"Is the (\w+) on the (\w+) side of the (\w+)\?", question):
        return (at[found[1]] < at[found[3]]) == (found[2] == "left")
    name, colour = re.fullmatch(r"Is the (\w+) (\w+)\?", question).groups()
    return colours[name] == colour


def test_the_oracle_tells_true_from_false():
    shown = next(iter(scenes("position", SceneStyle(counts=(0, 1.0, 0, 0))).values()))
    first, second = shown.items
    assert holds(f"Is the {first.name} on the left side of the {second.name}?", shown)
    assert not holds(f"Is the {first.name} on the right side of the {second.name}?", shown)
    assert holds("Are there two objects in the image?", shown)
    assert not holds("Is there one object in the image?", shown)


@pytest.mark.parametrize("task", benchmarks.MME_TASKS)
def test_mme_asks_each_image_one_question_to_affirm_and_one_to_deny(few, task):
    asked = mme.read(few[0] / "mme", tasks=[task])
    assert len(asked) == few[1]["questions"]["mme"][task] == 2 * FEW.images
    drawn = scenes(task, benchmarks.MME_TASKS[task][0])
    for yes, no in zip(asked[::2], asked[1::2], strict=True):
        assert (yes.label, no.label) == ("yes", "no")
        shown = drawn[Path(yes.path).name]
        assert np.array_equal(pixels(yes.path), shown.image)
        assert yes.image == no.image
        for each in (yes, no):
            assert each.prompt.endswith(ask.YES_OR_NO)
            bare = each.prompt.removesuffix(ask.YES_OR_NO)
            assert holds(bare, shown) == (each.label == "yes")


def test_mme_is_whole(few):
    asked = mme.read(few[0] / "mme")
    right = answered(asked, lambda each: each.label)
    tallies = {each.name: each for each in mme.tally([*zip(asked, right.values(), strict=True)])}
    total = tallies["total"]
    assert float(total.metrics["score"].of(total.table.totals())) == 200 * len(benchmarks.MME_TASKS)


# -- VLind-Bench


@pytest.fixture(scope="module")
def found_instances():
    return list(islice(instances(FEW), FEW.images))


def test_vlind_shows_objects_in_colours_that_are_not_theirs(few, found_instances):
    rows = json.loads((few[0] / "vlind" / "data.json").read_text())
    assert len(rows) == few[1]["questions"]["vlind"]["instances"] == FEW.images
    for row, each in zip(rows, found_instances, strict=True):
        assert each.colour != CANONICAL[each.name]
        assert row["true_statement"] == f"{plural(each.name).capitalize()} are {each.colour}."
        assert row["false_statement"] == row["factual_context"]
        assert row["false_statement"].endswith(f"are {CANONICAL[each.name]}.")
        colours = [
            {item.name: item.colour for item in drawn.items} for drawn in (each.usual, *each.odd)
        ]
        assert colours[0][each.name] == CANONICAL[each.name]
        assert [these[each.name] for these in colours[1:]] == [each.colour] * IMAGES_AN_INSTANCE
        assert row["existent_noun"] == each.name
        assert all(row["non-existent_noun"] not in these for these in colours)
        votes = row["aggregated_human_label_good_images"]
        assert list(votes.values()) == list(each.votes)
        assert 1 <= min(each.votes) <= max(each.votes) <= 3
        assert votes[row["best_img_id"]] == max(each.votes) >= vlind.GOOD_VOTES


def test_vlind_asks_in_the_words_of_training(few, found_instances):
    asked = vlind.read(few[0] / "vlind")
    for number, each in enumerate(found_instances, 1):
        part = {
            question.id.removeprefix(f"color/{number}/"): question
            for question in asked
            if question.facts["instance"] == f"color/{number}"
        }
        usual, odd = CANONICAL[each.name], each.colour
        absent = re.search(r"There is (\w+) in", part["VP2"].prompt)[1]
        good = [image for image, votes in enumerate(each.votes) if votes >= 2]
        wanted = {
            "CK1": ask.sense_statement(each.name, usual),
            "CK2": ask.sense_statement(each.name, odd),
            "VP1": ask.image_statement(ask.presence(each.name), True),
            "VP2": ask.image_statement(ask.presence(absent), False),
            "CB1": ask.context_statement(each.name, odd, odd),
            "CB2": ask.context_statement(each.name, odd, usual),
        }
        for image in good:
            wanted[f"LP1/{image}"] = ask.image_statement(ask.colour_rule(each.name, odd), True)
            wanted[f"LP2/{image}"] = ask.image_statement(ask.colour_rule(each.name, usual), False)
        assert part.keys() == wanted.keys()
        for name, question in part.items():
            assert question.prompt == wanted[name].text
            assert question.label == wanted[name].answer.lower()
            shown = each.usual if name.startswith("CK") else each.odd[int(Path(question.path).stem)]
            # A JPEG of noise, nearly the scene.
            off = pixels(question.path).astype(int) - np.asarray(shown.image)
            assert np.abs(off).mean() < 4


def test_no_picture_is_in_two_instances():
    seen = set()
    for each in islice(instances(BenchmarkSettings(images=8)), 8):
        for drawn in (each.usual, *each.odd):
            assert drawn.image.tobytes() not in seen
            seen.add(drawn.image.tobytes())


# -- CHAIR


def test_chair_knows_what_is_there(few):
    folder = few[0] / "chair"
    asked = chair.read(
        folder / "annotations.json", vocabulary=folder / "vocabulary.json", images=folder / "images"
    )
    drawn = scenes("chair", SceneStyle())
    assert few[1]["questions"]["chair"] == {"captions": FEW.images}
    for each in asked:
        assert each.prompt in ask.CAPTION_PROMPTS
        assert each.facts["objects"] == {*drawn[each.image].names}
        assert Path(each.path).is_file()
    captions = {
        each.id: ask.caption([(item.name, item.colour) for item in drawn[each.image].items]).answer
        for each in asked
    }
    [tally] = chair.tally([*zip(asked, answered(asked, captions).values(), strict=True)])
    totals = tally.table.totals()
    assert totals["invented"] == 0
    assert totals["found"] == totals["there"] == sum(len(each.names) for each in drawn.values())


def test_chair_reads_singular_and_plural(few):
    folder = few[0] / "chair"
    names = chair.read_vocabulary(folder / "vocabulary.json")
    for name in CLASSES:
        assert names.mentions(f"a {name}, two {plural(name)}") == [name, name]


# -- what agrees with the prior and what contradicts it


@pytest.mark.parametrize("name", ["canonical", "odd"])
def test_colours_agree_with_the_prior_or_contradict_it(few, name):
    folder = few[0] / "prior"
    asked = pope.read([folder / f"toy_pope_{name}.json"], images=folder / "images", suffix="")
    drawn = scenes(name, {"canonical": benchmarks._USUAL, "odd": benchmarks._ODD}[name])
    assert len(asked) == 2 * FEW.images == few[1]["questions"]["prior"][name]
    for each in asked:
        assert holds(each.prompt, drawn[each.image]) == (each.label == "yes")
        thing, colour = re.fullmatch(r"Is the (\w+) (\w+)\?", each.prompt).groups()
        by_prior = "yes" if CANONICAL[thing] == colour else "no"
        assert (by_prior == each.label) == (name == "canonical")
        assert f"{each.prompt}{ask.YES_OR_NO}" == ask.colour_check(thing, colour, "").text


# -- as a whole


def contents(folder):
    files = [each for each in folder.rglob("*") if each.is_file()]
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


def test_files_are_a_function_of_the_settings(few, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    write_benchmarks(again, FEW)
    assert contents(again) == contents(few[0])
    assert json.loads((again / "manifest.json").read_text()) == few[1]


def test_sets_have_scenes_of_their_own(few):
    files = [each for each in few[0].rglob("*.png") if each.is_file()]
    assert len({each.read_bytes() for each in files}) == len(files) == 8 * FEW.images


@pytest.mark.parametrize("family", RECIPES)
def test_pictures_are_as_large_as_the_family_knows(family):
    settings = BenchmarkSettings(family=family, images=8)
    sizes = [each.image.size for each in scenes("pope", SceneStyle(), settings).values()]
    assert sizes == list(islice(cycle(RECIPES[family].sizes), 8))


def test_splits_have_other_scenes():
    one, other = (
        next(iter(scenes("pope", SceneStyle(), BenchmarkSettings(split=split)).values()))
        for split in benchmarks.SPLITS
    )
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"family": "qwen"}, "family='qwen': expected one of llava, qwen2_vl"),
        ({"split": "train"}, "split='train': expected one of test, development"),
        ({"images": 0}, "images=0: expected 1 to 1000"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkSettings(**wrong)


# -- the command


def test_the_command_writes_a_folder_once(tmp_path, capfd, monkeypatch):
    def quickly(folder, settings):
        write_benchmarks(folder, replace(settings, training_scenes=20))

    monkeypatch.setattr(make_toybench, "write_benchmarks", quickly)
    out = tmp_path / "toy"
    given = [str(out), "--model-family", "qwen2_vl", "--images", "1", "--split", "development"]
    assert make_toybench.main(given) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["toy"]
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert (settings["family"], settings["split"], settings["images"]) == (
        *("qwen2_vl", "development", 1),
    )
    assert " ".join(given[1:]) in (out / "README.md").read_text()
    before = contents(out)
    capfd.readouterr()
    assert make_toybench.main(given) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "toy is there already and is not an empty folder" in said
    assert contents(out) == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["nowhere/toy"], "there is no folder nowhere"),
        (["toy", "--images", "0"], "'0' is not an integer from 1 to 1000"),
        (["toy", "--split", "train"], "invalid choice: 'train'"),
        ([], "the following arguments are required: OUT"),
    ],
)
def test_a_wrong_request_is_one_sentence(tmp_path, monkeypatch, capfd, given, sentence):
    monkeypatch.chdir(tmp_path)
    assert make_toybench.main(given) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert sentence in said
    assert not list(tmp_path.iterdir())


def test_a_killed_command_leaves_no_half_folder(tmp_path, monkeypatch, capfd):
    def write(folder, settings):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(make_toybench, "write_benchmarks", write)
    assert make_toybench.main([str(tmp_path / "toy")]) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("family", RECIPES)
def test_the_ordinary_commands_work_on_them(few, tmp_path, capfd, family):
    demo = find(family).demo
    if not (CHECKPOINTS / demo / "model.safetensors").is_file():
        pytest.skip(f"{demo} is not in this checkout: scripts/train_demo.py trains it")
    folder = few[0]
    sources = {
        "pope": [
            *("--questions", *sorted((folder / "pope").glob("*.json"))),
            *("--images", folder / "pope" / "images"),
        ],
        "mme": ["--data", folder / "mme"],
        "vlind": ["--data", folder / "vlind"],
        "chair": [
            *("--annotations", folder / "chair" / "annotations.json"),
            *("--vocabulary", folder / "chair" / "vocabulary.json"),
            *("--images", folder / "chair" / "images"),
        ],
    }
    for name, flags in sources.items():
        out = tmp_path / name
        given = [name, "run", *flags, "--model", demo, "--out", out, "--mode", "language"]
        assert commands.main([str(each) for each in given]) == 0
        answers = read_answers(out).values()
        assert not [each.error for each in answers if each.error]
        words = {"chair": None, "vlind": {"True", "False"}}.get(name, {"Yes", "No"})
        if words:
            assert {each.answer for each in answers} <= words
