"""CausalMM under lmms-eval: arguments, decoding and portions here, whole runs where there is one.

Those runs need lmms-eval, which has an environment of its own: env/requirements-lmms-eval.txt. Name
its Python in CAUSALMM_LMMS_PYTHON to have them. The code is this checkout's all the same.
"""

import ast
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from family_rows import FAMILIES, row_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_checkpoints import save_checkpoint
from transformers import StoppingCriteriaList

from causalmm import CausalMMConfig
from causalmm.cli.flags import parse_args
from causalmm.cli.request import SETTINGS, check
from causalmm.cli.session import Session
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.inputs.messages import open_messages
from causalmm.lmms_eval.arguments import (
    NAMES,
    find_request,
    model_names,
    own_device,
    read_arguments,
)
from causalmm.lmms_eval.conversations import Conversation, open_conversation, portions
from causalmm.lmms_eval.decoding import MAX_NEW_TOKENS, cut, is_ended, read_decoding
from causalmm.lmms_eval.stopping import StopStrings

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "causalmm" / "lmms_eval"
MODELS = model_names()
GREEDY = {"do_sample": False}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two pictures and a checkpoint of each family, by its name."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    for family in FAMILIES:
        save_checkpoint(family, folder / family)
    picture(folder / "a.png", (60, 40))
    picture(folder / "b.png", (30, 90), turn=80)
    return folder


def picture(path, size, turn=0):
    Image.radial_gradient("L").rotate(turn).resize(size).save(path)


# -- arguments ---------------------------------------------------------------------------------


def test_every_setting_is_a_model_argument():
    assert set(SETTINGS) < set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


GIVEN = {
    "mode": ("language", "language"),
    "vision_method": ("shuffle", "shuffle"),
    "language_method": ("uniform", "uniform"),
    # What lmms-eval makes of -1, 1, [0,-1], '0,1', -1: and half: on a command line.
    "vision_layers": (-1.0, (-1,)),
    "language_layers": ("half:", "half:"),
    "gamma": (1, 1.0),
    "gamma_vision": (0.25, 0.25),
    "gamma_language": (2.0, 2.0),
    "language_scope": ("image", "image"),
    "language_heads": ("image:1", "image:1"),
    "schedule": ("growing", "growing"),
    "forgetting": (1, 1.0),
    "confident": (0.5, 0.5),
    "epsilon": (0, 0.0),
    "constant_branch": ("vision", "vision"),
    "draws": (2.0, 2),
    "normalization": ("released", "released"),
    "site": ("features", "features"),
    "noise_step": (100.0, 100),
    "seed": (-3.0, -3),
}


@pytest.mark.parametrize("name", [each for each in SETTINGS if not each.startswith("center")])
def test_a_setting_reaches_the_configuration(folder, name):
    value, expected = GIVEN[name]
    args = read_arguments({"pretrained": str(folder / "llava"), name: value})
    config = find_request(args, "llava").config
    assert getattr(config, name) == getattr(CausalMMConfig(**{name: expected}), name)
    others = {each for each in SETTINGS if getattr(config, each) != getattr(CausalMMConfig, each)}
    assert others <= {name}


def test_a_center_reaches_the_configuration(folder, tmp_path):
    file = tmp_path / "c.safetensors"
    file.write_bytes(b"something")
    given = {"center": str(file), "center_sha256": hashlib.sha256(b"something").hexdigest()}
    args = read_arguments({"pretrained": str(folder / "llava"), **given})
    assert find_request(args, "llava").config == CausalMMConfig(**given)
    args = read_arguments({"pretrained": str(folder / "llava"), "center": str(file)})
    assert find_request(args, "llava").config == CausalMMConfig(**given)


@pytest.mark.parametrize(
    ("value", "layers"),
    [(1, (1,)), ("[0,-1]", (0, -1)), ("'0,1'", (0, 1)), ((0, 1), (0, 1)), ("-1:", "-1:")],
)
def test_layers_as_lmms_eval_hands_them_over(folder, value, layers):
    args = read_arguments({"pretrained": str(folder / "llava"), "language_layers": value})
    expected = CausalMMConfig(language_layers=layers).language_layers
    assert find_request(args, "llava").config.language_layers == expected


