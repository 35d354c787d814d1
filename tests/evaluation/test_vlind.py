"""VLind-Bench's instances become the questions of its own scripts, its pipeline as by hand."""

import json
from pathlib import Path

import pytest
from answered import answered, failed
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.registry import BENCHMARKS

VLIND = BENCHMARKS["vlind"]
INSTANCE = {
    "concept": "climate",
    "context_id": 3,
    "context": "It snows in the desert.",
    "factual_context": "The desert is hot.",
    "true_statement": "Deserts are cold.",
    "false_statement": "Deserts are hot.",
    "existent_noun": "snow",
    "non-existent_noun": "a whale",
    "best_img_id": 5,
    "aggregated_human_label_good_images": {"0": 3, "1": 1, "5": 2, "11": 2, "2": 0},
}
ONLY = "Only respond in True or False."
GROUND = "Forget real-world common sense and just follow the information provided in the"


def folder(root: Path, *instances: dict, images: str = "images") -> Path:
    (root / "data.json").write_text(json.dumps(instances), encoding="utf-8")
    for each in instances:
        for kind, context, names in (
            ("factual", each["factual_context"], ["0"]),
            ("counterfactual", each["context"], map(str, range(12))),
        ):
            place = root / images / kind / each["concept"] / f"{each['context_id']}_{context}"
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                (place / f"{name}.jpg").write_bytes(b"")
    return root


def values(report):
    return {name: round(each.value, 9) for name, each in report.scores[0].metrics.items()}


def test_one_instance(tmp_path):
    questions = VLIND.read(folder(tmp_path, INSTANCE))
    factual, other = "factual/climate/3", "counterfactual/climate/3"
    assert [(each.id, each.image, each.label) for each in questions] == [
        ("climate/3/CK1", f"{factual}/0.jpg", "true"),
        ("climate/3/CK2", f"{factual}/0.jpg", "false"),
        ("climate/3/VP1", f"{other}/5.jpg", "true"),
        ("climate/3/VP2", f"{other}/5.jpg", "false"),
        ("climate/3/CB1", f"{other}/5.jpg", "true"),
        ("climate/3/CB2", f"{other}/5.jpg", "false"),
        *(
            (f"climate/3/LP{number}/{image}", f"{other}/{image}.jpg", label)
            for image in (0, 5, 11)
            for number, label in ((1, "true"), (2, "false"))
        ),
    ]
    assert all(Path(each.path).is_file() for each in questions)
    assert questions[0].path == str(
        tmp_path / "images" / "factual" / "climate" / "3_The desert is hot." / "0.jpg"
    )
    assert {each.choices for each in questions} == {("true", "false")}


def test_the_prompts_of_the_instructblip_script(tmp_path):
    prompts = [each.prompt for each in VLIND.read(folder(tmp_path, INSTANCE))]
    ask = "is the given statement true or false?"
    assert prompts[:8] == [
        f"{ONLY}\nStatement: Deserts are hot.\nBased on common sense, {ask}",
        f"{ONLY}\nStatement: Deserts are cold.\nBased on common sense, {ask}",
        f"{ONLY}\nStatement: There is snow in the given image.\nBased on the image, {ask}",
        f"{ONLY}\nStatement: There is a whale in the given image.\nBased on the image, {ask}",
        f"{ONLY}\nContext: It snows in the desert.\nStatement: Deserts are cold.\n"
        f"Based on the context, {ask}",
        f"{ONLY}\nContext: It snows in the desert.\nStatement: Deserts are hot.\n"
        f"Based on the context, {ask}",
        f"{ONLY}\nStatement: Deserts are cold.\nBased on the image, {ask}",
        f"{ONLY}\nStatement: Deserts are hot.\nBased on the image, {ask}",
    ]
    assert prompts[6:8] == prompts[8:10] == prompts[10:12]


def test_the_prompts_of_the_gpt4o_script(tmp_path):
    prompts = [each.prompt for each in VLIND.read(folder(tmp_path, INSTANCE), templates="gpt4o")]
    ask = "is the given statement true or false?"
    assert prompts[0:8:2] == [
        f"Statement: Deserts are hot.\nBased on the common sense, {ask} {ONLY}",
        f"Statement: There is snow in the given image.\nBased on the image, {ask} {ONLY}",
        "Context: It snows in the desert.\nStatement: Deserts are cold.\n"
        f"Based on the context, {ask} {GROUND} context. {ONLY}",
        f"Statement: Deserts are cold.\nBased on the image, {ask} {GROUND} image. {ONLY}",
    ]


@pytest.mark.parametrize(
    ("style", "good"),
    [("photorealistic", [0]), ("illustration", [5]), ("cartoon", [11]), ("all", [0, 5, 11])],
)
def test_a_style_restricts_the_good_images(tmp_path, style, good):
    questions = VLIND.read(folder(tmp_path, INSTANCE), style=style)
    asked = [each.id for each in questions if each.facts["stage"] == "LP"]
    assert asked == [f"climate/3/LP{number}/{image}" for image in good for number in (1, 2)]
    # The best image is asked about whatever its style.
    assert Path(questions[2].path).name == "5.jpg"


