"""The declaration of the family LLaVA-NeXT (LLaVA-1.6). Prompts are made as for LLaVA."""

from causalmm.families.family import Family

FAMILY = Family(
    name="llava_next",
    title="LLaVA-NeXT",
    model_class="llavanext_causalmm.model:LlavaNextForConditionalGeneration",
    processor_class="transformers:LlavaNextProcessor",
    complete_processor="llavanext_causalmm.checkpoints:complete_processor",
    prompt="llava_causalmm.prompt",
    media=frozenset({"image"}),
    sized_pictures=False,
)
