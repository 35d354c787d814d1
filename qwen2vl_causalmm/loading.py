"""Load a Qwen2-VL checkpoint of the transformers format. Held by tests/test_checkpoints.py."""

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
    from transformers import Qwen2VLProcessor

    from qwen2vl_causalmm import Qwen2VLForConditionalGeneration

    return load_checkpoint(
        source,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        dtype=dtype,
        device=device,
        attn=attn,
        causalmm=causalmm,
    )
