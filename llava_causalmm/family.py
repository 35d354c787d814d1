"""The declaration of the family LLaVA-1.5."""

from causalmm.families.family import Family

FAMILY = Family(
    name="llava",
    title="LLaVA",
    # Of its authors' later releases; the second is LLaVA-1.6's, refused with a hint.
    other_model_types=("llava_llama", "llava_mistral"),
    model_class="llava_causalmm.model:LlavaForConditionalGeneration",
    processor_class="transformers:LlavaProcessor",
    find_classes="llava_causalmm.checkpoints:find_classes",
    complete_processor="llava_causalmm.checkpoints:complete_processor",
    prompt="llava_causalmm.prompt",
    media=frozenset({"image"}),
    sized_pictures=False,
    demo="demo-llava",
)
