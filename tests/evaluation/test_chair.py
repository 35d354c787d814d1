"""Captions are searched for objects as CHAIR asks, and its measures are as worked out by hand."""

import json
from pathlib import Path

import pytest
from answered import answered, failed
from hypothesis import given, settings
from hypothesis import strategies as st

from causalmm.errors import RequestError
from causalmm.evaluation.benchmarks.registry import BENCHMARKS
from causalmm.evaluation.benchmarks.vocabulary import Vocabulary, published_phrases, read_vocabulary

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


# Some objects of COCO, in the form in which CHAIR publishes its list.
COCO = """\
person, man, woman, child, boy, people, baby, adult, passenger, policeman, grandchild
bicycle, bike
motorcycle,  motor bike, motor cycle, motorbike
airplane, plane, air plane, jet
car
bus
train, locomotive
traffic light, street light, traffic signal, stop light
fire hydrant, hydrant
stop sign
parking meter
bench
bird, goose
cat
dog, puppy
horse
sheep, lamb
cow, cattle, ox, calf
elephant
bear
zebra
giraffe
tie, bow, bow tie
suitcase, suit case
skis, ski
sports ball, ball
baseball bat
baseball glove
tennis racket, racket
bottle
wine glass
cup
knife, knive
bowl
orange
broccoli
sandwich
hot dog
cake,  cheesecake
chair, seat, stool
couch, sofa
potted plant
dining table, table
toilet, urinal
laptop, computer, laptop computer
mouse
cell phone, mobile phone, phone, iPhone
oven, stove, stove top oven
clock
scissors
teddy bear
hair drier
toothbrush
"""

