"""Plain answers and texts read by a branch, one forward a batch: what fluency.py is made of.

B rows, T tokens of the longest prompt, A of the longest answer. Tests:
tests/evaluation/test_fluency.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from causalmm.cli.session import Session
from causalmm.config import CausalMMConfig
from causalmm.decoding.trace import BranchTrace, StepLogits
from causalmm.errors import RequestError
from causalmm.evaluation.diagnosis.fluency import ANSWER_TOKENS, PROMPT, Fluency
from causalmm.heads import image_heads
from causalmm.inputs.messages import limit_sizes, one_turn, open_messages
from causalmm.inputs.prompts import to_model

_LOOKING_ON = CausalMMConfig(
    mode="language", language_method="uniform", language_scope="image", language_layers="all"
)
"""What the plain model is read beside: branches whose edited layers are all layers."""


class Readings(NamedTuple):
    """Rows to be read: inputs of the model, and which tokens at their end count."""

    inputs: dict[str, Tensor]
    """input_ids and attention_mask int64 [B, L], and the pictures if there are any."""
    counted: Tensor
    """Bool [B, C]: of the last C tokens, those whose probability counts."""


class BranchReading(BranchTrace):
    """Keeps of one forward how improbable a view finds the tokens that count, in nats, and where
    its text queries look."""

    every_position = True
    watches_images = True

    def __init__(self, view: str, readings: Readings) -> None:
        super().__init__()
        self.view, self.readings = view, readings
        self.nats = 0.0
        self.mass: dict[int, tuple[float, float, int]] = {}
        """By layer: sums of the factual and of the edited rows, and of how many."""

    def record(self, step: StepLogits) -> None:
        counted = self.readings.counted
        logits = getattr(step, self.view)
        tokens = self.readings.inputs["input_ids"][:, -counted.shape[1] :].to(logits.device)
        logs = logits[:, :-1].log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        # No product: 0 times infinity is NaN.
        self.nats = -float(logs.masked_fill(~counted.to(logs.device), 0.0).sum(dtype=torch.float64))

    def record_image_mass(self, layer: int, factual: Tensor, branch: Tensor) -> None:
        real = self.readings.inputs["attention_mask"].to(factual.device, torch.bool)
        looking = (factual > 0) & real[:, None]
        branch = branch.float().unflatten(0, (-1, len(factual))).mean(dim=0)
        sums = (float(each.float()[looking].sum()) for each in (factual, branch))
        self.mass[layer] = (*sums, int(looking.sum()))


class FluencyProbe(NamedTuple):
    """What every branch is given to read."""

    answers: list[Readings]
    texts: list[Readings]

    @classmethod
    def of(
        cls, session: Session, paths: Sequence[str], texts: Sequence[str], batch_size: int
    ) -> "FluencyProbe":
        """The plain model's answers about the pictures, and the texts.

        A picture that cannot be asked about is left out: its questions say why.
        """
        request = session.request._replace(
            config=None, sampling={"do_sample": False}, max_new_tokens=ANSWER_TOKENS
        )
        session = session._replace(request=request)
        answers = [_answers(session, part) for part in _portions(paths, batch_size)]
        return cls(
            answers=[each for each in answers if each is not None],
            texts=[_texts(session, part) for part in _portions(texts, batch_size)],
        )

    @torch.no_grad()
    def read(self, session: Session, config: CausalMMConfig | None) -> Fluency:
        """What the branch of a configuration makes of them; None: the plain model."""
        view = "factual" if config is None else config.mode
        # What edits nothing without a picture is the plain model there.
        alone = config if config is not None and edits_text(config) else None
        own = view if alone is not None else "factual"
        answers = [read_branch(session, each, config or _LOOKING_ON, view) for each in self.answers]
        texts = [read_branch(session, each, alone, own) for each in self.texts]
        factual, branch = [], []
        for layer in sorted({layer for each in answers for layer in each.mass}):
            sums = [sum(part) for part in zip(*(each.mass[layer] for each in answers), strict=True)]
            factual.append(sums[0] / sums[2])
            branch.append(sums[1] / sums[2])
        return Fluency(
            answer_nats=sum(each.nats for each in answers),
            answer_tokens=sum(int(each.counted.sum()) for each in self.answers),
            text_nats=sum(each.nats for each in texts),
            text_tokens=sum(int(each.counted.sum()) for each in self.texts),
            image_mass=tuple(factual),
            branch_image_mass=() if view == "factual" else tuple(branch),
        )


def _portions(values: Sequence[str], size: int) -> list[Sequence[str]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def edits_text(config: CausalMMConfig) -> bool:
    """Whether a branch of one tower differs from the factual one without any picture."""
    by_image = config.language_scope == "image" or image_heads(config.language_heads)
    return config.mode == "language" and not by_image


def read_branch(
    session: Session, readings: Readings, config: CausalMMConfig | None, view: str
) -> BranchReading:
    """One forward, seen by a view: "factual", or the tower of the configuration's branch."""
    model = session.model
    trace = BranchReading(view, readings)
    plan = model.causalmm_plan(config, trace)
    kept = readings.counted.shape[1] + 1
    inputs = to_model(readings.inputs, model)
    model(**inputs, causalmm=plan, logits_to_keep=kept, use_cache=False)
    return trace


def _answers(session: Session, paths: Sequence[str]) -> Readings | None:
    conversations = []
    for path in paths:
        try:
            turn = limit_sizes(open_messages(one_turn([path], PROMPT)), session.request.limits)
        except RequestError:
            continue
        conversations.append(turn)
    replies = session.ask(conversations, session.request.seed, shared=False)
    asked = [
        (session.prompt.prepare(session.processor, conversation), reply.tokens)
        for conversation, reply in zip(conversations, replies, strict=True)
        if not isinstance(reply, str)
    ]
    if not asked:
        return None
    inputs = session.prompt.join(session.processor, [prompt for prompt, _ in asked])
    answers = [torch.tensor(_ended(session, tokens)) for _, tokens in asked]
    counted = pad_sequence([torch.ones_like(each) for each in answers], batch_first=True)
    added = {"input_ids": pad_sequence(answers, batch_first=True), "attention_mask": counted}
    shape = inputs["input_ids"].shape
    longer = {
        # Others of this shape say which tokens stand for pictures: an answer's do not.
        name: torch.cat([part, added.get(name, torch.zeros_like(counted))], dim=1)
        for name, part in inputs.items()
        if part.shape == shape
    }
    return Readings({**inputs, **longer}, counted.bool())


def _ended(session: Session, tokens: Sequence[int]) -> list[int]:
    """An answer with the token that ends it, without what follows; a token that stands for a
    picture, which would want one, ends it before."""
    processor, ends = session.processor, session.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    names = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video")]
    pictures = {processor.tokenizer.convert_tokens_to_ids(name) for name in names if name}
    kept = []
    for token in tokens:
        if token in pictures:
            break
        kept.append(token)
        if token in ends:
            break
    return kept


def _texts(session: Session, texts: Sequence[str]) -> Readings:
    """Bare texts as the tokenizer makes tokens of them; the first token of each has nothing before
    it and does not count."""
    rows = [torch.tensor(session.processor.tokenizer(text).input_ids) for text in texts]
    ids = pad_sequence(rows, batch_first=True)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return Readings({"input_ids": ids, "attention_mask": real}, real[:, 1:].bool())
