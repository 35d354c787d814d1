"""Load a LLaVA-1.5 checkpoint of the transformers format. Held by tests/test_checkpoints.py."""

from causalmm.compat import ensure_torchvision
from causalmm.config import CausalMMConfig
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
    ensure_torchvision()
    from transformers import LlavaProcessor

    from llava_causalmm import LlavaForConditionalGeneration

    loaded = load_checkpoint(
        source,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        dtype=dtype,
        device=device,
        attn=attn,
        causalmm=causalmm,
    )
    _complete(loaded)
    return loaded


def _complete(loaded: Loaded) -> None:
    """Fill in what processors saved by older transformers left to the model's configuration."""
    processor, config = loaded.processor, loaded.model.config
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's class token
