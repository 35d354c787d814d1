"""From opened conversations to model inputs: what families have in common.

A conversation goes through the checkpoint's own chat template, and its pictures through the
checkpoint's own processor; several are padded on the left. Nothing here loads torch.
Held by tests/inputs/test_inputs.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from causalmm.errors import FailureError, RequestError, first_line
from causalmm.inputs.messages import Message, one_turn, parts_of


class Video(NamedTuple):
    """A video as a processor takes it."""

    frames: Any
    """Chosen and sized."""
    metadata: Mapping[str, Any]
    """Of transformers' VideoMetadata, `fps`, `frames_indices` and `total_num_frames`. Without them
    a processor takes every video for one of 24 frames a second."""


class Prepared(NamedTuple):
    """A conversation as a processor takes it, each picture's token standing once in the text."""

    text: str
    images: list[Any]
    videos: list[Video]


def chat_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """An opened conversation in the words of the chat template, up to where the answer begins.

    Raises RequestError where a text contains a token that stands for a picture, or the template
    does not take these messages.
    """
    tokens = {"image": processor.image_token}
    if (token := getattr(processor, "video_token", None)) is not None:
        tokens["video"] = token
    for part in parts_of(messages, "text"):
        for kind, token in tokens.items():
            if token in part["text"]:
                raise RequestError(f"the prompt contains {token}, which stands for {_A[kind]}")
    shown = [
        {"role": each["role"], "content": [_shown(part) for part in each["content"]]}
        for each in messages
    ]
    try:
        text = processor.apply_chat_template(shown, add_generation_prompt=True)
    except TemplateError as error:
        raise RequestError(
            f"the checkpoint's chat template refuses the messages ({first_line(error)})"
        ) from error
    for kind, token in tokens.items():
        if text.count(token) != len(list(parts_of(messages, kind))):
            raise RequestError(
                f"the checkpoint's chat template does not show every {kind}: it may want them in "
                "the user's messages"
            )
    return text


def join(processor: Any, prepared: Sequence[Prepared], **options: Any) -> Any:
    """Model inputs (a BatchFeature, a row a conversation), padded on the left if of many rows.

    `options` go to the processor. Raises FailureError where the tokenizer cannot pad.
    """
    videos = [video for each in prepared for video in each.videos]
    if videos:
        # Frames are chosen and sized; False is what leaving the second one out means, but for a
        # warning.
        options |= {"do_sample_frames": False, "cap_pixels_per_frame": False}
        options["videos"] = [video.frames for video in videos]
        options["video_metadata"] = [dict(video.metadata) for video in videos]
    if len(prepared) > 1:
        if processor.tokenizer.pad_token is None:
            raise FailureError("the checkpoint's tokenizer has no padding token: ask one by one")
        options |= {"padding": True, "padding_side": "left"}
    return processor(
        images=[image for each in prepared for image in each.images] or None,
        text=[each.text for each in prepared],
        return_tensors="pt",
        **options,
    )


def to_model(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Model inputs on the model's device, pixels in its dtype.

    Nothing else: in bfloat16 the times of a video's frames (`second_per_grid_ts`) become other
    positions, from the 257th on the same one for several.
    """
    return {
        name: part.to(model.device, model.dtype if name.startswith("pixel_values") else None)
        for name, part in inputs.items()
    }


def input_builders(
    prepare: Callable[..., Prepared], join: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`build_inputs` and `build_chat_inputs` of a family, made of its other two functions.

    `causalmm.families.family.PromptModule` says what all four take, return and raise.
    """

    def build_chat_inputs(
        processor: Any, messages: Sequence[Message], *, allow_network: bool = False
    ) -> Any:
        return join(processor, [prepare(processor, messages, allow_network=allow_network)])

    def build_inputs(processor: Any, images: Sequence[Any], prompt: str) -> Any:
        return build_chat_inputs(processor, one_turn(images, prompt))

    return build_inputs, build_chat_inputs


_A = {"image": "an image", "video": "a video"}


def _shown(part: Mapping[str, Any]) -> dict[str, Any]:
    # Without the picture itself: a template asks only which kind of part it is.
    return dict(part) if part["type"] == "text" else {"type": part["type"]}
