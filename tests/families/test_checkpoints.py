"""Names find their checkpoint, which loads whole or is refused; any image becomes inputs."""

import importlib.util
import json
import pickle
import shutil

import pytest
import torch
from family_rows import FAMILIES, TWO_FAMILIES, row_of
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_checkpoint

from causalmm import CausalMMConfig
from causalmm.errors import FailureError, RequestError
from causalmm.families import checkpoints
from causalmm.families.family import load_reference
from causalmm.families.loading import load
from causalmm.families.registry import find
from causalmm.inputs.messages import one_turn

TWO = pytest.mark.parametrize("family", TWO_FAMILIES, indirect=True, scope="session")
"""For what loading refuses whatever the model."""


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def checkpoint(family, tmp_path_factory):
    return save_checkpoint(family, tmp_path_factory.mktemp(family))


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy to damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def loaded(family, checkpoint):
    return load(str(checkpoint), device="cpu")


def prompts(family):
    return find(family).prompts()


def logits(family, loaded):
    inputs = prompts(family).build_inputs(
        loaded.processor, [Image.new("RGB", (40, 30), "red")], "what is this?"
    )
    with torch.no_grad():
        return loaded.model(**inputs).logits


# Names


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nonsense", "unknown model 'nonsense'"),
        ("./missing", "unknown model"),
        ("/missing/folder", "unknown model"),
        ("a/b/c", "unknown model"),
        ("owner/bad name", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_a_name_that_stands_for_nothing(name, sentence):
    with pytest.raises(RequestError, match=sentence):
        checkpoints.resolve(name)


def test_a_hub_id_is_taken_as_it_is():
    assert checkpoints.resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_a_demo_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "files", lambda package: tmp_path)
    with pytest.raises(RequestError, match="demo-llava is not in this installation"):
        checkpoints.resolve("demo-llava")


def test_a_folder_needs_configuration_and_weights(copy, tmp_path):
    assert checkpoints.resolve(str(copy)) == str(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="holds no weights"):
        checkpoints.resolve(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(RequestError, match=r"holds no config\.json"):
        checkpoints.resolve(str(copy))
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is a file"):
        checkpoints.resolve(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{}", "model_type None, which is not supported"),
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ('{"model_type": ["llava"]}', "model_type"),
    ],
)
def test_another_family_is_refused(tmp_path, config, sentence):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(RequestError, match=sentence):
        checkpoints.family(str(tmp_path))


SIBLINGS = {
    "qwen3_vl_moe": "Qwen3VLMoe", "qwen2_5_omni": "Qwen2_5Omni", "qwen3_5": "Qwen3_5",
    "qwen3_omni_moe": "Qwen3OmniMoe", "llava_onevision": "LlavaOnevision", "qwen2": "Qwen2",
    "llava_next_video": "LlavaNextVideo", "video_llava": "VideoLlava", "vipllava": "VipLlava",
    "internvl": "InternVL", "instructblip": "InstructBlip", "paligemma": "PaliGemma",
    "gemma3": "Gemma3", "mllama": "Mllama", "idefics3": "Idefics3", "smolvlm": "SmolVLM",
    "glm4v": "Glm4v",
    # Of code in the checkpoint: transformers has no class of it.
    "internvl_chat": None, "minicpmv": None, "phi3_v": None, "llava_qwen": None,
}  # fmt: skip
"""By model_type, how transformers' classes begin."""


