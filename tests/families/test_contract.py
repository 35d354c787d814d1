"""What every family keeps: off is upstream, on is the dense definition, and checkpoints load.

Runs for this project's families, or with `--family-row MODULE:ROW` (may be repeated) for those of
other packages: docs/add-a-family.md.
"""

import pytest
import torch
from dense_branches import attach
from equivalence import check
from family_rows import FAMILIES, row_of
from PIL import Image
from tiny_checkpoints import save_checkpoint
from tiny_models import model_pair, pad_together
from tiny_words import FIRST_WORD

from causalmm import BranchTrace, CausalMMConfig
from causalmm.config import MODES
from causalmm.errors import RequestError
from causalmm.families import checkpoints
from causalmm.families.family import MEDIA, load_reference
from causalmm.families.loading import load
from causalmm.families.registry import families
from causalmm.figures.recording import attention_modules
from causalmm.inputs.messages import one_turn

GREEDY = {"do_sample": False, "max_new_tokens": 10}
SAMPLED = {"do_sample": True, "max_new_tokens": 10, "temperature": 1.5, "top_p": 0.95, "top_k": 30}
OFF = {
    "none": None,
    "zero": CausalMMConfig(gamma=0, epsilon=0),
    "zero_joint": CausalMMConfig(mode="joint", gamma=0, epsilon=0),
}


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        given = metafunc.config.getoption("family_row")
        rows = [load_reference(each) for each in given] or [row_of(name) for name in FAMILIES]
        metafunc.parametrize("row", rows, ids=[row.name for row in rows], scope="module")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def attention(request):
    return request.param


@pytest.fixture(scope="module")
def pair(row, attention):
    return model_pair(row, attention)


@pytest.fixture(scope="module")
def dense(row, attention):
    """Our model, and upstream's with the dense definition in the place of its attention."""
    ours, upstream = model_pair(row, attention)
    return ours, upstream, attach(upstream, row)


@pytest.fixture(scope="module")
def checkpoint(row, tmp_path_factory):
    return save_checkpoint(row, tmp_path_factory.mktemp(row.name))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(str(checkpoint), device="cpu")


