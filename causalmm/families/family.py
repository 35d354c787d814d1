"""What a model family declares, once, and what its functions take and return.

A family is a package of its own: it declares a `Family` in one file, and everything that asks about
families (the loader, flags, messages, lmms-eval, benchmarks, tests) reads the declaration. Nothing
here loads torch. docs/add-a-family.md says how to add one. Tests: tests/families/test_registry.py.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # of packages above this one, or they load torch
    from torch import Tensor

    from causalmm.decoding.plan import Towers
    from causalmm.inputs.messages import Message
    from causalmm.inputs.prompts import Prepared

MEDIA = ("image", "video")
_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model that CausalMM supports. Checked at construction.

    References are "module:attribute" strings, imported when they are first needed: model classes
    load torch and transformers, which takes seconds.
    """

    name: str
    """The `model_type` of its configuration in transformers."""
    title: str
    """Its name in messages, such as "Qwen2-VL"."""
    model_class: str
    """Reference to a class with the methods of `ModelClass`."""
    processor_class: str
    """Reference to transformers' processor class."""
    complete_processor: str
    """Reference to a function of a checkpoint's source, its processor and its configuration, which
    sets what the processor's files leave unsaid. It raises FailureError where they would make other
    tokens of a picture than the model expects."""
    prompt: str
    """The module with the functions of `PromptModule`."""
    media: frozenset[str]
    """What it reads: "image", or "image" and "video"."""
    sized_pictures: bool
    """Whether the pixels of a picture can be limited (`min_pixels`, `max_pixels`)."""
    other_model_types: tuple[str, ...] = ()
    """Further values of `model_type` in config.json files that it reads."""
    find_classes: str | None = None
    """Where checkpoints have several formats: reference to a function of a checkpoint's source that
    returns the model class and the processor class. It raises RequestError for settings that none
    reads."""
    demo: str | None = None
    """The packaged demonstration model, if there is one."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"name={self.name!r}: expected a model_type such as 'llava'")
        if not self.title:
            raise ValueError(f"title of family {self.name} is empty: expected a name for messages")
        for field in ("model_class", "processor_class", "complete_processor", "find_classes"):
            value = getattr(self, field)
            optional = field == "find_classes" and value is None
            if not optional and not _REFERENCE.fullmatch(value):
                raise ValueError(f"{field}={value!r}: expected 'module:attribute'")
        if "image" not in self.media or not self.media <= set(MEDIA):
            raise ValueError(
                f"media={sorted(self.media)}: expected 'image', or 'image' and 'video'"
            )

    @property
    def package(self) -> str:
        """The package of the model class; `python -m PACKAGE.generate` asks this family."""
        return self.model_class.partition(".")[0]

    @property
    def model_types(self) -> tuple[str, ...]:
        """The values of `model_type` in config.json files that it reads."""
        return (self.name, *self.other_model_types)

    def prompts(self) -> "PromptModule":
        """The module that makes model inputs."""
        return import_module(self.prompt)

    def patched_files(self) -> list[Path]:
        """The generated modeling files, upstream's with the patches, sorted by name."""
        return sorted(Path(import_module(self.package).__file__).parent.glob("modeling_*.py"))


class ModelClass(Protocol):
    """Upstream's class with `causalmm.decoding.generation.CounterfactualGeneration` before it.

    `get_encoder("image")` is its vision tower and `get_decoder()` its language model.
    """

    def causalmm_towers(self) -> "Towers":
        """How many layers of either tower an intervention can reach.

        Raises ValueError where the checkpoint has parts that are not patched.
        """

    def causalmm_patch_order(self, grid_thw: "Tensor") -> "Tensor":
        """In which order the vision encoder has the patches of packed pictures, as in
        `CounterfactualGeneration`, whose own is that of the processor. For figures."""


class PromptModule(Protocol):
    """From messages to model inputs. `causalmm.inputs.prompts` has what families share."""

    def prepare(
        self, processor: Any, messages: "Sequence[Message]", *, allow_network: bool = False
    ) -> "Prepared":
        """A conversation's text and its pictures, opened, as the processor takes them.

        Raises RequestError for what the family cannot take.
        """

    def join(self, processor: Any, prepared: "Sequence[Prepared]") -> Any:
        """Model inputs, a BatchFeature with a row a conversation: input_ids and attention_mask
        int64 [B, T], padded on the left, and the pictures as the model takes them.

        Raises FailureError where the tokenizer cannot pad.
        """

    def build_inputs(self, processor: Any, images: Sequence[Any], prompt: str) -> Any:
        """Model inputs of one row for a user's turn: the images, then the prompt.

        Raises RequestError where the prompt contains a token that stands for a picture.
        """

    def build_chat_inputs(
        self, processor: Any, messages: "Sequence[Message]", *, allow_network: bool = False
    ) -> Any:
        """Model inputs of one row for the answer to a conversation, in the form of
        `causalmm.inputs.messages`; pictures at http(s) addresses are fetched only with
        `allow_network`. Raises as `prepare` does."""


def load_reference(reference: str) -> Any:
    """What "module:attribute" names. Raises ImportError or AttributeError where it is missing."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def lazy_exports(package: str, *references: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are those of references.

    They are imported on first use: torch and transformers take seconds.
    """
    homes = {reference.partition(":")[2]: reference for reference in references}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load_reference(homes[name])

    return get
