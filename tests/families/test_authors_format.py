"""Checkpoints of LLaVA's authors: the same tokens, pixels and logits as their own package gives."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_checkpoint

pytest.importorskip("llava", reason="llava-torch, the authors' package, is not installed")
import authors_checkpoints as authors
from transformers import AutoModelForImageTextToText, SiglipVisionConfig

import llava_causalmm
from causalmm import CausalMMConfig
from causalmm.cli import generate
from causalmm.errors import FailureError, RequestError
from causalmm.families import checkpoints, loading
from llava_causalmm import LlavaForConditionalGeneration, from_llava
from llava_causalmm.authors.config import read_settings
from llava_causalmm.authors.model import UNREACHABLE
from llava_causalmm.authors.processor import LlavaProcessor
from llava_causalmm.prompt import build_chat_inputs, build_inputs

FORMATS = {
    # How the checkpoint differs: settings of its config.json, how it is saved.
    "as LLaVA-1.5 is": ({}, {"pickled": True, "shards": 3}),
    "one pickled file": ({}, {"pickled": True}),
    "safetensors": ({}, {}),
    "safetensors, sharded": ({}, {"shards": 3}),
    "tower trained": ({}, {"tower": True}),
    "tower trained, pickled and sharded": ({}, {"tower": True, "pickled": True, "shards": 3}),
    "not padded": ({"image_aspect_ratio": "square"}, {}),
    "linear projector": ({"mm_projector_type": "linear"}, {}),
    "with the class token": ({"mm_vision_select_feature": "cls_patch"}, {}),
    "another feature layer": ({"mm_vision_select_layer": 2}, {}),
    "tied word tables": ({"tie_word_embeddings": True}, {}),
    "older tokenizer": ({}, {"legacy": True}),
    "more rows than words": ({"vocab_size": 390}, {}),
}
QUESTIONS = [
    "<image>\nwhat is this?",
    "<image>\n<image>\ndescribe the two pictures",
    "what is this?\n<image>",
    "between <image>and <image> \n a house",
    "what is red?",
]


@pytest.fixture(scope="session")
def tower(tmp_path_factory):
    return authors.save_tower(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def theirs(tower):
    return authors.build(tower)


@pytest.fixture(scope="session")
def checkpoint(theirs, tmp_path_factory):
    return authors.save(theirs, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def loaded(checkpoint):
    return loading.load(str(checkpoint), device="cpu")


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy to change."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def picture(seed, size=(50, 37)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def same_as_theirs(ours, theirs, folder, question):
    """Compare inputs and logits on a question with wide and tall pictures; return our logits."""
    model, processor = ours
    patches = authors.PATCHES + (model.config.vision_feature_select_strategy == "full")
    images = [picture(0), picture(1, (20, 90))][: question.count("<image>")]
    prompt = authors.authors_prompt([(question, None)])
    ids = authors.authors_ids(folder, prompt)
    inputs = processor(images=images or None, text=prompt, return_tensors="pt")
    assert torch.equal(
        inputs["input_ids"], authors.expanded(ids, model.config.image_token_id, patches)
    )
    pixels = None
    if images:
        pixels = authors.authors_pixels(theirs, images)
        assert torch.equal(inputs["pixel_values"], pixels)
    with torch.no_grad():
        expected = theirs(input_ids=ids, images=pixels).logits
        logits = model(**inputs).logits
    torch.testing.assert_close(logits[..., :-1], expected, atol=1e-4, rtol=0)
    assert (logits[..., -1] == UNREACHABLE).all()
    return logits


# Against the authors' package


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_and_logits_are_theirs(name, tower, tmp_path):
    settings, saving = FORMATS[name]
    theirs = authors.build(tower, **settings)
    folder = authors.save(theirs, tmp_path / "llava", **saving)
    shards = saving.get("shards", 1)
    assert len([*folder.glob("*.bin"), *folder.glob("*.safetensors")]) == shards
    ours = loading.load(str(folder), device="cpu")
    rows = [same_as_theirs(ours, theirs, folder, question) for question in QUESTIONS]
    assert rows[0].std() > 0.5  # Not vacuously equal.


def test_padding_shows(tower, loaded, tmp_path):
    theirs = authors.build(tower, image_aspect_ratio="square")
    square = loading.load(str(authors.save(theirs, tmp_path / "square")), device="cpu").processor
    wide, even = picture(0), picture(0, (40, 40))
    for processor, same in ((square, True), (loaded.processor, False)):
        plain = square.image_processor(wide, return_tensors="pt")["pixel_values"]
        found = processor.image_processor(wide, return_tensors="pt")["pixel_values"]
        assert torch.equal(plain, found) == same
        assert torch.equal(
            square.image_processor(even, return_tensors="pt")["pixel_values"],
            processor.image_processor(even, return_tensors="pt")["pixel_values"],
        )


def test_an_old_configuration(theirs, copy):
    """As written by transformers 4.31: plain `llava`, old names, and little said of Llama."""
    settings = json.loads((copy / "config.json").read_text())
    for name in ("head_dim", "rope_parameters", "attention_bias", "mlp_bias", "dtype"):
        settings.pop(name, None)
    settings |= {"model_type": "llava", "rope_scaling": None, "torch_dtype": "float32"}
    settings |= {"max_length": 4096, "tune_mm_mlp_adapter": False, "pretraining_tp": 1}
    (copy / "config.json").write_text(json.dumps(settings))
    assert checkpoints.family(checkpoints.resolve(str(copy))) == "llava"
    ours = loading.load(str(copy), device="cpu")
    same_as_theirs(ours, theirs, copy, QUESTIONS[0])


@pytest.mark.parametrize("inside", [True, False])
def test_names_from_before_transformers_5(inside, tmp_path):
    """`vision_model.` in the tower's names, a whole CLIP on the hub, buffers that are computed."""
    tower = authors.save_tower(tmp_path / "clip", whole=True)
    weights = load_file(tower / "model.safetensors")
    assert any(name.startswith("text_model.") for name in weights)
    vision = {name: each for name, each in weights.items() if name.startswith("vision_model.")}
    assert vision
    weights["vision_model.embeddings.position_ids"] = torch.arange(17).unsqueeze(0)
    (tower / "model.safetensors").unlink()
    torch.save(weights, tower / "pytorch_model.bin")
    theirs = authors.build(tower)
    folder = authors.save(theirs, tmp_path / "llava", pickled=True)
    state = torch.load(folder / "pytorch_model.bin")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    if inside:
        state |= {f"model.vision_tower.vision_tower.{name}": vision[name] for name in vision}
    torch.save(state, folder / "pytorch_model.bin")
    _, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = loading.load(str(folder), device="cpu")
    same_as_theirs(ours, theirs, folder, QUESTIONS[0])