# Every mention, in the caption's order, counted by hand from the rules of the published evaluator.
MENTIONS = {
    # Names of two words, and what they would otherwise name
    "a motor bike beside a motor cycle": ["motorcycle", "motorcycle"],
    "an air plane": ["airplane"],
    "a traffic light, a street light, a traffic signal and stop lights": ["traffic light"] * 4,
    "a fire hydrant near parking meters": ["fire hydrant", "parking meter"],
    "two stop signs": ["stop sign"],
    "a suit case": ["suitcase"],
    "sports balls and a ball": ["sports ball", "sports ball"],
    "a baseball bat, a baseball glove, tennis rackets": [
        *("baseball bat", "baseball glove", "tennis racket")
    ],
    "Baseball players": [],
    "a wine glass and two wine glasses": ["wine glass", "wine glass"],
    "glasses of wine": [],
    "hot dogs for the dog": ["hot dog", "dog"],
    "a cell phone, mobile phones and a phone": ["cell phone"] * 3,
    "teddy bears and a bear": ["teddy bear", "bear"],
    "a hair drier": ["hair drier"],
    "potted plants": ["potted plant"],
    "a plant": [],
    "a bow tie, a bow, a tie": ["tie", "tie", "tie"],
    "a laptop computer and a laptop": ["laptop", "laptop"],
    "a stove top oven": ["oven"],
    "a dining table": ["dining table"],
    # What names nothing
    "a player slides to home plate": [],
    "a dog on the train tracks": ["dog"],
    # Who is no person
    **{
        f"a baby {name} and two adult {name}s": [name, name]
        for name in ("bird", "cat", "dog", "horse", "cow", "elephant", "bear", "zebra", "giraffe")
    },
    "a baby sheep near adult sheep": ["sheep", "sheep"],
    "a baby animal, adult animals, a baby cub, an adult cub": [],
    "a baby holding a baby elephant": ["person", "elephant"],
    "a baby puppy": ["person", "dog"],
    "a passenger train and passenger jets": ["train", "airplane"],
    "a passenger on a passenger train": ["person", "train"],
    "a passenger bus": ["person", "bus"],
    "a passenger train track": ["train"],
    # What is no chair
    "a toilet seat": ["toilet"],
    "the seat of the toilet": ["toilet"],
    "Two seats. A stool. The toilets": ["chair", "toilet"],
    "a seat by the urinal": ["chair", "toilet"],
    "a bus seat": ["bus", "chair"],
    # Nothing but space joins words
    "a bottle of wine, glasses": ["bottle"],
    "It is hot. Dogs run": ["dog"],
    "hot; dog: hot! dog? hot (dog)": ["dog", "dog", "dog"],
    'a "hot" dog': ["dog"],
    'a "hot dog"': ["hot dog"],
    "a hot\u2026dog, a hot\u2014dog": ["dog", "dog"],
    "a baby, elephants": ["person", "elephant"],
    "a hot\ndog on a dining \t table": ["hot dog", "dining table"],
    "a wine\r\n\r\nglass": ["wine glass"],
    "**hot dog** _cat_": ["hot dog", "cat"],
    # A compound with a hyphen is a word of its own
    "a hot-dog, a T-shirt, a man-made lake, a baby-blue bus-stop": [],
    "a teddy\u2010bear and a hot\u2011dog": [],
    "dogs - and cats -": ["dog", "cat"],
    # Possessives, short forms, o'clock
    "the dog's bowl, the dogs' bowls": ["dog", "bowl", "dog", "bowl"],
    "the man\u2019s tie": ["person", "tie"],
    "the man'll sit, he's 'a man'": ["person", "person"],
    "a hot's dog": ["dog"],
    "at 12 o'clock, by the clock": ["clock"],
    # Capitals
    "A DOG\nHOT DOGS, an IPHONE": ["dog", "hot dog", "cell phone"],
    # Plurals, and words that are none
    "people, men, women, children, policemen, grandchildren": ["person"] * 6,
    "mice, knives, sheep, geese, oxen, calves": ["mouse", "knife", "sheep", "bird", "cow", "cow"],
    "a bus, buses, benches, couches, sandwiches": ["bus", "bus", "bench", "couch", "sandwich"],
    "a ski, skis, scissors, broccoli": ["skis", "skis", "scissors", "broccoli"],
    "toothbrushes, cars, puppies, ties, cattle": ["toothbrush", "car", "dog", "tie", "cow"],
    "glasses, a doghouse, busy mandarins, a carpet": [],
    # Every time
    "a dog, another dog, and puppies of the dogs": ["dog"] * 4,
    "cheesecake": ["cake"],
    "": [],
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    file = tmp_path_factory.mktemp("coco") / "synonyms.txt"
    file.write_text(COCO, encoding="utf-8")
    return read_vocabulary(file)


@pytest.mark.parametrize("caption", MENTIONS)
def test_mentions_are_those_of_the_published_evaluator(coco, caption):
    assert coco.mentions(caption) == MENTIONS[caption]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["hot", "dog", "dogs", "baby", "bear", "teddy", "toilet", "seat", "seats", "train"]
            + ["track", "passenger", "wine", "glass", "bow", "tie", "home", "plate", ",", ".", "-"]
        ),
        max_size=9,
    )
)
def test_pairs_are_joined_from_left_to_right(coco, words):
    """By a loop of its own, over words that are joined two by two."""
    joined = {"home plate": "", "train track": "", "toilet seat": "toilet", "bow tie": "tie"}
    joined |= {"baby dog": "dog", "baby bear": "bear", "passenger train": "train"}
    joined |= {name: name for name in ("hot dog", "teddy bear", "wine glass")}
    single = {"dogs": "dog", "bears": "bear", "seats": "seat"}
    plain, said = [single.get(word, word) for word in words], []
    while plain:
        pair = " ".join(plain[:2])
        said.append(joined.get(pair, plain[0]))
        plain = plain[2 if pair in joined else 1 :]
    if "toilet" in said:
        said = [word for word in said if word != "seat"]
    things = {"baby": "person", "passenger": "person", "seat": "chair", "bow": "tie"}
    things |= {name: name for name in ("dog", "bear", "hot dog", "teddy bear", "toilet", "train")}
    things |= {"wine glass": "wine glass", "tie": "tie"}
    assert coco.mentions(" ".join(words)) == [things[word] for word in said if word in things]


def written(root: Path, vocabulary) -> Vocabulary:
    return read_vocabulary(write(root, {}, vocabulary)["vocabulary"])


def test_a_name_of_a_vocabulary_counts_before_a_published_phrase(tmp_path):
    """So does what is derived from it."""
    names = {"person": ["baby"], "bear": [], "train": ["train track"], "rail": ["wine glasses"]}
    found = written(tmp_path, names)
    assert found.mentions("a baby bear, train tracks, a wine glass") == ["bear", "train", "rail"]


def test_a_published_phrase_of_what_a_vocabulary_lacks_names_nothing(tmp_path):
    found = written(tmp_path, {"dog": [], "bear": [], "person": ["baby"], "chair": ["seat"]})
    assert found.mentions("a hot dog, a teddy bear, a baby zebra, a toilet seat") == []
    assert found.mentions("a dog, a bear, a baby, a seat") == ["dog", "bear", "person", "chair"]
    assert found.mentions("a seat, a toilet") == found.mentions("a toilet seat, seats") == []