# Off


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("off", list(OFF))
def test_off_is_upstream(row, pair, settings, off):
    inputs = pad_together([row.sample(seed=1, before=4), row.sample(seed=2)])
    outputs = []
    for model, extra in zip(pair, ({"causalmm": OFF[off]}, {}), strict=True):
        torch.manual_seed(0)
        outputs.append(
            model.generate(
                **inputs, **settings, **extra, return_dict_in_generate=True, output_logits=True
            )
        )
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for mine, theirs in zip(outputs[0].logits, outputs[1].logits, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("off", list(OFF))
def test_off_is_upstream_in_forward(row, pair, off):
    ours, upstream = pair
    inputs = row.sample(seed=1)
    with torch.no_grad():
        mine = ours(**inputs, causalmm=OFF[off], output_hidden_states=True)
        theirs = upstream(**inputs, output_hidden_states=True)
    assert torch.equal(mine.logits, theirs.logits)
    for one, other in zip(mine.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(one, other)


# On


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_at_every_token(row, dense, mode):
    config = CausalMMConfig(mode=mode, gamma=1.0, epsilon=0, seed=3)
    check(dense, [row.sample(seed=1)], config)


@pytest.mark.parametrize("mode", ["multimodal", "joint"])
def test_padded_batch_equals_its_members_alone(row, dense, mode):
    config = CausalMMConfig(mode=mode, epsilon=0, draws=2, seed=5)
    samples = [
        row.sample(seed=1, before=6, after=4),
        row.sample(seed=2, before=1, after=2),
        row.sample(seed=3, before=3, after=7),
    ]
    check(dense, samples, config)


def test_several_images_in_one_prompt(row, dense):
    config = CausalMMConfig(vision_method="reversed", language_method="reverse", epsilon=0)
    check(dense, [row.sample(seed=6, **row.two_images)], config)


@pytest.mark.parametrize("mode", MODES)
def test_prefill_equals_step_by_step_decoding(row, pair, mode):
    """One forward over prompt and answer says at each position what decoding said there."""
    model, _ = pair
    config = CausalMMConfig(mode=mode, epsilon=0, seed=2)
    inputs = row.sample(seed=1)
    trace = BranchTrace()
    words = {"suppress_tokens": list(range(FIRST_WORD))}  # an image token needs a picture
    tokens = model.generate(**inputs, causalmm=config, causalmm_trace=trace, **GREEDY, **words)
    length, total = inputs["input_ids"].shape[1], tokens.shape[1]
    whole = dict(inputs, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for name in inputs.keys() & {"mm_token_type_ids"}:
        whole[name] = torch.nn.functional.pad(inputs[name], (0, total - length))
    with torch.no_grad():
        logits = model(**whole, causalmm=config).logits
    stepwise = torch.stack([step.adjusted[0] for step in trace.steps])
    torch.testing.assert_close(logits[0, length - 1 : -1], stepwise, atol=1e-4, rtol=1e-4)


# Layers


def test_the_layers_that_are_declared(row, pair):
    """The modules are found as in upstream's, and the last layer that an edit can reach changes the
    output."""
    model, upstream = pair
    towers = model.causalmm_towers()
    vision, theirs = (attention_modules(each.get_encoder("image")) for each in (model, upstream))
    assert len(vision) == len(theirs) >= towers.vision_layers > 0
    language, theirs = (attention_modules(each.get_decoder()) for each in (model, upstream))
    assert len(language) == len(theirs) == towers.language_layers
    for mode in ("vision", "language"):
        trace = BranchTrace()
        config = CausalMMConfig(mode=mode, vision_layers="-1:", language_layers="-1:", epsilon=0)
        with torch.no_grad():
            model(**row.sample(seed=1), causalmm=model.causalmm_plan(config, trace))
        [step] = trace.steps
        assert (getattr(step, mode) - step.factual).abs().max() > 1e-3


def test_a_layer_that_cannot_reach_the_output_is_refused(pair):
    model, _ = pair
    layers = model.causalmm_towers().vision_layers
    with pytest.raises(ValueError, match=f"outside the {layers} layers an edit can act on"):
        model.causalmm_plan(CausalMMConfig(vision_layers=[layers]))


# Checkpoints and prompts


def test_a_checkpoint_loads_by_its_folder(row, checkpoint, loaded):
    assert checkpoints.family(str(checkpoint)) == row.name
    assert families()[row.name] == row.family
    assert isinstance(loaded.model, load_reference(row.family.model_class))
    torch.manual_seed(0)  # as the checkpoint was drawn
    expected = model_pair(row, "sdpa")[0].state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_prompt_is_the_chat_templates(row, loaded):
    prompts = row.family.prompts()
    inputs = prompts.build_inputs(loaded.processor, [Image.new("RGB", (9, 9))], "what ?")
    assert loaded.processor.tokenizer.decode(inputs["input_ids"][0]) == row.shown
    with torch.no_grad():
        assert loaded.model(**inputs, causalmm=CausalMMConfig()).logits.isfinite().all()


def test_joined_prompts_answer_as_alone(row, loaded):
    prompts = row.family.prompts()
    image = Image.new("RGB", (40, 30), "red")
    turns = [one_turn([image], text) for text in ("what", "is there a banana ?")]
    prepared = [prompts.prepare(loaded.processor, turn) for turn in turns]
    settings = {"causalmm": CausalMMConfig(epsilon=0)} | GREEDY
    batch = prompts.join(loaded.processor, prepared)
    together = loaded.model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for answer, each in zip(together, turns, strict=True):
        inputs = prompts.build_chat_inputs(loaded.processor, each)
        alone = loaded.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
        assert torch.equal(answer, alone)


def test_a_prompt_may_not_stand_for_an_image(row, loaded):
    token = loaded.processor.image_token
    with pytest.raises(RequestError, match="stands for an image"):
        row.family.prompts().build_inputs(
            loaded.processor, [Image.new("RGB", (9, 9))], f"what {token}?"
        )


def test_media_that_it_does_not_read_are_refused(row, loaded):
    frames = [Image.new("RGB", (28, 28))] * 2
    messages = one_turn([], "what ?", frames)
    build = row.family.prompts().build_chat_inputs
    if "video" in row.family.media:
        assert row.family.media == set(MEDIA)
        assert "pixel_values_videos" in build(loaded.processor, messages)
        return
    with pytest.raises(RequestError, match="reads images only, and this is a video") as caught:
        build(loaded.processor, messages)
    assert "\n" not in str(caught.value)