def test_greedy_answers_are_theirs(theirs, checkpoint, loaded):
    prompt = authors.authors_prompt([(QUESTIONS[0], None)])
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = theirs.generate(
        authors.authors_ids(checkpoint, prompt),
        images=authors.authors_pixels(theirs, [picture(0)]),
        **settings,
    )
    inputs = build_inputs(loaded.processor, [picture(0)], "what is this?")
    found = loaded.model.generate(**inputs, **settings)
    assert torch.equal(found[:, inputs["input_ids"].shape[1] :], expected)


# The prompt

TURNS = [("<image>\nwhat is this?", "a red house"), (" why? ", "it is red."), ("is it?", None)]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_chat_template_is_vicuna_v1(length, checkpoint, loaded):
    turns = [*TURNS[: length - 1], (TURNS[length - 1][0], None)]
    messages = []
    for question, answer in turns:
        parts = [{"type": "text", "text": question.removeprefix("<image>\n")}]
        if question.startswith("<image>"):
            # After the words too: the authors move the image in front.
            parts.append({"type": "image", "image": picture(0)})
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    prompt = authors.authors_prompt(turns)
    processor = loaded.processor
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == prompt
    ids = authors.authors_ids(checkpoint, prompt)
    found = build_chat_inputs(processor, messages)["input_ids"]
    assert torch.equal(found, authors.expanded(ids, loaded.model.config.image_token_id))