def test_an_instance_without_a_good_image_is_left_out(tmp_path):
    folder(tmp_path, INSTANCE)
    # Whatever else it lacks.
    bad = {"concept": "climate", "aggregated_human_label_good_images": {"0": 1}}
    (tmp_path / "data.json").write_text(json.dumps([bad, INSTANCE]), encoding="utf-8")
    questions = VLIND.read(tmp_path)
    assert {each.facts["instance"] for each in questions} == {"climate/3"}
    cartoon = INSTANCE | {"aggregated_human_label_good_images": {"8": 3}}
    with pytest.raises(RequestError, match="no instance with a good image of style illustration"):
        VLIND.read(folder(tmp_path, cartoon), style="illustration")


@pytest.mark.parametrize("images", [".", "images"])
@pytest.mark.parametrize("below", [".", "data"])
def test_folders_are_found_by_the_number_in_front(tmp_path, images, below):
    root = tmp_path / below
    root.mkdir(exist_ok=True)
    folder(root, INSTANCE, INSTANCE | {"context_id": 33}, images=images)
    for kind in ("factual", "counterfactual"):
        for place in (root / images / kind / "climate").iterdir():
            place.rename(place.with_name(f"{place.name.split('_')[0]}_cut sho"))
    questions = VLIND.read(tmp_path)
    assert all(Path(each.path).is_file() for each in questions)
    assert "/3_cut sho/" in questions[0].path
    assert "/33_cut sho/" in questions[-1].path


def test_two_folders_of_one_number_are_refused(tmp_path):
    folder(tmp_path, INSTANCE)
    place = tmp_path / "images" / "factual" / "climate"
    (place / "3_The desert is hot.").rename(place / "3_one")
    (place / "3_two").mkdir()
    with pytest.raises(RequestError, match="climate holds 2 folders that begin with 3_"):
        VLIND.read(tmp_path)


def test_without_images_answers_can_still_be_scored(tmp_path):
    questions = VLIND.read(folder(tmp_path, INSTANCE, images="."))
    answers = answered(questions, lambda each: each.label.title())
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.json").write_text(json.dumps([INSTANCE]), encoding="utf-8")
    report = VLIND.score(VLIND.read(other), answers)
    assert values(report)["S_LP"] == 100


def test_one_context_with_two_pairs_of_statements(tmp_path):
    other = INSTANCE | {"true_statement": "Camels freeze.", "false_statement": "Camels sweat."}
    questions = VLIND.read(folder(tmp_path, INSTANCE, other))
    assert list(dict.fromkeys(each.facts["instance"] for each in questions)) == [
        *("climate/3", "climate/3-2")
    ]
    report = VLIND.score(questions, answered(questions, lambda each: each.label))
    assert report.scores[0].counts["instances"] == 2
    with pytest.raises(RequestError, match="holds the instance climate/3 twice"):
        VLIND.read(folder(tmp_path, INSTANCE, INSTANCE))


def say(questions, *wrong: str):
    """All right but for the questions whose id ends like this."""
    other = {"true": "False", "false": "True"}
    return answered(
        questions,
        lambda each: other[each.label] if each.id.endswith(wrong) else f"{each.label.title()}.",
    )


def test_the_pipeline_by_hand(tmp_path):
    good = {"0": 2, "4": 2}
    instances = [
        INSTANCE | {"context_id": number, "aggregated_human_label_good_images": good}
        for number in range(1, 6)
    ]
    questions = VLIND.read(folder(tmp_path, *instances))
    answers = say(
        questions,
        # 1 is all right but for one of two images: LP counts half.
        "climate/1/LP2/4",
        # 2 does not know: its CB is right but does not count, nor does its LP.
        "climate/2/CK1",
        # 3 does not see.
        "climate/3/VP2",
        # 4 is biased: its LP, right all the same, does not count.
        "climate/4/CB1",
        # 5 is all right.
    )
    report = VLIND.score(questions, answers)
    assert values(report) == {
        "S_CK": 80,
        "S_VP": 80,
        # Of 1, 3, 4 and 5: all but 4.
        "S_CB": 75,
        # Of 1 and 5: half and whole.
        "S_LP": 75,
        "CB accuracy": 80,
        # Halves count, whatever the stages before.
        "LP accuracy": 90,
    }
    counts = {"instances": 5, "questions": 50, "unreadable": 0, "failed": 0}
    assert report.scores[0].counts == counts


def test_where_nothing_is_left_for_a_stage_it_gets_0(tmp_path):
    questions = VLIND.read(folder(tmp_path, INSTANCE))
    report = VLIND.score(questions, say(questions, "CK1"))
    found = values(report)
    assert (found["S_CK"], found["S_CB"], found["S_LP"]) == (0, 0, 0)
    assert (found["CB accuracy"], found["LP accuracy"]) == (100, 100)
    assert "all, first true or false: S_CB is 0 / 0, shown as 0" in report.table()


