"""What Qwen2-VL checkpoints need: a whole processor. Tests: tests/families/test_checkpoints.py."""

from typing import Any

from causalmm.families.processors import complete


def complete_processor(source: str, processor: Any, config: Any) -> None:
    """Settings that older transformers did not save, or saved under other names.

    Raises FailureError where a picture would be cut into other patches than the model's.
    """
    vision = config.vision_config
    expected = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    images, videos = processor.image_processor, processor.video_processor
    for part, target, (saved, _) in (
        ("image processor", images, type(images).get_image_processor_dict(source)),
        ("video processor", videos, type(videos).get_video_processor_dict(source)),
    ):
        complete(source, part, target, saved, expected)
        for edge, pixels in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            if target.size[edge] is None:
                target.size[edge] = target.size[pixels] or type(target).size[edge]
                target.size[pixels] = None