def test_a_whole_conversation_and_a_system_message(loaded):
    template = loaded.processor.apply_chat_template
    messages = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "this"}]
    assert template(messages) == authors.authors_prompt([("what?", "this")])
    own = [{"role": "system", "content": "Be brief."}, *messages]
    assert template(own) == "Be brief. USER: what? ASSISTANT: this</s>"
    with pytest.raises(Exception, match="no place for the role tool"):
        template([*messages, {"role": "tool", "content": "1"}])


def test_a_batch_is_padded_on_the_left(loaded):
    processor = loaded.processor
    texts = [authors.authors_prompt([(question, None)]) for question in QUESTIONS[:2]]
    images = [picture(seed) for seed in range(3)]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    alone = processor(images=images[0], text=texts[0], return_tensors="pt")
    length = alone["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:1, -length:], alone["input_ids"])
    assert not batch["attention_mask"][0, :-length].any()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(**batch).logits[:1, -1], loaded.model(**alone).logits[:, -1]
        )


# The image token


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_the_image_token_is_never_generated(draws, epsilon, loaded):
    """Even where every word's logit is far below 0, sampled hot, with penalties and contrasts."""
    inputs = build_inputs(loaded.processor, [picture(0)], "what is this?")
    configuration = CausalMMConfig(epsilon=epsilon, draws=draws, gamma=3.0)
    model, image = loaded.model, loaded.model.config.image_token_id
    low = torch.full((image,), -500.0)
    hook = model.lm_head.register_forward_hook(
        lambda head, args, logits: logits + torch.nn.functional.pad(low, (0, 1))
    )
    try:
        output = model.generate(
            **inputs,
            causalmm=configuration,
            do_sample=True,
            temperature=10.0,
            top_k=0,
            repetition_penalty=1.5,
            num_return_sequences=4,
            max_new_tokens=8,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
        )
    finally:
        hook.remove()
    assert not (output.sequences[:, inputs["input_ids"].shape[1] :] == image).any()
    for scores in output.scores:
        assert not scores.isnan().any()
        assert (scores.softmax(-1)[:, image] == 0).all()


def test_embeddings_given_in_place_of_ids(loaded):
    inputs = build_inputs(loaded.processor, [picture(0)], "what is this?")
    embedded = loaded.model.get_input_embeddings()(inputs["input_ids"])
    image = inputs["input_ids"] == loaded.model.config.image_token_id
    assert (embedded[image] == 0).all()
    assert (embedded[~image] != 0).any(dim=-1).all()
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
        rest = {name: inputs[name] for name in ("attention_mask", "pixel_values")}
        assert torch.equal(loaded.model(inputs_embeds=embedded, **rest).logits, expected)


@pytest.mark.parametrize(
    "settings", [{}, {"mm_projector_type": "linear"}, {"tie_word_embeddings": True}]
)
def test_saved_in_the_transformers_format(settings, tower, tmp_path):
    folder = authors.save(authors.build(tower, **settings), tmp_path / "llava")
    ours, processor = loading.load(str(folder), device="cpu")
    ours.save_pretrained(tmp_path / "saved")
    assert ours.generation_config.suppress_tokens is None
    inputs = build_inputs(processor, [picture(0)], "what is this?")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert type(again) is LlavaForConditionalGeneration
    upstream = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        expected = ours(**inputs).logits[..., :-1]
        for each in (again, upstream):
            logits = each(**inputs).logits
            assert torch.equal(logits[..., :-1], expected)
            assert (logits[..., -1] <= expected.amax(-1)).all()
            assert torch.equal(
                each.generate(**inputs, **settings), ours.generate(**inputs, **settings)
            )
    configuration = CausalMMConfig(mode="multimodal", epsilon=0.05)
    assert torch.equal(
        again.generate(**inputs, causalmm=configuration, **settings),
        ours.generate(**inputs, causalmm=configuration, **settings),
    )


