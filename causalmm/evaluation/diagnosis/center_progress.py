"""The sums of `diagnose --center` as they grow, and the file that keeps them over a kill.

Loads torch. Tests: tests/evaluation/test_diagnose_center.py.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from tqdm import tqdm

from causalmm.cli.session import Session
from causalmm.decoding.center import read_metadata
from causalmm.decoding.trace import BranchTrace
from causalmm.errors import RequestError
from causalmm.evaluation.diagnosis.lean import Contrasts
from causalmm.evaluation.probabilities import deciding_step, every_choice_token
from causalmm.evaluation.records import Question
from causalmm.evaluation.runner import ask_unit, units
from causalmm.inputs.json_lines import difference, read_bytes, write_whole

SAVED_EVERY = 64
"""Questions between two writings of the sums."""


class Progress:
    """What has been asked and added up, and the file that keeps it."""

    def __init__(self, path: Path, settings: Mapping[str, Any], contrasts: Contrasts) -> None:
        self.path, self.settings, self.contrasts = path, settings, contrasts
        self.done: dict[str, None] = {}
        """Ids of the questions that were asked, in this order."""
        self.failed: dict[str, str] = {}
        """Of these, what could not be asked, and why."""

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any]) -> "Progress":
        """What an earlier call has left, or nothing.

        Raises RequestError where that call had other settings.
        """
        progress = cls(path, settings, Contrasts())
        if not path.exists():
            return progress
        data = read_bytes(path)
        try:
            state, tensors = read_metadata(data, "state"), load(data)
        except (ValueError, KeyError, TypeError, SafetensorError):
            raise RequestError(f"{path} is none of this command's files: remove it") from None
        if (what := difference(state["settings"], settings)) is not None:
            raise RequestError(
                f"{path} was begun with other settings ({what}): remove it or give another file"
            )
        progress.contrasts = Contrasts(tensors)
        progress.done, progress.failed = dict.fromkeys(state["done"]), state["failed"]
        return progress

    def write(self) -> None:
        """Put it all into the file, which is at every moment the old one or the new one."""
        state = {
            "settings": self.settings,
            "done": list(self.done),
            "failed": self.failed,
        }
        write_whole(self.path, save(self.contrasts.state, metadata={"state": json.dumps(state)}))

    def ask(self, session: Session, questions: Sequence[Question], batch_size: int) -> None:
        """Ask those that are not done. Raises RequestError where the tokenizer lacks a choice."""
        words = every_choice_token(session.processor.tokenizer, questions)
        # Units are done whole or not at all, and depend on all questions alone.
        left = [unit for unit in units(questions, batch_size) if unit[0].id not in self.done]
        saved = len(self.done)
        with tqdm(total=len(questions), initial=saved, unit="question", file=sys.stderr) as bar:
            try:
                for unit in left:
                    self._ask_unit(session, unit, words)
                    bar.update(len(unit))
                    if len(self.done) - saved >= SAVED_EVERY:
                        self.write()
                        saved = len(self.done)
            finally:
                if len(self.done) > saved:
                    self.write()

    def _ask_unit(
        self, session: Session, unit: Sequence[Question], words: Mapping[str, Sequence[int]]
    ) -> None:
        trace = BranchTrace()
        replies = list(ask_unit(session, unit, trace))
        ends = session.model.generation_config.eos_token_id
        for question, reply, row in replies:
            if row is None:
                self.failed[question.id] = reply
                continue
            if question.choices is None:
                steps = range(answer_length(reply.tokens, ends))
                choices = None
            else:
                tokenizer = session.processor.tokenizer
                steps = [deciding_step(tokenizer, reply.tokens, question.choices)]
                choices = [words[word] for word in question.choices]
            for number in steps:
                step = trace.steps[number]._asdict()
                factual = step.pop("factual")[row].cpu()
                del step["adjusted"]
                branches = {
                    name: part[row].cpu() for name, part in step.items() if part is not None
                }
                self.contrasts.add(factual, branches, choices)
        self.done |= dict.fromkeys(question.id for question in unit)


def answer_length(tokens: Sequence[int], ends: int | Sequence[int] | None) -> int:
    """How many of the generated tokens an answer is, its end included."""
    ends = [ends] if isinstance(ends, int) else ends or []
    return next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