@pytest.mark.parametrize(
    ("value", "heads"),
    [
        (1, "1"),
        ("[0,1]", "0,1"),
        ("'0,1'", "0,1"),
        ((1, 0), "0,1"),
        ("image:4", "image:4"),
        ("'10=0,3;11=5'", "10=0,3;11=5"),
        ("[11=5;10=0,3]", "10=0,3;11=5"),
    ],
)
def test_heads_as_lmms_eval_hands_them_over(folder, value, heads):
    args = read_arguments({"pretrained": str(folder / "llava"), "language_heads": value})
    assert find_request(args, "llava").config.language_heads == heads


def test_arguments_come_before_a_file_and_a_file_before_the_checkpoint(folder, tmp_path):
    beside = tmp_path / "llava"
    save_checkpoint("llava", beside)
    CausalMMConfig(mode="vision", gamma_vision=3.0, draws=3).save_pretrained(beside)
    file = CausalMMConfig(mode="joint", epsilon=0.5).save_pretrained(tmp_path / "file")

    def config(**arguments):
        return find_request(
            read_arguments({"pretrained": str(beside), **arguments}), "llava"
        ).config

    assert config() == CausalMMConfig(mode="vision", gamma_vision=3.0, draws=3)
    assert config(gamma=0.5) == CausalMMConfig(mode="vision", gamma=0.5, draws=3)
    assert config(config=str(file)) == CausalMMConfig(mode="joint", epsilon=0.5)
    assert config(config=str(file), mode="vision", epsilon=0) == CausalMMConfig(
        mode="vision", epsilon=0
    )
    assert config(mode="plain") is None


@pytest.mark.parametrize("flags", [[], ["--mode=plain"], ["--gamma=2", "--language-layers=-1:"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_request_is_that_of_the_generate_command(folder, family, flags):
    asked = ["--model", str(folder / family), "--image", str(folder / "a.png"), "--prompt", "is"]
    expected = check(parse_args([*asked, *flags]))
    arguments = dict(flag.removeprefix("--").replace("-", "_", 1).split("=") for flag in flags)
    args = read_arguments({"pretrained": str(folder / family), "device": None, **arguments})
    request = find_request(args, family)
    same = ("model", "source", "family", "config", "sampling", "seed")
    assert [getattr(request, name) for name in same] == [getattr(expected, name) for name in same]
    assert (args.dtype, args.device, args.attn, args.batch_size) == ("auto", "auto", "sdpa", 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "pretrained is missing"),
        ({"pretrained": "demo-llava", "gama": 1}, "unknown model argument 'gama'"),
        ({"pretrained": "demo-llava", "gamma": "much"}, "gamma: invalid float value: 'much'"),
        ({"pretrained": "demo-llava", "mode": "both"}, "mode: invalid choice: 'both'"),
        ({"pretrained": "demo-llava", "batch_size": "auto"}, "'auto' is not an integer >= 1"),
        ({"pretrained": "demo-llava", "draws": 1.5}, "draws: invalid int value: '1.5'"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(arguments, sentence):
    with pytest.raises(RequestError, match=sentence):
        read_arguments(arguments)


def test_a_wrong_value_or_checkpoint_is_told_in_a_sentence(folder):
    with pytest.raises(RequestError, match="expected a number from 0 to"):
        find_request(read_arguments({"pretrained": str(folder / "llava"), "gamma": -1}), "llava")
    args = read_arguments({"pretrained": str(folder / "llava")})
    with pytest.raises(RequestError, match="is a LLaVA checkpoint: use --model causalmm_llava"):
        find_request(args, "qwen2_vl")


def test_each_process_of_a_machine_has_its_own_gpu():
    assert [own_device(name, 1, True) for name in ("auto", "cuda")] == ["cuda:1"] * 2
    assert own_device("auto", 1, False) == "auto"
    assert [own_device(name, 1, True) for name in ("cpu", "cuda:0")] == ["cpu", "cuda:0"]


# -- decoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sampling"),
    [
        ({}, GREEDY),
        ({"temperature": 0, "top_p": 1.0, "do_sample": False, "num_beams": 1}, GREEDY),
        ({"temperature": 0.7, "do_sample": False}, GREEDY),
        ({"temperature": 0, "do_sample": True}, GREEDY),
        ({"temperature": None, "top_p": None}, GREEDY),
        ({"repetition_penalty": 1.0}, GREEDY | {"repetition_penalty": 1.0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"do_sample": True}, {}),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5}),
    ],
)
def test_what_a_task_says_of_choosing_tokens(arguments, sampling):
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    expected = sampling if "do_sample" in sampling else drawn | sampling
    assert read_decoding(arguments).sampling == expected


def test_what_a_task_says_of_length_and_ends():
    assert read_decoding({}).max_new_tokens == MAX_NEW_TOKENS
    decoding = read_decoding({"max_new_tokens": 16, "until": ["</s>", "\n\n", "", None, "Q:"]})
    assert (decoding.max_new_tokens, decoding.until) == (16, ("</s>", "Q:"))
    assert read_decoding({"until": "Q:"}).until == ("Q:",)
    assert read_decoding({"until": None, "visual_cot": True}).ignored == ("visual_cot",)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 3},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": float("inf")},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 2},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"until": 3},
    ],
)
def test_decoding_that_cannot_be_followed_is_told_in_a_sentence(arguments):
    (name,) = arguments
    with pytest.raises(RequestError, match=f"{name}=.*: expected"):
        read_decoding(arguments)


