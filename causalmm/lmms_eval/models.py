"""The families under CausalMM as chat models of lmms-eval: a class a family, by its model name.

A greedy answer is the one that the `generate` command gives for the same conversation, whatever the
batch, its order and the number of processes. What is drawn depends on the seed, and on what it is
decoded together with. Tests: tests/lmms/test_lmms_eval.py.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm
from transformers import StoppingCriteriaList

from causalmm.cli.seeds import seed_of
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.terminal import complain, tell
from causalmm.errors import RequestError
from causalmm.families.registry import find
from causalmm.lmms_eval.arguments import (
    find_request,
    model_names,
    own_device,
    read_arguments,
)
from causalmm.lmms_eval.conversations import Conversation, open_conversation, portions
from causalmm.lmms_eval.decoding import Decoding, cut, read_decoding
from causalmm.lmms_eval.stopping import StopStrings


class CausalMM(lmms):
    """A model of one family. Keywords as in `arguments.NAMES`."""

    is_simple = False
    family: ClassVar[str]

    def __init__(self, **arguments: Any) -> None:
        """Load the model. Raises RequestError or FailureError as the `generate` command does."""
        super().__init__()
        args = read_arguments(arguments)
        request = find_request(args, self.family)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
            args.device = own_device(
                args.device, self.accelerator.local_process_index, torch.cuda.is_available()
            )
        self.batch_size: int = args.batch_size
        with memory_guard("dtype=bfloat16 or another device"):
            self.session: Session | None = Session.start(args, request)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "CausalMM":
        """Of --model_args, and of flags of lmms-eval's own where --model_args do not say."""
        try:
            given = simple_parse_args_string(arg_string)
        except ValueError as error:
            raise RequestError(
                f"model arguments {arg_string!r}: expected name=value, separated by commas; "
                "several layers or heads stand in brackets"
            ) from error
        return cls(**{**(additional_config or {}), **given})

    @property
    def device(self) -> torch.device:
        """Where the processes exchange numbers."""
        return self.accelerator.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests.

        One that cannot be asked (a picture that cannot be opened, too long a prompt) is empty, and
        standard error says why.
        """
        asked = [_Asked(*request.args) for request in requests]
        names = _names(asked)
        results: list[Any] = [None] * len(asked)
        begun, total = time.perf_counter(), 0
        with tqdm(total=len(asked), desc="Model Responding", disable=self.rank != 0) as progress:
            for decoding, indices in _by_decoding(asked):
                self._tell_ignored(decoding)
                conversations = (self._open(index, asked[index]) for index in indices)
                for portion, shared in portions(conversations, self.batch_size):
                    first = names[portion[0].index]
                    replies = self._answer(portion, shared, decoding, first)
                    for conversation, (text, tokens) in zip(portion, replies, strict=True):
                        each = asked[conversation.index]
                        counts = TokenCounts(output_tokens=tokens)
                        results[conversation.index] = GenerationResult(text, counts)
                        self.cache_hook.add_partial(
                            "generate_until", (each.context, each.decoding), text
                        )
                        total += tokens
                    progress.update(len(portion))
        seconds = time.perf_counter() - begun
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=total,
            avg_speed=total / seconds,
            additional_metrics={"rank": self.rank},
        )
        return results

    def clean(self) -> None:
        """Free the memory: lmms-eval calls this before a judge is loaded."""
        self.session = None
        super().clean()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered."""
        raise NotImplementedError(
            "CausalMM adjusts what a model generates, and gives no likelihood of a text: choose a "
            "task of output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(
            "CausalMM answers one round: choose a task of output_type generate_until"
        )

    def _open(self, index: int, asked: "_Asked") -> Conversation:
        document = self.task_dict[asked.task][asked.split][asked.document]
        messages = ChatMessages(messages=asked.messages(document)).to_hf_messages()
        return open_conversation(index, messages)

    def _answer(
        self, portion: Sequence[Conversation], shared: bool, decoding: Decoding, name: str
    ) -> list[tuple[str, int]]:
        """Answers, and the number of tokens of each. `name` is that of the first request."""
        session = self.session
        sampling = dict(decoding.sampling)
        if decoding.until:
            stop = StopStrings(session.processor.tokenizer, decoding.until)
            sampling["stopping_criteria"] = StoppingCriteriaList([stop])
        request = session.request._replace(
            sampling=sampling, max_new_tokens=decoding.max_new_tokens
        )
        with memory_guard("a smaller batch_size, fewer draws, dtype=bfloat16 or another device"):
            replies = session._replace(request=request).ask(
                [each.messages for each in portion],
                # By what is asked, not by when or in which process.
                seed_of(f"{request.seed} {name}"),
                shared=shared,
            )
        ends = session.model.generation_config.eos_token_id
        answers = []
        for reply in replies:
            if isinstance(reply, str):
                complain(f"{name}: {reply}; its answer is left empty")
                answers.append(("", 0))
            else:
                answers.append((cut(reply.text, decoding.until), _length(reply.tokens, ends)))
        return answers

    def _tell_ignored(self, decoding: Decoding) -> None:
        if decoding.ignored and self.rank == 0:
            tell(f"generation arguments that mean nothing here: {', '.join(decoding.ignored)}")


_CLASSES = {
    name: type(name, (CausalMM,), {"__doc__": find(family).title, "family": family})
    for family, name in model_names().items()
}


def __getattr__(name: str) -> type[CausalMM]:
    # lmms-eval takes a class from its module by name.
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _CLASSES[name]


class _Asked(NamedTuple):
    """The arguments of a request to a chat model, in lmms-eval's order."""

    context: str
    messages: Callable[[Any], Any]
    """Of a document."""
    decoding: Mapping[str, Any]
    document: Any
    """Its number."""
    task: str
    split: str


def _by_decoding(asked: Sequence[_Asked]) -> list[tuple[Decoding, list[int]]]:
    """Which requests are decoded alike."""
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(asked):
        groups.setdefault(repr(sorted(each.decoding.items())), []).append(index)
    return [(read_decoding(asked[indices[0]].decoding), indices) for indices in groups.values()]


def _names(asked: Sequence[_Asked]) -> list[str]:
    """A name of each request, the same in every run; a repeated one is numbered."""
    seen: Counter[str] = Counter()
    names = []
    for each in asked:
        name = f"{each.task}, {each.split}, document {each.document}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}, time {seen[name]}")
    return names


def _length(tokens: Sequence[int], ends: int | Sequence[int] | None) -> int:
    """Tokens up to and with the one that ends the answer; what follows fills up the batch."""
    ends = ends if isinstance(ends, list | tuple) else [ends]
    return next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
