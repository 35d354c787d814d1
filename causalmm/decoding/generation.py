"""`generate(..., causalmm=...)` and `forward(..., causalmm=...)` for a patched model class.

Transformers' own `generate` does everything; this only turns a configuration into a plan, keeps the
plan beside the other model keywords and refuses what a plan cannot follow.
Tests: tests/decoding/test_generation.py.
"""

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode

from causalmm.config import ATTENTION, CausalMMConfig
from causalmm.decoding.call_checks import check_cache, check_static
from causalmm.decoding.center import read_center
from causalmm.decoding.model_type import check_model_type
from causalmm.decoding.plan import BranchPlan, Towers, build_plan
from causalmm.decoding.trace import BranchTrace
from causalmm.errors import FailureError

_GENERATION_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
_CACHES = (None, "dynamic", "static", "offloaded", "offloaded_static")


class CounterfactualGeneration:
    """Mixin in front of a patched `ForConditionalGeneration` class."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' `from_pretrained`. Raises ValueError for a checkpoint of another model."""
        check_model_type(cls, pretrained_model_name_or_path, config, kwargs)
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, **kwargs
        )

    def causalmm_towers(self) -> Towers:
        """Layer counts of this model. Raises ValueError where a tower is not a patched one."""
        raise NotImplementedError

    def causalmm_patch_order(self, grid_thw: Tensor) -> Tensor:
        """Of packed pictures with these grids [N, 3]: the number of the patch that lies first,
        second and so on in the vision encoder, int64 [P]. A picture's or frame's stay together."""
        return torch.arange(int(grid_thw.prod(dim=-1).sum()))

    def causalmm_plan(
        self, causalmm: CausalMMConfig | BranchPlan | None, trace: BranchTrace | None = None
    ) -> BranchPlan | None:
        """The branch plan of a configuration on this model; None where it would change nothing.

        A trace makes a plan of no configuration too, one that only looks on. Raises ValueError for
        layers or a site the model does not have or a center of other branches, TypeError for
        anything that is no configuration.
        """
        if causalmm is None and trace is not None:
            causalmm = CausalMMConfig(gamma=0.0, epsilon=0.0)
        if causalmm is None or isinstance(causalmm, BranchPlan):
            return causalmm
        if not isinstance(causalmm, CausalMMConfig):
            raise TypeError(f"causalmm: expected a CausalMMConfig, got {type(causalmm).__name__}")
        plan = build_plan(causalmm, self.causalmm_towers(), trace)
        if plan is not None:
            self._check_model()
            if causalmm.center is not None and plan.branches > 1:
                vocabulary = self.config.get_text_config().vocab_size
                means = read_center(causalmm, plan, vocabulary)
                if self.device.type != "meta":
                    means = {name: mean.to(self.device) for name, mean in means.items()}
                plan = replace(plan, center=means)
        return plan

    def generate(
        self,
        *args: Any,
        causalmm: CausalMMConfig | BranchPlan | None = None,
        causalmm_trace: BranchTrace | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' `generate` with every step adjusted under `causalmm`; None: unchanged.

        `causalmm_trace` collects what each branch said, one entry a step.
        """
        plan = self.causalmm_plan(causalmm, causalmm_trace)
        if plan is not None:
            kwargs["causalmm"] = plan
        return super().generate(*args, **kwargs)

    def generate_batch(
        self, *args: Any, causalmm: Any = None, causalmm_trace: Any = None, **kwargs: Any
    ) -> Any:
        """Transformers' continuous batching, without branches: ValueError where any are asked for.

        `generate(cache_implementation="paged")` comes here too.
        """
        if causalmm is not None or causalmm_trace is not None:
            _refuse("continuous batching (generate_batch, cache_implementation='paged')")
        return super().generate_batch(*args, **kwargs)

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' loading of a generation loop from a repository, which is not run with
        branches: ValueError where any are asked for."""
        if kwargs.get("causalmm") is not None:
            _refuse("generation loops from a repository (custom_generate)")
        return super().load_custom_generate(*args, **kwargs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        # The last place before pictures are encoded, which is work.
        plan = model_kwargs.get("causalmm")
        if plan is not None:
            _check_mode(generation_config.get_generation_mode())
            _check_settings(plan, generation_config)
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        check_cache(model_kwargs.get("past_key_values"), plan, copies * inputs_tensor.shape[0])
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )

    def _prepare_multimodal_encoder_kwargs_for_generation(
        self, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        # Upstream removes every keyword the image encoder took; the decoder needs the plan too.
        plan = model_kwargs.get("causalmm")
        model_kwargs = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        if plan is not None:
            model_kwargs["causalmm"] = plan
        return model_kwargs

    def _prefill(
        self, input_ids: Tensor, generation_config: GenerationConfig,
        model_kwargs: dict[str, Any], *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        # Every call of it is part of the prompt, those with one token too: a prompt that goes on
        # with a cache may have no more, nor may the last of its chunks.
        plan = model_kwargs.get("causalmm")
        if plan is None:
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        model_kwargs["causalmm"] = replace(plan, prefill=True)
        try:
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        finally:
            model_kwargs["causalmm"] = plan

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *args: Any,
    ) -> Any:
        if model_kwargs.get("causalmm") is not None:
            _check_mode(generation_mode)  # which an assistant model decides too
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, *args
        )

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        if (kwargs.get("model_kwargs") or {}).get("causalmm") is not None:
            processors.insert(0, FiniteLogits())
        return processors

    def _check_model(self) -> None:
        """Raise ValueError for settings of the model under which branches cannot be decoded."""
        for name in ("text_config", "vision_config"):
            chosen = getattr(self.config, name)._attn_implementation
            if chosen not in ATTENTION:
                allowed = ", ".join(ATTENTION)
                _refuse(f"attn_implementation={chosen!r} ({name}): expected one of {allowed}")
        if not getattr(self.config.get_text_config(), "is_causal", True):
            _refuse("is_causal=False: expected a causal decoder")
        if (self.tp_size or 1) > 1:
            # Random weights are numbered by head, and a shard does not know which heads it has.
            _refuse(f"tensor parallelism (tp_size={self.tp_size}); device_map spreads whole layers")


class FiniteLogits(LogitsProcessor):
    """Stops where a step's adjusted logits are not finite: nothing can be chosen from them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float [B, vocab], unchanged. Raises FailureError for NaN or infinite ones."""
        if not bool(scores.isfinite().all()):
            raise FailureError(
                f"the adjusted logits of the token after {input_ids.shape[1]} are not finite: "
                "expected a smaller gamma, or a dtype with a larger range (bfloat16, float32)"
            )
        return scores


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"causalmm does not support {what}")


