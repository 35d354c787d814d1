"""Load a LLaVA-1.5 checkpoint, of the transformers format or of its authors'.

Held by tests/test_checkpoints.py and tests/test_authors_format.py.
"""

from causalmm.config import CausalMMConfig
from causalmm.errors import RequestError
from causalmm.loading import Loaded, load_checkpoint


def load(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "sdpa",
    causalmm: CausalMMConfig | None = None,
) -> Loaded:
    """Model and processor of a folder or hub id; see `causalmm.loading.load_checkpoint`."""
    model_class, processor_class = _classes(source)
    loaded = load_checkpoint(
        source,
        model_class,
        processor_class,
        dtype=dtype,
        device=device,
        attn=attn,
        causalmm=causalmm,
    )
    _complete(loaded)
    return loaded


def _classes(source: str) -> tuple[type, type]:
    """Classes for the checkpoint's format. Raises RequestError for settings that neither has."""
    from llava_causalmm.authors.config import check, read_settings

    if (settings := read_settings(source)) is None:
        from transformers import LlavaProcessor

        from llava_causalmm.model import LlavaForConditionalGeneration
    else:
        try:
            check(settings)
        except RequestError as error:
            raise RequestError(f"{source}: {error}") from error
        from llava_causalmm.authors.model import LlavaForConditionalGeneration
        from llava_causalmm.authors.processor import LlavaProcessor
    return LlavaForConditionalGeneration, LlavaProcessor


def _complete(loaded: Loaded) -> None:
    """Fill in what processors saved by older transformers left to the model's configuration."""
    processor, config = loaded.processor, loaded.model.config
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's class token