# Counterfactual answers


@pytest.mark.parametrize("mode", ["vision", "language", "multimodal", "joint"])
def test_causalmm_changes_the_answer(mode, loaded):
    inputs = build_inputs(loaded.processor, [picture(0)], "what is this?")
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    configuration = CausalMMConfig(mode=mode, gamma=3.0, epsilon=0.0)
    plain = loaded.model.generate(**inputs, **settings)
    adjusted = loaded.model.generate(**inputs, causalmm=configuration, **settings)
    assert adjusted.shape == plain.shape
    assert not torch.equal(adjusted, plain)


def test_the_command_answers(checkpoint, tmp_path, capsys):
    picture(0).save(tmp_path / "picture.png")
    arguments = ["--model", str(checkpoint), "--image", str(tmp_path / "picture.png")]
    arguments += ["--prompt", "what is this?", "--device", "cpu", "--max-new-tokens", "4"]
    assert generate.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(checkpoint)


@pytest.mark.slow
def test_the_script_answers_without_their_package(checkpoint, tmp_path):
    """In a process of its own, where importing `llava` has registered nothing."""
    picture(0).save(tmp_path / "picture.png")
    command = [sys.executable, "scripts/generate.py", "--model", str(checkpoint), "--compare"]
    command += ["--image", str(tmp_path / "picture.png"), "--prompt", "what is this?"]
    command += ["--device", "cpu", "--max-new-tokens", "4"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "causalmm" in done.stdout


# Loading


def test_dtype_device_and_attention_pass_through(copy, loaded):
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.text_config._attn_implementation == "sdpa"
    change(copy, torch_dtype="bfloat16", dtype="bfloat16")
    for given in ({}, {"dtype": "auto"}, {"dtype": torch.bfloat16}):
        model = LlavaForConditionalGeneration.from_pretrained(copy, **given)
        assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    for place in ("cpu", "auto"):
        model, report = LlavaForConditionalGeneration.from_pretrained(
            copy,
            dtype=torch.float32,
            device_map=place,
            attn_implementation="eager",
            output_loading_info=True,
        )
        assert not report["missing_keys"]
        assert model.dtype == torch.float32
        assert not model.training
        for config in (model.config.text_config, model.config.vision_config):
            assert config._attn_implementation == "eager"
    assert model.name_or_path == str(copy)


def test_offloaded_to_disk(copy, loaded, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(
        copy,
        device_map={"model": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    inputs = build_inputs(loaded.processor, [picture(0)], "what is this?")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded.model(**inputs).logits)


def test_the_generation_configuration_comes_along(copy):
    path = copy / "generation_config.json"
    path.write_text(json.dumps({"max_length": 77, "eos_token_id": 2}))
    model = LlavaForConditionalGeneration.from_pretrained(copy)
    assert model.generation_config.max_length == 77
    path.unlink()
    model = LlavaForConditionalGeneration.from_pretrained(copy)
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("shards", [1, 3])
def test_hub_ids(shards, tower, theirs, loaded, tmp_path):
    """The checkpoint's and the tower's, from a cache, pickled as the authors' own are."""
    cache = tmp_path / "cache"
    authors.save(theirs, in_cache(cache, "owner/llava"), pickled=True, shards=shards)
    shutil.copytree(tower, in_cache(cache, "owner/clip"))
    change(in_cache(cache, "owner/llava"), mm_vision_tower="owner/clip")
    hub = {"cache_dir": cache, "local_files_only": True}
    model = LlavaForConditionalGeneration.from_pretrained("owner/llava", **hub)
    processor = LlavaProcessor.from_pretrained("owner/llava", **hub)
    same_as_theirs((model, processor), theirs, in_cache(cache, "owner/llava"), QUESTIONS[0])


def in_cache(cache, name):
    """The folder of a hub id's files in a cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_the_transformers_format_is_left_alone(tmp_path):
    folder = save_checkpoint("llava", tmp_path)
    assert read_settings(str(folder)) is None
    assert type(LlavaForConditionalGeneration.from_pretrained(folder)) is (
        LlavaForConditionalGeneration
    )


# Peak memory

MEASURE = """
import sys, threading, time
import torch
from causalmm.families import loading
from llava_causalmm import LlavaForConditionalGeneration

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

torch.zeros(64, 64).matmul(torch.zeros(64, 64))
before, peak = anonymous(), [0]

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
dtype = getattr(torch, sys.argv[2])
model = LlavaForConditionalGeneration.from_pretrained(sys.argv[1], dtype=dtype)
time.sleep(0.05)
print(sum(each.nbytes for each in model.parameters()), peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("pickled", "dtype"), [(True, "float16"), (False, "float32")])
def test_memory_stays_near_the_size_of_the_weights(pickled, dtype, tower, tmp_path):
    """What is allocated while loading; mapped pages of the files are the kernel's to drop."""
    wide = {"hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 8}
    theirs = authors.build(tower, **wide, num_key_value_heads=8, num_hidden_layers=4)
    folder = authors.save(theirs.half(), tmp_path / "llava", pickled=pickled, shards=4)
    command = [sys.executable, "-c", MEASURE, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, peak = map(int, done.stdout.split())
    assert weights > 100e6
    # Nothing is allocated for tensors that are in the wanted dtype already.
    expected = 0 if dtype == "float16" else weights
    assert peak < expected + 50e6


# Wrapping a built model


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_from_llava_shares_every_tensor(projector, tower, loaded):
    theirs = authors.build(tower, mm_projector_type=projector)
    ours = from_llava(theirs)
    assert isinstance(ours, LlavaForConditionalGeneration)
    assert not ours.training
    storages = {each.data_ptr() for each in theirs.parameters()}
    own = {name for name, each in ours.named_parameters() if each.data_ptr() not in storages}
    # What stands for the second layer that a linear projector does not have.
    made = {f"model.multi_modal_projector.linear_2.{part}" for part in ("weight", "bias")}
    assert own == (made if projector == "linear" else set())
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) + len(own)
    prompt = authors.authors_prompt([(QUESTIONS[0], None)])
    inputs = loaded.processor(images=picture(0), text=prompt, return_tensors="pt")
    with torch.no_grad():
        theirs.lm_head.weight.mul_(2.0)
        expected = theirs(
            input_ids=torch.tensor([authors_tokens(inputs, loaded)]),
            images=inputs["pixel_values"],
        ).logits
        found = ours(**inputs).logits
    torch.testing.assert_close(found[..., :-1], expected, atol=1e-4, rtol=0)
    generated = ours.generate(**inputs, causalmm=CausalMMConfig(), max_new_tokens=3)
    assert generated.shape[1] > inputs["input_ids"].shape[1]


def authors_tokens(inputs, loaded):
    """Our ids, one image, as theirs."""
    ids = inputs["input_ids"][0].tolist()
    image = loaded.model.config.image_token_id
    at = ids.index(image)
    return [*ids[:at], -200, *ids[at + ids.count(image) :]]


def test_from_llava_refuses(tower, monkeypatch):
    with pytest.raises(TypeError, match="expected a LlavaLlamaForCausalLM, got Linear"):
        from_llava(torch.nn.Linear(1, 1))
    theirs = authors.build(tower)
    theirs.get_vision_tower().is_loaded = False
    with pytest.raises(ValueError, match="vision tower is not loaded"):
        from_llava(theirs)
    theirs.get_vision_tower().is_loaded = True
    theirs.config.mm_patch_merge_type = "spatial_unpad"
    with pytest.raises(ValueError, match="mm_patch_merge_type is 'spatial_unpad'"):
        from_llava(theirs)
    theirs.is_quantized = True
    with pytest.raises(ValueError, match="quantized"):
        from_llava(theirs)
    theirs.is_quantized = False
    theirs.lm_head.to("meta")
    with pytest.raises(ValueError, match="several devices"):
        from_llava(theirs)


# Refusals


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "expected 'linear' or 'mlp2x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type is 'identity'"),
        ({"mm_vision_select_feature": "cls"}, "expected 'patch' or 'cls_patch'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'.*'pad' or 'square'"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            "expected 'flat'; LLaVA-1.6 is read as converted for transformers, such as llava-hf/",
        ),
        (
            {"model_type": "llava_mistral"},
            "model_type is 'llava_mistral'.* expected 'llava' or 'llava_llama'; LLaVA-1.6 is read",
        ),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'.*expected none"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"mm_vision_tower": None}, "names no vision tower"),
    ],
)
def test_another_model_is_refused(settings, sentence, copy):
    change(copy, **settings)
    with pytest.raises(RequestError, match=sentence) as caught:
        loading.load(str(copy), device="cpu")
    assert str(caught.value).startswith(f"{copy}: ")
    with pytest.raises(ValueError, match=sentence):
        LlavaForConditionalGeneration.from_pretrained(copy)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mm_vision_select_layer": -6}, "expected one of the vision tower's 5 hidden states"),
        ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer is 'last'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"mm_vision_tower": "./no-such-tower"}, "the vision tower ./no-such-tower"),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_failure(settings, sentence, copy):
    change(copy, **settings)
    with pytest.raises(FailureError, match=sentence) as caught:
        loading.load(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


def test_another_tower_is_refused(copy, tmp_path):
    SiglipVisionConfig().save_pretrained(tmp_path / "siglip")
    change(copy, mm_vision_tower=str(tmp_path / "siglip"))
    with pytest.raises(ValueError, match="of type 'siglip_vision_model': expected CLIP"):
        LlavaForConditionalGeneration.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("mm_projector.bin", "holds a projector only"),
        ("adapter_config.json", "holds LoRA weights only: merge them"),
        ("non_lora_trainables.bin", "holds LoRA weights only: merge them"),
        (None, "holds no weights"),
    ],
)
def test_a_part_of_a_checkpoint_is_refused(file, sentence, copy):
    (copy / "model.safetensors").unlink()
    if file is not None:
        (copy / file).write_text("{}")
    with pytest.raises(RequestError, match=sentence):
        checkpoints.resolve(str(copy))
    with pytest.raises(ValueError, match=sentence):
        LlavaForConditionalGeneration.from_pretrained(copy)


