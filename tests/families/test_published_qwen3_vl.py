"""A checkpoint in the files in which Qwen published Qwen3-VL: sizes and rotary embeddings under the
names of 2025, one file each for the pictures of images and of videos."""

import json

import torch
from family_rows import row_of
from PIL import Image
from tiny_checkpoints import save_checkpoint

from causalmm import CausalMMConfig
from causalmm.families.loading import load
from causalmm.inputs.messages import one_turn
from qwen3vl_causalmm import prompt

IMAGES = {"longest_edge": 16777216, "shortest_edge": 65536}
VIDEOS = {"longest_edge": 25165824, "shortest_edge": 4096}
PICTURES = {
    "patch_size": 7,  # of the tiny model
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
GENERATION = {
    "bos_token_id": 2,
    "pad_token_id": 0,
    "do_sample": True,
    "eos_token_id": [1, 0],
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.0,
    "temperature": 0.7,
    "transformers_version": "4.56.0",
}


def published_config(config):
    """Today's, with the rotary embeddings' settings in two entries of the decoder's, and the
    model's name for that of the vision encoder."""
    settings = json.loads(config.to_json_string(use_diff=False))
    text, vision = settings["text_config"], settings["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    vision["model_type"] = "qwen3_vl"
    del vision["rope_parameters"]
    return settings | {"transformers_version": "4.57.0.dev0"}


def test_published_files_load_as_todays(tmp_path):
    folder = save_checkpoint(row_of("qwen3_vl"), tmp_path)
    todays = load(str(folder), device="cpu", dtype="float32")
    todays.processor.image_processor.size = IMAGES
    todays.processor.video_processor.size = VIDEOS
    template = folder / "chat_template.jinja"
    for name, settings in {
        "config": published_config(todays.model.config),
        "generation_config": GENERATION,
        "preprocessor_config": PICTURES
        | {"size": IMAGES, "image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config": PICTURES
        | {"size": VIDEOS, "video_processor_type": "Qwen3VLVideoProcessor"},
        "chat_template": {"chat_template": template.read_text()},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").unlink()
    template.unlink()
    found = load(str(folder), device="cpu", dtype="float32")
    for name in ("top_k", "top_p", "temperature", "eos_token_id"):
        assert getattr(found.model.generation_config, name) == GENERATION[name]

    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "green", "white")]
    turn = one_turn([Image.new("RGB", (90, 50), "red")], "what is this ?")
    turn[0]["content"].insert(1, {"type": "video", "video": frames, "sample_fps": 0.5})
    both = [prompt.build_chat_inputs(each.processor, turn) for each in (found, todays)]
    assert both[0].keys() == both[1].keys()
    for name, part in both[0].items():
        assert torch.equal(part, both[1][name]), name
    assert 4 * 7**2 * (both[0]["input_ids"] == 3).sum() >= IMAGES["shortest_edge"]
    for causalmm in (None, CausalMMConfig()):
        settings = {"do_sample": False, "max_new_tokens": 3, "causalmm": causalmm}
        settings |= {"output_logits": True, "return_dict_in_generate": True}
        one, other = (
            each.model.generate(**inputs, **settings)
            for each, inputs in zip((found, todays), both, strict=True)
        )
        for step, wanted in zip(one.logits, other.logits, strict=True):
            assert torch.equal(step, wanted)