def test_what_is_neither_true_nor_false_is_wrong_and_counted(tmp_path):
    questions = VLIND.read(folder(tmp_path, INSTANCE))
    answers = answered(questions, ["NA", "false", "yes, true", *["True", "False"] * 4, "untrue"])
    report = VLIND.score(questions, failed(answers, "climate/3/VP2", "no image"))
    assert report.scores[0].counts == {
        "instances": 1,
        "questions": 12,
        "unreadable": 2,
        "failed": 1,
    }
    assert list(report.unreadable) == ["climate/3/CK1", "climate/3/LP2/11"]
    assert (values(report)["S_CK"], values(report)["S_VP"]) == (0, 0)


def slow_indicators(instances):
    """From stages as they held: (CK, VP, CB, [LP by image])."""

    def share(part, whole):
        return 100 * part / whole if whole else 0

    knows = [each for each in instances if each[0]]
    passed = [each for each in knows if each[1] and each[2]]
    return {
        "S_CK": share(len(knows), len(instances)),
        "S_VP": share(sum(each[1] for each in instances), len(instances)),
        "S_CB": share(sum(each[2] for each in knows), len(knows)),
        "S_LP": share(sum(sum(each[3]) / len(each[3]) for each in passed), len(passed)),
        "CB accuracy": share(sum(each[2] for each in instances), len(instances)),
        "LP accuracy": share(
            sum(sum(each[3]) / len(each[3]) for each in instances), len(instances)
        ),
    }


STAGES = st.tuples(
    st.booleans(), st.booleans(), st.booleans(), st.lists(st.booleans(), min_size=1, max_size=3)
)


@settings(deadline=None)
@given(st.lists(STAGES, min_size=1, max_size=6))
def test_indicators_equal_a_slow_computation(tmp_path_factory, instances):
    root = tmp_path_factory.mktemp("vlind")
    rows = [
        INSTANCE
        | {
            "context_id": number,
            "aggregated_human_label_good_images": dict.fromkeys(map(str, range(len(each[3]))), 2),
        }
        for number, each in enumerate(instances)
    ]
    (root / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    questions = VLIND.read(root)
    wrong = [
        f"climate/{number}/{stage}"
        for number, (knows, sees, unbiased, prior) in enumerate(instances)
        for stage, held in (
            *(("CK1", knows), ("VP2", sees), ("CB1", unbiased)),
            *((f"LP{1 + image % 2}/{image}", held) for image, held in enumerate(prior)),
        )
        if not held
    ]
    found = values(VLIND.score(questions, say(questions, *wrong)))
    assert found == pytest.approx(slow_indicators(instances))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"context": None}, "instance 2 has no context"),
        ({"non-existent_noun": 3}, "instance 2 has non-existent_noun 3: expected text"),
        ({"context_id": None}, "instance 2 has no context_id"),
        ({"best_img_id": 12}, "instance 2 names an image '12': expected 0 to 11"),
        (
            {"aggregated_human_label_good_images": ["0"]},
            r"aggregated_human_label_good_images \['0'\]: expected votes by image id",
        ),
        ({"aggregated_human_label_good_images": {"x": 2}}, "instance 2 names an image 'x'"),
    ],
)
def test_a_broken_instance_gets_a_sentence(tmp_path, change, sentence):
    broken = {name: value for name, value in (INSTANCE | change).items() if value is not None}
    (tmp_path / "data.json").write_text(json.dumps([INSTANCE | {"context_id": 1}, broken]))
    with pytest.raises(RequestError, match=sentence):
        VLIND.read(tmp_path)


def test_a_broken_file_gets_a_sentence(tmp_path):
    with pytest.raises(RequestError, match=r"there is no data.json in"):
        VLIND.read(tmp_path)
    file = tmp_path / "data.json"
    for text, sentence in (
        (b'[{"concept": "cli', "is not JSON"),
        (b"{}", "is not a list of instances"),
        (b"[7]", "instance 1 is not an object"),
        (b'["\xff"]', "is not text in UTF-8"),
    ):
        file.write_bytes(text)
        with pytest.raises(RequestError, match=sentence):
            VLIND.read(tmp_path)


def test_instances_that_a_limit_cuts_are_left_out(tmp_path):
    questions = VLIND.read(folder(tmp_path, INSTANCE, INSTANCE | {"context_id": 4}))
    answers = say(questions)
    whole = VLIND.score(questions, answers)
    cut = questions[:-1]
    found = VLIND.score(cut, {each.id: answers[each.id] for each in cut})
    assert found.scores[0].counts["instances"] == whole.scores[0].counts["instances"] - 1 == 1
    assert "1 instances are cut by --limit and left out" in found.table()
    with pytest.raises(RequestError, match="--limit cuts every instance of VLind-Bench"):
        VLIND.score(cut[:2], answers)