TEXTS = st.text("ab \n", max_size=12)


@given(TEXTS, st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_an_answer_is_what_comes_before_the_first_string(text, until):
    text = text.strip()
    expected = min((text.split(stop)[0] for stop in until), key=len, default=text)
    assert cut(text, until) == expected.rstrip()
    assert is_ended(text, until) == any(stop in text for stop in until)


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_changes_no_answer(folder, family):
    """Rows end on their own, and each is what cutting its long answer gives."""
    session = start(folder / family, max_new_tokens=12)
    asked = [ask_about(folder / "a.png", prompt) for prompt in ("is there", "a banana ?", "this")]
    long = [reply.text for reply in session.ask(asked, 0, shared=True)]
    # A word of each answer, one that begins the answer and one that is in the prompt.
    until = [long[0].split()[3], long[1].split()[0], "banana"]
    stop = StopStrings(session.processor.tokenizer, until)
    stopped = with_sampling(session, **GREEDY, stopping_criteria=StoppingCriteriaList([stop]))
    replies = stopped.ask(asked, 0, shared=True)
    assert [cut(reply.text, until) for reply in replies] == [cut(text, until) for text in long]
    assert cut(long[1], until) == ""
    ends = [
        next(n for n in range(13) if is_ended(first(text, n), until) or n == 12) for text in long
    ]
    assert len(replies[0].tokens) == max(ends)


def first(text, words):
    return " ".join(text.split()[:words])


def start(folder, max_new_tokens=4, **arguments):
    """A session of these model arguments."""
    args = read_arguments({"pretrained": str(folder), **arguments})
    request = find_request(args, checkpoints.family(str(folder)))
    return Session.start(args, request._replace(max_new_tokens=max_new_tokens))


def with_sampling(session, **sampling):
    return session._replace(request=session.request._replace(sampling=sampling))


def ask_about(path, prompt):
    content = [{"type": "image", "image": str(path)}, {"type": "text", "text": prompt}]
    return open_messages([{"role": "user", "content": content}])


# -- portions ----------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=30), st.integers(1, 5))
def test_portions(beginnings, size):
    held = 0

    def conversations():
        nonlocal held
        for index, each in enumerate(beginnings):
            held += 1
            assert held <= 2 * size
            yield Conversation(index, [], each)

    found = []
    for portion, shared in portions(conversations(), size):
        held -= len(portion)
        found.append(([each.index for each in portion], shared))
        assert 1 <= len(portion) <= size
        assert shared <= (len({each.beginning for each in portion}) == 1 < len(portion))
        assert not (shared and portion[0].beginning is None)
    assert sorted(index for portion, _ in found for index in portion) == list(
        range(len(beginnings))
    )
    # Neighbours that begin alike are shared, but for one that full portions leave over.
    together = {index for portion, shared in found if shared for index in portion}
    for run in runs(beginnings):
        over = {run[-1]} if len(run) % size == 1 or size == 1 else set()
        alone = beginnings[run[0]] is None or size == 1
        assert together & set(run) == (set() if alone else set(run) - over)
    # No more batches of loose ones than they need.
    loose = [portion for portion, shared in found if not shared]
    assert all(len(portion) == size for portion in loose[:-1])


def runs(values):
    found = []
    for index, value in enumerate(values):
        if found and values[found[-1][0]] == value:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def test_what_begins_alike(folder):
    a, b = ({"type": "image", "image": str(folder / f"{name}.png")} for name in "ab")
    one, other = ({"type": "text", "text": text} for text in ("is", "a banana"))

    def beginning(*content, role="user", before=()):
        messages = [*before, {"role": role, "content": list(content)}]
        return open_conversation(0, messages).beginning

    assert beginning(one) is None
    assert beginning(a, one) == beginning(a, other)
    # As datasets give it: decoded anew each time.
    again = {"type": "image", "image": Image.open(folder / "a.png")}
    assert beginning(again, one) == beginning(a, one)
    system = {"role": "system", "content": "is"}
    different = [
        beginning(a, one),
        beginning(b, one),
        beginning(a, b, one),
        beginning(one, a),
        beginning(other, a),
        beginning({**a, "max_pixels": 784}, one),
        beginning(a, one, before=[system]),
    ]
    assert len(set(different)) == len(different)


def test_what_cannot_be_opened_stays_in_its_place():
    audio = {"role": "user", "content": [{"type": "audio", "audio": "sound.wav"}]}
    conversation = open_conversation(7, [audio])
    assert conversation.index == 7
    assert conversation.messages.startswith("message 1, part 1: expected a type of text, image")
    assert conversation.beginning is None


@pytest.mark.parametrize("mode", ["plain", "multimodal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_get_the_answers_they_get_alone(folder, family, mode):
    """Of several turns and pictures too, in batches and about one picture."""
    session = start(folder / family, mode=mode, epsilon=0)
    a, b = ({"type": "image", "image": str(folder / f"{name}.png")} for name in "ab")
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "is"}, a]},
        {"role": "assistant", "content": "a banana"},
        {"role": "user", "content": [b, {"type": "text", "text": "what is this ?"}]},
    ]
    texts = ["is there ?", "a", "what is this banana ?"]
    asked = [turns, *([{"role": "user", "content": [a, text_of(text)]}] for text in texts)]
    asked.append([{"role": "user", "content": "is there a banana ?"}])
    opened = [open_conversation(index, messages) for index, messages in enumerate(asked)]
    answers = {}
    for portion, shared in portions(opened, 3):
        replies = session.ask([each.messages for each in portion], 0, shared=shared)
        answers |= {each.index: r.text for each, r in zip(portion, replies, strict=True)}
    alone = [session.answer(session.inputs(messages), session.request.config) for messages in asked]
    assert [answers[index] for index in range(len(asked))] == [each.text for each in alone]
    assert [(len(portion), shared) for portion, shared in portions(opened, 3)] == [
        (3, True),
        (2, False),
    ]


