"""The declaration of the family Qwen2.5-VL. Pictures and prompts are made as for Qwen2-VL."""

from causalmm.families.family import Family

FAMILY = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    model_class="qwen2_5vl_causalmm.model:Qwen2_5_VLForConditionalGeneration",
    processor_class="transformers:Qwen2_5_VLProcessor",
    complete_processor="qwen2vl_causalmm.checkpoints:complete_processor",
    prompt="qwen2vl_causalmm.prompt",
    media=frozenset({"image", "video"}),
    sized_pictures=True,
)
