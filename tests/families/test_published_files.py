"""Checkpoints in the files in which Qwen published Qwen2.5-VL: settings of the decoder beside those
of the model, names of weights of 2025, and one file for the pictures of images and videos."""

import json

import pytest
import torch
from family_rows import row_of
from PIL import Image
from safetensors.torch import save_file
from tiny_checkpoints import save_checkpoint
from tiny_words import EOS, IMAGE, VIDEO, VISION_END, VISION_START

from causalmm import CausalMMConfig
from causalmm.families.loading import load
from causalmm.inputs.messages import one_turn
from qwen2vl_causalmm import prompt

ROW = row_of("qwen2_5_vl")
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 7,  # of the tiny model
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def published_config(config):
    text, vision = config.text_config, config.vision_config
    names = (
        *("attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size"),
        *("initializer_range", "intermediate_size", "max_position_embeddings", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "use_cache", "vocab_size"),
    )
    of_vision = (
        *("depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads", "patch_size"),
        *("out_hidden_size", "spatial_merge_size", "window_size", "temporal_patch_size"),
    )
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{name: getattr(text, name) for name in names},
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "vision_token_id": VISION_END,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "max_window_layers": text.num_hidden_layers,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": text.rope_parameters["mrope_section"],
        },
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "vision_config": {
            **{name: getattr(vision, name) for name in of_vision},
            "in_chans": 3,
            "spatial_patch_size": vision.patch_size,
            "tokens_per_second": 2,
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
        },
    }


@pytest.fixture(scope="module")
def todays(tmp_path_factory):
    """The same model and pictures in today's files."""
    folder = save_checkpoint(ROW, tmp_path_factory.mktemp("todays"))
    loaded = load(str(folder), device="cpu", dtype="float32")
    loaded.model.config.vision_config.tokens_per_second = 2
    for part in (loaded.processor.image_processor, loaded.processor.video_processor):
        part.size["shortest_edge"], part.size["longest_edge"] = 3136, 12845056
        part.image_mean, part.image_std = PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]
    return loaded


@pytest.fixture
def published(todays, tmp_path):
    todays.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    generation = {
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": [EOS],
        "do_sample": True,
        "temperature": 0.1,
        "top_p": 0.001,
        "top_k": 1,
        "repetition_penalty": 1.05,
        "transformers_version": "4.49.0",
    }
    for name, settings in {
        "config.json": published_config(todays.model.config),
        "generation_config.json": generation,
        "preprocessor_config.json": PREPROCESSOR,
        "chat_template.json": {"chat_template": todays.processor.chat_template},
    }.items():
        (tmp_path / name).write_text(json.dumps(settings))
    weights = {}
    for name, tensor in todays.model.state_dict().items():
        for now, then in ROW.hub_names.items():
            if name.startswith(now):
                name = then + name.removeprefix(now)
        weights[name] = tensor
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_published_files_load_as_todays(published, todays):
    found = load(str(published), device="cpu", dtype="float32")
    config = found.model.config
    assert config.text_config.layer_types == ["full_attention"] * 4
    assert config.vision_config.tokens_per_second == 2
    assert found.model.causalmm_towers() == todays.model.causalmm_towers()
    assert found.model.generation_config.repetition_penalty == 1.05
    assert found.processor.video_processor.size["longest_edge"] == 12845056
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "green", "white")]
    turn = one_turn([Image.new("RGB", (90, 50), "red")], "what is this ?")
    turn[0]["content"].insert(1, {"type": "video", "video": frames, "sample_fps": 0.5})
    both = [prompt.build_chat_inputs(each.processor, turn) for each in (found, todays)]
    assert both[0].keys() == both[1].keys()
    for name, part in both[0].items():
        assert torch.equal(part, both[1][name]), name
    assert both[0]["second_per_grid_ts"].tolist() == [4.0]
    for causalmm in (None, CausalMMConfig()):
        settings = {"do_sample": False, "max_new_tokens": 3, "repetition_penalty": 1.0}
        settings |= {"causalmm": causalmm, "output_logits": True, "return_dict_in_generate": True}
        one, other = (
            each.model.generate(**inputs, **settings)
            for each, inputs in zip((found, todays), both, strict=True)
        )
        for step, wanted in zip(one.logits, other.logits, strict=True):
            assert torch.equal(step, wanted)