def test_the_published_phrases_are_all_there():
    phrases = published_phrases()
    animals = (
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
    )
    others = {
        f"{age} {name}": name for age in ("baby", "adult") for name in (*animals, "animal", "cub")
    } | {"passenger jet": "jet", "passenger train": "train", "bow tie": "tie"}
    others |= {"toilet seat": "toilet", "home plate": None, "train track": None}
    joined = {
        *("motor bike", "motor cycle", "air plane", "traffic light", "street light"),
        *("traffic signal", "stop light", "fire hydrant", "stop sign", "parking meter"),
        *("suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket"),
        *("wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
        *("potted plant", "laptop computer"),
    }
    assert phrases.readings == others | {name: name for name in joined}
    assert phrases.not_beside == {"seat": "toilet"}


def test_every_name_and_its_plural_stands_for_its_object():
    for thing, names in SYNONYMS.items():
        for name in (thing, *names):
            assert VOCABULARY.object(name) == thing
            assert VOCABULARY.mentions(f"Some {name.upper()}, there") == [thing]
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
    assert set(VOCABULARY.mentions(" ".join(words))) == expected


def test_a_name_that_is_given_counts_before_one_that_is_derived():
    both = Vocabulary({"glass": [], "spectacles": ["glasses"]})
    assert both.mentions("glasses") == ["spectacles"]
    with pytest.raises(RequestError, match="the vocabulary has 'Bat' for 'club' and 'animal'"):
        Vocabulary({"club": ["bat"], "animal": ["Bat"]})
    with pytest.raises(RequestError, match="expected a word"):
        Vocabulary({"dog": ["--"]})


def test_a_vocabulary_of_lines(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("person, man, woman\n\nhot dog\ndog,puppy,\n", encoding="utf-8")
    read = read_vocabulary(file)
    assert read.objects == ("person", "hot dog", "dog")
    assert read.mentions("a woman and a puppy") == ["person", "dog"]
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


def test_a_list_says_which_images_and_in_which_order(tmp_path):
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (42, 139, 285)]
    files = write(tmp_path, dict.fromkeys(names, ["dog"]))
    file = tmp_path / "list.json"
    file.write_text("[285, 42]", encoding="utf-8")
    questions = CHAIR.read(**files, image_list=file)
    assert [each.id for each in questions] == [names[2], names[0]]
    assert {each.prompt for each in questions} == {"Please describe this image in detail."}
    assert CHAIR.max_new_tokens == 512
    assert CHAIR.files(**files, image_list=file) == [*files.values(), file]
    file.write_text("[285, 7]", encoding="utf-8")
    with pytest.raises(RequestError, match=r"1 of 2 images are not annotated \(first: 7\)"):
        CHAIR.read(**files, image_list=file)


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
        "CHAIR_i published": round(
            100 * 3 / 7, 9
        ),  # of which the dog and the knife were said twice
        "CHAIR_s": 50,
        "recall": 75,  # dog, table, person of these and the bus
        "words": (8 + 8 + 2 + 2) / 4,
    }
    counts = {"captions": 4, "named": 5, "invented": 2, "mentions": 7, "invented mentions": 3}
    assert report.scores[0].counts == counts | {"failed": 0}
    assert "CHAIR_i published every time" in report.table()


def test_a_failed_caption_is_left_out_and_counted(tmp_path):
    questions = ask(tmp_path, {"a.jpg": ["dog"], "b.jpg": ["person"]})
    report = CHAIR.score(
        questions, failed(answered(questions, ["a bear", "a man"]), "b.jpg", "no image")
    )
    shares = {"CHAIR_i": 100, "CHAIR_i published": 100, "CHAIR_s": 100}
    assert values(report) == shares | {"recall": 0, "words": 2}
    counts = {"captions": 1, "named": 1, "invented": 1, "mentions": 1, "invented mentions": 1}
    assert report.scores[0].counts == counts | {"failed": 1}
    assert "failed captions are left out: 1 of 2" in report.table()
    assert report.failed == {"b.jpg": "no image"}


def test_captions_that_name_nothing(tmp_path):
    questions = ask(tmp_path, {"a.jpg": []})
    report = CHAIR.score(questions, answered(questions, [""]))
    assert set(values(report).values()) == {0}
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