@pytest.mark.parametrize("kind", SIBLINGS)
def test_a_sibling_of_a_family_is_refused_by_name(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(RequestError) as caught:
        checkpoints.family(str(tmp_path))
    name = "" if SIBLINGS[kind] is None else f" ({SIBLINGS[kind]})"
    supported = ", ".join(f"{each.title} ({each.name})" for each in map(find, FAMILIES))
    assert str(caught.value) == (
        f"{tmp_path} has model_type {kind!r}{name}, which is not supported: expected one of "
        f"{supported}"
    )


def test_a_hub_out_of_reach_is_a_failure(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FailureError, match="the hub cannot be reached"):
        checkpoints.family("llava-hf/no-such-model")
    # Optional, so its absence from the cache is no obstacle to a model that is there.
    assert checkpoints.configuration("llava-hf/no-such-model") == CausalMMConfig()


def test_the_revision_of_a_hub_id_is_its_commit(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    repository = tmp_path / "models--owner--model"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoints.revision("owner/model") == commit


@pytest.mark.parametrize("size", [100, 3000])
def test_the_revision_of_a_folder_tells_its_weights(tmp_path, monkeypatch, size):
    monkeypatch.setattr(checkpoints, "_READ_WHOLE", 1000)
    monkeypatch.setattr(checkpoints, "_SAMPLED", 10)
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{1}",
        "model-1.safetensors": bytes(size),
        "model-2.safetensors": bytes(size),
    }

    def revision(**changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, data in (files | changes).items():
            (folder / name).write_bytes(data)
        return checkpoints.revision(str(folder))

    same = revision()
    assert revision() == same
    assert revision(**{"causalmm_config.json": b"{}"}) == same
    for name in files:
        for at in (0, -1):
            data = bytearray(files[name])
            data[at] += 1
            assert revision(**{name: bytes(data)}) != same
        assert revision(**{name: files[name] + b" "}) != same
    with pytest.raises(RequestError, match="holds no config.json"):
        checkpoints.revision(str(tmp_path))


def test_a_checkpoint_brings_its_configuration(tmp_path):
    assert checkpoints.configuration(str(tmp_path)) == CausalMMConfig()
    own = CausalMMConfig(mode="language", gamma=0.5)
    own.save_pretrained(tmp_path)
    assert checkpoints.configuration(str(tmp_path)) == own


@pytest.mark.parametrize("text", ["{", "[]", '{"gama": 1}', '{"gamma": -1}', '{"mode": []}'])
def test_a_broken_configuration_is_refused(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(RequestError, match=r"own\.json is no CausalMM configuration"):
        checkpoints.read_configuration(tmp_path / "own.json")


# Loading


def test_hub_layout_loads_the_same_model(family, copy, loaded):
    renamed = {hub_name(family, name): each for name, each in loaded.model.state_dict().items()}
    save_file(renamed, copy / "model.safetensors", metadata={"format": "pt"})
    again = load(str(copy), device="cpu")
    assert torch.equal(logits(family, again), logits(family, loaded))


def hub_name(family, name):
    for ours, hubs in row_of(family).hub_names.items():
        if name.startswith(ours):
            return hubs + name.removeprefix(ours)
    return name


def test_dtype_and_attention_pass_through(family, checkpoint, loaded):
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    other = load(str(checkpoint), dtype="bfloat16", device="cpu", attn="eager").model
    assert other.dtype == torch.bfloat16
    for config in (other.config.text_config, other.config.vision_config):
        assert config._attn_implementation == "eager"


@TWO
def test_attention_that_is_wrong_on_some_cpus_is_refused(family, checkpoint):
    with pytest.raises(RequestError, match="flex_attention is not for a CPU: .*sdpa or eager"):
        load(str(checkpoint), device="cpu", attn="flex_attention")


@TWO
def test_attention_that_is_not_installed_is_refused(family, checkpoint):
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed")
    with pytest.raises(RequestError, match="attention flash_attention_2 cannot be used here"):
        load(str(checkpoint), device="cpu", attn="flash_attention_2")


def test_weights_saved_by_torch_load_too(family, copy, loaded):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert checkpoints.resolve(str(copy)) == str(copy)
    again = load(str(copy), device="cpu")
    assert torch.equal(logits(family, again), logits(family, loaded))


class Trap:
    """What a malicious weight file holds."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@TWO
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_pickled_weights_is_never_run(family, copy, tmp_path, zipped):
    weights = {"lm_head.weight": Trap(tmp_path / "sprung")}
    (copy / "model.safetensors").unlink()
    if zipped:
        torch.save(weights, copy / "pytorch_model.bin")
    else:
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    with pytest.raises(FailureError, match="never run"):
        load(str(copy), device="cpu")
    assert not (tmp_path / "sprung").exists()


def damaged(copy, how):
    path = copy / "model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif how == "lacking":
        del weights[first]
        save_file(weights, path, metadata={"format": "pt"})
    elif how == "misshapen":
        save_file(weights | {first: torch.zeros(3, 3)}, path, metadata={"format": "pt"})
    elif how == "no tokenizer":
        for each in copy.glob("tokenizer*"):
            each.unlink()
    elif how == "no processor":
        (copy / "processor_config.json").unlink()
    elif how == "no template":
        (copy / "chat_template.jinja").unlink()
    elif how == "odd configuration":
        config = json.loads((copy / "config.json").read_text())
        config["text_config"]["hidden_size"] = "wide"
        (copy / "config.json").write_text(json.dumps(config))


@TWO
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("truncated", "the weights cannot be read"),
        ("empty", "the weights cannot be read"),
        ("pointer", "the weights cannot be read"),
        ("lacking", "lacks 1 of the model's weights"),
        ("misshapen", "the weights cannot be read"),
        ("no tokenizer", "the processor cannot be read|the tokenizer is missing"),
        ("no processor", "the processor cannot be read"),
        ("no template", "has no chat template"),
        ("odd configuration", r"config\.json cannot be read"),
    ],
)
def test_an_incomplete_checkpoint_is_a_failure(family, copy, how, sentence):
    damaged(copy, how)
    with pytest.raises(FailureError, match=sentence) as caught:
        load(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"language_layers": "99:"}, "language_layers='99:'"),
        # The tiny LLaVA reads its features from layer 2 of 4, the tiny Qwen2-VL has 3 layers.
        ({"vision_layers": [3]}, "outside the 3 layers an edit can act on"),
        ({"site": "features", "vision_layers": "half:"}, "site='features'"),
    ],
)
def test_a_plan_is_refused_before_weights_are_read(family, copy, settings, sentence):
    damaged(copy, "truncated")
    with pytest.raises(RequestError, match=sentence):
        load(str(copy), device="cpu", causalmm=CausalMMConfig(**settings))


@TWO
@pytest.mark.parametrize("device", ["warp", "cuda:99", "meta", "cpu:x", ""])
def test_a_device_that_is_not_here(family, checkpoint, device):
    with pytest.raises(RequestError, match="device"):
        load(str(checkpoint), device=device)


def unmappable():
    raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")


@TWO
@pytest.mark.parametrize("too_large", [lambda: torch.empty(2**60), unmappable])
def test_not_enough_memory_is_a_failure(family, checkpoint, monkeypatch, too_large):
    model_class = load_reference(find(family).model_class)
    monkeypatch.setattr(model_class, "from_pretrained", lambda *_, **__: too_large())
    with pytest.raises(FailureError, match="not enough memory"):
        load(str(checkpoint), device="cpu")


# Processors that say less than today's, or something else


def edit(path, change):
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def parts(settings, family):
    """Where a processor's settings for pictures are in today's one file."""
    return [settings[part] for part in row_of(family).processor_parts] or [settings]


@pytest.mark.parametrize("number", [0, 1, 2, 3, None], ids=lambda n: "all" if n is None else n)
@pytest.mark.parametrize("null", [False, True], ids=["absent", "null"])
def test_what_a_processor_leaves_unsaid_is_the_models(family, copy, loaded, number, null):
    names = (
        row_of(family).unsaid[number : number + 1] if number is not None else row_of(family).unsaid
    )
    if null:
        names = [name for name in names if name != "image_token"]
    if not names:
        pytest.skip(f"{family} has fewer settings")

    def forget(settings):
        for part in parts(settings, family):
            for name in names:
                if null:
                    part[name] = None
                else:
                    del part[name]

    edit(copy / "processor_config.json", forget)
    again = load(str(copy), device="cpu")
    assert torch.equal(logits(family, again), logits(family, loaded))


def test_a_processor_in_the_files_of_older_releases(family, copy, loaded):
    path = copy / "processor_config.json"
    settings = json.loads(path.read_text())
    images = settings["image_processor"] | {"processor_class": settings["processor_class"]}
    if find(family).sized_pictures:  # the limits have had three forms: these two, and today's
        size = images.pop("size")
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        images["size"] = limits
    (copy / "preprocessor_config.json").write_text(json.dumps(images))
    path.unlink()
    template = copy / "chat_template.jinja"
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    again = load(str(copy), device="cpu")
    assert torch.equal(logits(family, again), logits(family, loaded))
    if find(family).sized_pictures:
        assert again.processor.video_processor.size["longest_edge"] == limits["max_pixels"]
        edit(copy / "preprocessor_config.json", lambda x: x.update(x.pop("size")))
        again = load(str(copy), device="cpu")
        assert torch.equal(logits(family, again), logits(family, loaded))


@pytest.mark.parametrize(
    ("of", "name", "value", "sentence"),
    [
        ("llava", "patch_size", 14, "patch_size of its processor is 14"),
        ("llava", "num_additional_image_tokens", 0, "num_additional_image_tokens .* is 0"),
        ("llava", "vision_feature_select_strategy", "full", "strategy .* is 'full'.* 'default'"),
        ("llava_next", "num_additional_image_tokens", 0, "num_additional_image_tokens .* is 0"),
        ("qwen2_vl", "patch_size", 14, "patch_size of its image processor is 14"),
        ("qwen2_vl", "merge_size", 1, "merge_size of its image processor is 1,.* it is 2"),
        ("qwen2_vl", "temporal_patch_size", 1, "temporal_patch_size of its image processor is 1"),
    ],
)
def test_a_processor_that_contradicts_the_model_is_refused(of, family, copy, name, value, sentence):
    if family != of:
        pytest.skip("of the other family")
    damaged(copy, "truncated")  # and before weights are read

    def contradict(settings):
        for part in parts(settings, family):
            part[name] = value

    edit(copy / "processor_config.json", contradict)
    with pytest.raises(FailureError, match=sentence) as caught:
        load(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


def test_only_the_videos_of_a_processor_contradict_the_model(copy, family):
    if "video" not in find(family).media:
        pytest.skip("has no videos")
    edit(copy / "processor_config.json", lambda x: x["video_processor"].update(merge_size=1))
    with pytest.raises(FailureError, match="merge_size of its video processor is 1"):
        load(str(copy), device="cpu")


def test_two_settings_that_say_together_what_the_models_say(tmp_path):
    """No class token and none taken away: as many image tokens as with one taken away."""
    folder = save_checkpoint("llava", tmp_path)
    same = {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    edit(folder / "processor_config.json", lambda x: x.update(same))
    logits("llava", load(str(folder), device="cpu"))


def test_pictures_of_another_size_than_the_models_are_refused(tmp_path):
    folder = save_checkpoint("llava", tmp_path)
    size = {"height": 35, "width": 35}
    edit(folder / "processor_config.json", lambda x: x["image_processor"].update(crop_size=size))
    with pytest.raises(FailureError, match="makes pictures of 35 x 35 pixels, .* 28 x 28"):
        load(str(folder), device="cpu")


def test_other_resolutions_than_the_models_are_refused(tmp_path):
    folder = save_checkpoint("llava_next", tmp_path)
    other = {"image_grid_pinpoints": [[28, 28]]}
    edit(folder / "processor_config.json", lambda x: x["image_processor"].update(other))
    with pytest.raises(FailureError, match="image_grid_pinpoints of its image processor is") as one:
        load(str(folder), device="cpu")
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("unsaid", [(), ("num_additional_image_tokens", "image_grid_pinpoints")])
def test_llava_next_in_the_files_of_its_published_checkpoints(tmp_path, unsaid):
    """Three files for the processor, and a configuration with settings that nothing reads."""
    folder = save_checkpoint("llava_next", tmp_path)
    wanted = logits("llava_next", load(str(folder), device="cpu"))
    images = {
        "aspect_ratio_setting": "anyres",
        "crop_size": {"height": 14, "width": 14},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [[14, 28], [28, 14], [28, 28]],
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "LlavaNextImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 14},
    }
    others = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 7,
        "processor_class": "LlavaNextProcessor",
        "vision_feature_select_strategy": "default",
    }
    template = folder / "chat_template.jinja"
    files = {
        "preprocessor_config": images,
        "processor_config": others,
        "chat_template": {"chat_template": template.read_text()},
    }
    template.unlink()
    for name, settings in files.items():
        said = {key: value for key, value in settings.items() if key not in unsaid}
        (folder / f"{name}.json").write_text(json.dumps(said))
    unread = {"ignore_index": -100, "use_image_newline_parameter": True, "vocab_size": 64}
    edit(folder / "config.json", lambda x: x.update(unread))
    assert torch.equal(logits("llava_next", load(str(folder), device="cpu")), wanted)


@pytest.mark.parametrize("asked", [0, None, -1, 20], ids=["pad", "none", "no token", "a word"])
def test_a_tokenizer_without_a_padding_token_gets_one(family, copy, loaded, asked):
    edit(copy / "tokenizer_config.json", lambda x: x.pop("pad_token"))
    edit(copy / "config.json", lambda x: x["text_config"].update(pad_token_id=asked))
    again = load(str(copy), device="cpu")
    chosen = again.processor.tokenizer.pad_token
    assert chosen == ("<pad>" if asked == 0 else loaded.processor.tokenizer.eos_token)
    picture = Image.new("RGB", (40, 30), "red")
    turns = [one_turn([picture], text) for text in ("what", "is there a banana ?")]
    prepared = [prompts(family).prepare(again.processor, turn) for turn in turns]
    with torch.no_grad():
        rows = again.model(**prompts(family).join(again.processor, prepared)).logits[:, -1]
        for row, each in zip(rows, prepared, strict=True):
            alone = again.model(**prompts(family).join(again.processor, [each])).logits[0, -1]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_an_answer_ends_where_the_tokenizers_texts_end(family, copy):
    edit(copy / "generation_config.json", lambda x: x.pop("eos_token_id", None))
    model, processor = load(str(copy), device="cpu")
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == 1
    edit(copy / "generation_config.json", lambda x: x.update(eos_token_id=[1, 7]))
    assert load(str(copy), device="cpu").model.generation_config.eos_token_id == [
        1,
        7,
    ]


# Prompts


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3), (3, 1), (3, 3), (2, 400), (400, 2), (640, 480), (4000, 20)]
)
def test_an_image_of_any_size_becomes_inputs(family, loaded, size):
    inputs = prompts(family).build_inputs(loaded.processor, [Image.new("RGB", size)], "what?")
    output = loaded.model.generate(**inputs, max_new_tokens=1, causalmm=CausalMMConfig())
    assert output.shape[1] == inputs["input_ids"].shape[1] + 1


def test_two_images(family, loaded):
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    one = prompts(family).build_inputs(loaded.processor, images[:1], "what?")
    two = prompts(family).build_inputs(loaded.processor, images, "what?")
    assert len(two["pixel_values"]) == 2 * len(one["pixel_values"])
    assert loaded.model(**two).logits.isfinite().all()
