"""What LLaVA-NeXT checkpoints need: a whole processor.

Tests: tests/families/test_checkpoints.py.
"""

from typing import Any

from causalmm.families.processors import complete
from llava_causalmm import checkpoints


def complete_processor(source: str, processor: Any, config: Any) -> None:
    """Settings that older transformers did not save: LLaVA's, and the resolutions among which
    pictures choose theirs.

    Raises FailureError where a picture would become other tokens than the model makes features.
    """
    images = processor.image_processor
    saved, _ = type(images).get_image_processor_dict(source)
    resolutions = {"image_grid_pinpoints": config.image_grid_pinpoints}
    complete(source, "image processor", images, saved, resolutions)
    checkpoints.complete_processor(source, processor, config)
