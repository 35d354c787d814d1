"""A checkpoint's processor, made whole.

Older releases of transformers saved fewer of a processor's settings. What the files leave unsaid
follows from the model's configuration; what they say must agree with it, or pictures become other
tokens than the model expects. Held by tests/families/test_checkpoints.py.
"""

from collections.abc import Mapping
from typing import Any

from causalmm.errors import FailureError


def check_processor(source: str, processor: Any, config: Any) -> None:
    """Give the processor a chat template and a padding token where only its tokenizer has them.

    Raises FailureError where there is no chat template, or the tokenizer is another model's.
    """
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if processor.chat_template is None:
        raise FailureError(
            f"{source} has no chat template, so no prompt can be made for it: expected a file "
            "chat_template.jinja beside the weights"
        )
    if processor.image_token_id != config.image_token_id:
        # Without its files, transformers makes an empty tokenizer of some kinds and goes on.
        raise FailureError(f"{source}: the tokenizer is missing or belongs to another model")
    _complete_padding(processor, config)


def complete(
    source: str, part: str, target: Any, saved: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Set the attributes `expected` of `target` that its files, read as `saved`, leave unsaid.

    Raises FailureError, with the name of the `part`, where they say something else.
    """
    for name, value in expected.items():
        if saved.get(name) is None:
            setattr(target, name, value)
        elif saved[name] != value:
            raise FailureError(
                f"{source}: {name} of its {part} is {saved[name]!r}, and by the model's "
                f"configuration it is {value!r}"
            )


def _complete_padding(processor: Any, config: Any) -> None:
    """A padding token for a tokenizer without one. It is masked, so any but an image's will do."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is not None:
        return
    # A word would be left out of answers from then on, as special tokens are.
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {processor.image_token_id}
    asked = config.get_text_config().pad_token_id
    for token in (asked, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token in special:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
            return