def _check_mode(mode: GenerationMode) -> None:
    """Raise ValueError for ways to generate that a plan cannot follow."""
    if mode not in _GENERATION_MODES:
        allowed = ", ".join(known.value for known in _GENERATION_MODES)
        _refuse(f"{mode.value}, which runs the model in ways of its own: expected {allowed}")


def _check_settings(plan: BranchPlan, settings: GenerationConfig) -> None:
    """Raise ValueError for settings of `generate` that a plan cannot follow."""
    if settings.guidance_scale not in (None, 1):
        _refuse(
            f"guidance_scale={settings.guidance_scale}, whose unconditional logits come from the "
            "plain model: expected None or 1"
        )
    if not settings.use_cache:
        _check_without_cache(plan)
    cache = settings.cache_implementation
    if cache not in _CACHES:
        allowed = ", ".join(name for name in _CACHES if name)
        _refuse(f"cache_implementation={cache!r}: expected one of {allowed}")
    if cache in ("static", "offloaded_static"):
        check_static(plan)


def _check_without_cache(plan: BranchPlan) -> None:
    """Raise ValueError for what is kept with the keys of a prompt."""
    if plan.strength.forgetting is not None:
        _refuse(
            "schedule='growing' with use_cache=False, where every step looks like the first: "
            "expected use_cache=True"
        )
    if plan.language and plan.language.image_heads:
        _refuse(
            f"use_cache=False with language_heads={plan.language.heads!r}, which are found in the "
            "prompt and kept with its keys: expected use_cache=True"
        )


def patched(module: Any, *expected: type) -> None:
    """Raise ValueError unless `module` is an instance of one of the patched classes `expected`."""
    if not isinstance(module, expected):
        needed = " or ".join(each.__name__ for each in expected)
        raise ValueError(
            f"this checkpoint has a part of type {type(module).__name__}: expected the patched "
            f"{needed}"
        )
