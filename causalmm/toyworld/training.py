"""Training a demonstration model: a fixed number of steps, saved often, resumed after a kill.

The model learns to answer, and an auxiliary head, thrown away afterwards, to name what each cell of
the image shows; without it tiny vision towers take far longer to see. Held by
tests/toyworld/test_train_demo.py.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from causalmm.toyworld.building import WIDTH, build
from causalmm.toyworld.lessons import IGNORED, Lessons, block_mask, round_up
from causalmm.toyworld.quick_attention import PACKED_ROWS, register
from causalmm.toyworld.quick_vision import quicken
from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.settings import TrainingSettings
from causalmm.toyworld.vocabulary import CLASSES, COLOURS

_LOG_EVERY, _SAVE_EVERY = 50, 200


class CellHead(nn.Module):
    """Names the class and colour of each image token's cell from its vision features."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Linear(WIDTH, len(CLASSES) + 1)
        self.colours = nn.Linear(WIDTH, len(COLOURS) + 1)

    def forward(self, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        losses = []
        for name, head in (("names", self.names), ("colours", self.colours)):
            logits = head(features).float().flatten(0, -2)
            # Most cells are empty.
            weight = torch.ones(logits.shape[-1])
            weight[0] = 0.15
            losses.append(cross_entropy(logits, batch[name].flatten(), weight))
        return sum(losses)


class Trainer:
    """One training run, with all its state in one file under `folder` (None: not saved)."""

    def __init__(
        self, settings: TrainingSettings, folder: Path | None, *, compiled: bool = False
    ) -> None:
        """`compiled`: layers go through torch.compile, which wants a C++ compiler."""
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.recipe = RECIPES[settings.family]
        self.state_file = None if folder is None else folder / "state.pt"
        self.model, self.processor = build(settings.family)
        register()
        # On a CPU, the small maps of the vision tower are quicker made whole.
        self.model.set_attn_implementation({"text_config": PACKED_ROWS, "vision_config": "eager"})
        if self.recipe.multi_axis:
            quicken(self.model.model.visual)
        if compiled:
            for layer in self._layers():
                layer.compile(dynamic=True)
        self.head = CellHead()
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.features: Tensor | None = None
        self._watch_features()

    def run(self, *, workers: int = 1) -> None:
        """Train for `settings.total_steps`, from the saved state if there is one.

        Raises ValueError where that state belongs to other settings.
        """
        self.restore()
        self.model.train()
        started = time.perf_counter()
        bar = tqdm(total=self.settings.total_steps, initial=self.step, desc=self.settings.family)
        for batch in self._batches(workers):
            record = self.learn(batch)
            now = time.perf_counter()
            self.seconds, started = self.seconds + now - started, now
            self.step += 1
            bar.update()
            if self.step % _LOG_EVERY == 0:
                self.curve.append({"step": self.step, **record})
                bar.set_postfix({name: f"{value:.3f}" for name, value in record.items()})
            if self.step % _SAVE_EVERY == 0 or self.step == self.settings.total_steps:
                self.save()
        bar.close()

    def learn(self, batch: dict[str, Any]) -> dict[str, float]:
        """One optimiser step; what it cost."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        if "input_ids" not in batch:
            return self._learn_cells(batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = self._answers(self.hidden_states(batch), batch)
            seen = self.head(self.features, batch)
            cost = loss + self.settings.auxiliary * seen
            record = {"loss": loss.item(), "cells": seen.item(), "right": right}
            if "text" in batch:
                text = batch["text"]
                loss, record["text_right"] = self._answers(self.text_states(text), text)
                cost = cost + self.settings.text_weight * loss
        self._descend(cost)
        return record

    def _answers(self, hidden: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The loss of the taught tokens, and the share of them that is the most probable one."""
        taught = rows["labels"][:, 1:] != IGNORED
        labels, weights = (rows[name][:, 1:][taught] for name in ("labels", "weights"))
        logits = self.model.lm_head(hidden[:, :-1][taught]).float()
        right = (logits.argmax(-1) == labels).float().mean()
        losses = cross_entropy(logits, labels, reduction="none")
        return (losses * weights).sum() / weights.sum(), right.item()

    def _learn_cells(self, batch: dict[str, Tensor]) -> dict[str, float]:
        inputs = {key: batch[key] for key in ("pixel_values", "image_grid_thw") if key in batch}
        with torch.autocast("cpu", torch.bfloat16):
            self.model.model.get_image_features(**inputs)
            seen = self.head(self.features, batch)
        self._descend(seen)
        return {"cells": seen.item()}

    def _descend(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self) -> None:
        if self.state_file is None:
            return
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        torch.save(
            {
                "settings": asdict(self.settings),
                "step": self.step,
                "seconds": self.seconds,
                "curve": self.curve,
                "model": self.model.state_dict(),
                "head": self.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            partial,
        )
        partial.replace(self.state_file)

    def restore(self) -> None:
        if self.state_file is None or not self.state_file.exists():
            return
        state = torch.load(self.state_file, weights_only=True)
        wanted = asdict(self.settings)
        if state["settings"] != wanted:
            differing = sorted(
                name for name in wanted if state["settings"].get(name) != wanted[name]
            )
            raise ValueError(
                f"{self.state_file} holds a run with other {', '.join(differing)}: "
                "delete it or repeat its settings"
            )
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        """Write the trained model and its processor in the ordinary folder format, bfloat16."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.model.float().load_state_dict(weights)

    def _batches(self, workers: int) -> Iterator[dict[str, Any]]:
        lessons = Lessons(self.settings, self.processor)
        remaining = range(self.step, self.settings.total_steps)
        loader = DataLoader(
            Subset(lessons, remaining),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_step_back,
        )
        return iter(loader)

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states [B, T, width] of packed rows."""
        prefix = int((batch["segment"][0] == 0).sum())
        seen = _seen(batch, prefix)
        inputs: dict[str, Any] = {"pixel_values": batch["pixel_values"]}
        if self.recipe.multi_axis:
            inputs["image_grid_thw"] = batch["image_grid_thw"]
            start, position = self._rope_positions(batch, prefix)
        else:
            start = torch.arange(prefix).expand(len(batch["segment"]), -1)
            position = batch["position"] + prefix
        position[..., :prefix] = start
        return self.model.model(
            input_ids=batch["input_ids"],
            position_ids=position,
            use_cache=False,
            **inputs,
            **seen,
        ).last_hidden_state

    def text_states(self, text: dict[str, Tensor]) -> Tensor:
        """Last hidden states [B, T, width] of rows without an image."""
        position = text["position"]
        if self.recipe.multi_axis:
            position = position.expand(3, -1, -1)
        return self.model.model(
            input_ids=text["input_ids"],
            position_ids=position,
            use_cache=False,
            **_seen(text, 0),
        ).last_hidden_state

    def _layers(self) -> list[nn.Module]:
        model = self.model.model
        vision = model.get_submodule(self.recipe.vision_layers)
        return [*model.language_model.layers, *vision]

    def _rope_positions(self, batch: dict[str, Tensor], prefix: int) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"][:, :prefix]
        kinds = (ids == self.model.config.image_token_id).int()
        start, _ = self.model.model.get_rope_index(ids, kinds, batch["image_grid_thw"])
        after = start.amax(dim=(0, 2)) + 1
        return start, (batch["position"] + after[:, None]).expand(3, -1, -1).clone()

    def _rate(self) -> float:
        # The first two stages warm up; the rate falls in the second, and again in the third.
        asking = self.step - self.settings.cell_steps
        if asking >= self.settings.steps:
            late = asking - self.settings.steps
            return self.settings.late_rate * (1 - late / self.settings.late_steps)
        warm = min(1.0, ((asking if asking >= 0 else self.step) + 1) / self.settings.warmup)
        done = max(0, asking) / self.settings.steps
        return self.settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6

    def _watch_features(self) -> None:
        def keep(_module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.features = inputs[0] if self.recipe.cells_before_projector else output

        self.model.model.get_submodule(self.recipe.projector).register_forward_hook(keep)


def _seen(rows: dict[str, Tensor], prefix: int) -> dict[str, Any]:
    """What `packed_rows` wants to know of which token sees which."""
    unseen = torch.zeros(()).masked_fill(~block_mask(rows["segment"]), -torch.inf)
    reach = round_up(int(rows["position"].max()) + 1)
    return {"attention_mask": unseen.bfloat16(), "prefix": prefix, "reach": reach}


def _step_back(_worker: int) -> None:
    # A thread of the training that waits for its core holds all the others.
    if hasattr(os, "nice"):
        os.nice(10)