def text_of(text):
    return {"type": "text", "text": text}


# -- the package -------------------------------------------------------------------------------


def imports(path):
    """Modules that a file names in its imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_nothing_else_needs_lmms_eval():
    for package in ("causalmm", "llava_causalmm", "qwen2vl_causalmm", "scripts"):
        for path in (ROOT / package).rglob("*.py"):
            if PACKAGE not in path.parents:
                named = {name for name in imports(path) if "lmms_eval" in name}
                assert not named, f"{path} imports {named}"


def test_the_parts_without_a_model_load_nothing():
    parts = ("arguments", "conversations", "decoding")
    code = f"import sys\nfrom causalmm.lmms_eval import {', '.join(parts)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "lmms_eval"} & set(done.stdout.split())


def test_the_entry_point_names_what_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (target,) = project["entry-points"]["lmms_eval.models"].values()
    module, function = target.split(":")
    assert importlib.util.find_spec(module) is not None
    assert function in names_in(PACKAGE / "manifests.py")
    assert "__getattr__" in names_in(PACKAGE / "models.py")  # a class for each of MODELS
    assert {family: f"causalmm_{family}" for family in FAMILIES} == MODELS


def names_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


# -- lmms-eval itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lmms_python():
    """A Python that has lmms-eval and this project, or its place in a skip."""
    python = os.environ.get("CAUSALMM_LMMS_PYTHON")
    if python is None:
        if importlib.util.find_spec("lmms_eval") is None:
            pytest.skip(
                "lmms-eval is not installed here: name the Python of its environment "
                "(env/requirements-lmms-eval.txt) in CAUSALMM_LMMS_PYTHON"
            )
        return sys.executable
    found = "import lmms_eval; from importlib.metadata import entry_points as e\n"
    found += "assert e(group='lmms_eval.models').names"
    done = subprocess.run([python, "-c", found], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"CAUSALMM_LMMS_PYTHON={python} has no lmms-eval with causalmm beside it")
    return python


@pytest.fixture
def run(lmms_python, tmp_path):
    """Run a module under that Python with this checkout's code; gives what it said."""

    def run(*arguments, code=0):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [lmms_python, *map(str, arguments)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    return run


TASK = """\
task: causalmm_toy
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function toy.pictures
doc_to_text: !function toy.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
  image_aspect_ratio: original
process_results: !function toy.score
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
from PIL import Image


def pictures(doc):
    return [Image.open(path) for path in doc["images"]]


def question(doc):
    return doc["question"]


def score(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


POPE_ENDS_WITH = "Answer the question using a single word or phrase."


def write_task(folder, rows):
    """A task whose right answers are the rows' own."""
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "toy.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"), encoding="utf-8")
    (folder / "toy.py").write_text(FUNCTIONS, encoding="utf-8")
    return folder


