"""The declaration of the family Qwen3-VL. Processors are completed as for Qwen2-VL."""

from causalmm.families.family import Family

FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    model_class="qwen3vl_causalmm.model:Qwen3VLForConditionalGeneration",
    processor_class="transformers:Qwen3VLProcessor",
    complete_processor="qwen2vl_causalmm.checkpoints:complete_processor",
    prompt="qwen3vl_causalmm.prompt",
    media=frozenset({"image", "video"}),
    sized_pictures=True,
)
