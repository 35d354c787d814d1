"""Several questions about the same pictures, answered at once.

Tests: tests/decoding/test_shared_image.py.
"""

from collections.abc import Sequence
from typing import Any

from causalmm.config import CausalMMConfig
from causalmm.decoding.shared_image import generate_together
from causalmm.families.registry import find
from causalmm.inputs.messages import one_turn, open_messages, text_part
from causalmm.inputs.prompts import to_model


def answer_questions(
    model: Any,
    processor: Any,
    image: Any,
    prompts: Sequence[str],
    *,
    causalmm: CausalMMConfig | None = None,
    allow_network: bool = False,
    **settings: Any,
) -> list[str]:
    """The answer to each prompt about one image (a path or PIL image) or a list of images.

    Images at http(s) addresses are fetched only with `allow_network`. `settings` go to `generate`.
    Raises RequestError for what cannot be asked, ValueError where no prompt is given or `settings`
    ask for several sequences a prompt.
    """
    if not prompts:
        raise ValueError("prompts is empty: expected at least one")
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    [opened] = open_messages(one_turn(images, None), allow_network=allow_network)
    turns = [opened | {"content": [*opened["content"], text_part(text)]} for text in prompts]
    prompt = find(model.config.model_type).prompts()
    rows = [to_model(prompt.build_chat_inputs(processor, [turn]), model) for turn in turns]
    said = generate_together(model, rows, causalmm=causalmm, **settings)
    texts = processor.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [text.strip() for text in texts]