def test_missing_weights_are_a_failure(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.mm_projector.2.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FailureError, match=r"lacks 1 of .* model\.multi_modal_projector\.linear_2"):
        loading.load(str(copy), device="cpu")


def test_a_missing_shard_is_a_failure(theirs, tmp_path):
    folder = authors.save(theirs, tmp_path / "llava", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FailureError, match="the weights cannot be read"):
        loading.load(str(folder), device="cpu")


def test_a_tokenizer_that_is_missing_or_another_is_a_failure(copy):
    change(copy, vocab_size=300)
    with pytest.raises(FailureError, match="the tokenizer has 385 tokens .* and the model 301"):
        loading.load(str(copy), device="cpu")
    (copy / "tokenizer.model").unlink()
    with pytest.raises(FailureError, match="has no tokenizer"):
        loading.load(str(copy), device="cpu")


class Trap:
    """What a malicious weight file holds."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return io.open, (str(self.target), "w")


def test_code_in_pickled_weights_is_never_run(theirs, tmp_path):
    folder = authors.save(theirs, tmp_path / "llava", pickled=True)
    torch.save({"lm_head.weight": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(FailureError, match="never run"):
        loading.load(str(folder), device="cpu")
    with pytest.raises(Exception, match="weights_only"):
        LlavaForConditionalGeneration.from_pretrained(folder, weights_only=False)
    assert not (tmp_path / "sprung").exists()


def test_the_package_names_what_it_has():
    assert set(llava_causalmm.__all__) == {"LlavaForConditionalGeneration", "from_llava"}
    with pytest.raises(AttributeError, match="no attribute 'from_lava'"):
        _ = llava_causalmm.from_lava
