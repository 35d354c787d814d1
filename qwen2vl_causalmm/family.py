"""The declaration of the family Qwen2-VL."""

from causalmm.families.family import Family

FAMILY = Family(
    name="qwen2_vl",
    title="Qwen2-VL",
    model_class="qwen2vl_causalmm.model:Qwen2VLForConditionalGeneration",
    processor_class="transformers:Qwen2VLProcessor",
    complete_processor="qwen2vl_causalmm.checkpoints:complete_processor",
    prompt="qwen2vl_causalmm.prompt",
    media=frozenset({"image", "video"}),
    sized_pictures=True,
    demo="demo-qwen2vl",
)