def scenes(family):
    """Questions about the pictures of the demonstration models, some about one, some about two."""
    pictures = sorted(map(str, (ROOT / "examples").glob(f"{family}_*.png")))[:3]
    questions = ["What color is the car?", "Is there a dog in the image?", "Describe the image."]
    rows = [([each], question) for each in pictures for question in questions]
    rows += [(pictures[:2], "Is there a tree in the image?"), (pictures[:1], questions[1])]
    return [{"id": n, "image": images, "prompt": text} for n, (images, text) in enumerate(rows)]


def generated(rows, folder, *flags):
    """The answers of scripts/generate.py."""
    questions, out = folder / "in.jsonl", folder / "out.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "scripts/generate.py", "--batch", questions, "--out", out,
         "--max-new-tokens", "12", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["answer"] for line in out.read_text(encoding="utf-8").splitlines()]


def samples(folder):
    """What lmms-eval wrote down: answers and scores, in the order of the documents."""
    (file,) = folder.rglob("*_samples_causalmm_toy.jsonl")
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    found = sorted(lines, key=lambda line: line["doc_id"])
    assert [line["doc_id"] for line in found] == list(range(len(found)))
    return [(line["filtered_resps"], line["right"]) for line in found]


RUNS = {
    "llava": ("demo-llava", ["mode=language", "gamma=1.0"]),
    "qwen2_vl": ("demo-qwen2vl", ["mode=multimodal", "language_layers=-1:", "seed=3"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("family", RUNS)
def test_a_task_gets_the_answers_of_the_generate_command(run, tmp_path, family, processes):
    """Through the command, from a local data set, in one process and in two."""
    demo, settings = RUNS[family]
    rows = scenes(family.replace("_", ""))
    try:
        checkpoints.resolve(demo)
    except RequestError as error:
        pytest.skip(str(error))
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in (s.split("=") for s in settings)
    ]
    expected = generated(rows, tmp_path, "--model", demo, *flags)
    answers = [{"images": r["image"], "question": r["prompt"]} for r in rows]
    documents = [d | {"answer": text} for d, text in zip(answers, expected, strict=True)]
    documents[-1]["answer"] = "none of these"
    task = write_task(tmp_path / "task", documents)
    # What accelerate starts its processes with; on a CPU it would start one.
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launch = launch if processes > 1 else []
    said, told = run(
        *launch, "-m", "causalmm.lmms_eval",
        "--model", MODELS[family],
        "--model_args", ",".join([f"pretrained={demo}", "batch_size=3", *settings]),
        "--tasks", "causalmm_toy", "--include_path", task,
        "--log_samples", "--output_path", tmp_path / "out",
    )  # fmt: skip
    right = [1.0] * (len(rows) - 1) + [0.0]
    assert samples(tmp_path / "out") == list(zip(expected, right, strict=True))
    (results,) = (tmp_path / "out").rglob("*_results.json")
    score = json.loads(results.read_text())["results"]["causalmm_toy"]["right,none"]
    assert score == pytest.approx((len(rows) - 1) / len(rows))
    assert "generation arguments that mean nothing here: image_aspect_ratio" in told
    assert ("Running on rank 1" in said) == (processes == 2)


PARQUET = """\
import json, sys
from datasets import Dataset, Features, Image, Value
rows = json.loads(sys.argv[1])
kinds = {name: Image() if name == "image" else Value("string") for name in rows[0]}
Dataset.from_list(rows, features=Features(kinds)).to_parquet(sys.argv[2])
"""
BENCHMARK = """\
include: {original}
task: local_{name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {rows}
"""


@pytest.mark.slow
def test_pope_and_mme_as_lmms_eval_defines_them(run, tmp_path):
    """Its own questions' wording, pictures out of a data set, and scoring; on a few local rows."""
    pictures = sorted(map(str, (ROOT / "examples").glob("llava_*.png")))
    asked = [("Is there a tree in the image?", "Yes"), ("Is there a dog in the image?", "No")]
    rows = [
        {
            "question_id": path,
            "question": text,
            "answer": answer,
            "image": path,
            "category": "color",
        }
        for path in pictures
        for text, answer in asked
    ]
    where = run("-c", "import lmms_eval; print(lmms_eval.__path__[0])")[0].strip()
    run("-c", PARQUET, json.dumps(rows), tmp_path / "rows.parquet")
    (tmp_path / "task").mkdir()
    for name in ("pope", "mme"):
        original = f"{where}/tasks/{name}/{name}.yaml"
        task = BENCHMARK.format(original=original, name=name, rows=tmp_path / "rows.parquet")
        (tmp_path / "task" / f"{name}.yaml").write_text(task, encoding="utf-8")
    flags = ["mode=language", "gamma=1.0"]
    run(
        "-m", "causalmm.lmms_eval", "--model", "causalmm_llava", "--batch_size", "2",
        "--model_args", ",".join(["pretrained=demo-llava", *flags]),
        "--tasks", "local_pope,local_mme", "--include_path", tmp_path / "task",
        "--output_path", tmp_path / "out",
    )  # fmt: skip
    (file,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text())["results"]
    questions = [
        {"id": n, "image": row["image"], "prompt": f"{row['question']}\n{POPE_ENDS_WITH}"}
        for n, row in enumerate(rows)
    ]
    answers = generated(questions, tmp_path, *(f"--{flag}" for flag in flags))
    right = [text.lower() == row["answer"].lower() for text, row in zip(answers, rows, strict=True)]
    assert sum(right) > 0
    assert results["local_pope"]["pope_accuracy,none"] == pytest.approx(sum(right) / len(rows))
    # Of MME: per cent right, and of pictures with both right. Its wording is the same.
    pairs = sum(map(all, zip(right[::2], right[1::2], strict=True))) / len(pictures)
    score = results["local_mme"]["mme_perception_score,none"]
    assert score == pytest.approx(100 * (sum(right) / len(rows) + pairs))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_class(run, folder, tmp_path, family):
    """What lmms-eval asks of a model, asked of the real class: see lmms_eval_answers.py."""
    picture(tmp_path / "c.png", (20, 20))
    pictures = [folder / "a.png", folder / "b.png", tmp_path / "c.png"]
    prompts = ["is there ?", "a", "what is this ?"]
    rows = [([str(path)], prompt) for path in pictures for prompt in prompts]
    rows += [([str(pictures[0]), str(pictures[1])], "is"), ([], "this")]
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    token = row_of(family).processor().image_token
    rows = [rows[place] for place in order] + [([str(pictures[0])], f"what is {token}")]
    (tmp_path / "asked.json").write_text(json.dumps(rows), encoding="utf-8")
    said, told = run("-m", "lmms_eval_answers", MODELS[family], folder / family, "asked.json")
    found = json.loads(said.splitlines()[-1])

    session = start(folder / family, max_new_tokens=6, epsilon=0)
    alone = [
        session.answer(session.inputs(conversation(*row)), session.request.config).text
        for row in rows[:-1]
    ]
    assert found["greedy"] == [*alone, ""]
    assert "its answer is left empty" in told
    assert found["tokens"][-1] == 0
    assert all(0 < tokens <= 6 for tokens in found["tokens"][:-1])
    stop = found["until"]["stop"]
    assert found["until"]["answers"] == [cut(text, [stop]) for text in [*alone, ""]]
    assert stop in alone[0]
    # Drawn: the same again, other ones of another seed, and each repeat another one.
    drawn = found["drawn"]
    assert drawn["first"] == drawn["again"] != drawn["other_seed"]
    assert len(set(drawn["repeats"])) > 1
    greedy = {"max_new_tokens": 6, "temperature": 0.0, "until": ["\n\n"]}
    cached = [
        ["generate_until", [row[1], greedy], text]
        for row, text in zip(rows, found["greedy"], strict=True)
    ]
    assert sorted(found["cached"], key=str) == sorted(cached, key=str)
    assert found["freed"] is True
    assert "gives no likelihood of a text" in found["loglikelihood"]
    assert "one round" in found["multi_round"]
    assert "unknown model argument 'gama'" in found["unknown"]
    assert "name=value" in found["unreadable"]


def conversation(images, prompt):
    parts = [{"type": "image", "image": path} for path in images]
    return [{"role": "user", "content": [*parts, text_of(prompt)]}]
