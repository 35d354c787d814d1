"""`generate(..., causalmm=...)` and `forward(..., causalmm=...)` for a patched model class.

Transformers' own `generate` does everything; this only turns a configuration into a plan, keeps the
plan beside the other model keywords and refuses what a plan cannot follow.
Held by tests/test_generation.py.
"""

from typing import Any

from transformers.generation.configuration_utils import GenerationMode

from causalmm.config import CausalMMConfig
from causalmm.plan import BranchPlan, Towers, build_plan
from causalmm.trace import BranchTrace

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_ATTENTION = ("eager", "sdpa")


class CounterfactualGeneration:
    """Mixin in front of a patched `ForConditionalGeneration` class."""

    def causalmm_towers(self) -> Towers:
        """Layer counts of this model. Raises ValueError where a tower is not a patched one."""
        raise NotImplementedError

    def causalmm_plan(
        self, causalmm: CausalMMConfig | BranchPlan | None, trace: BranchTrace | None = None
    ) -> BranchPlan | None:
        """The branch plan of a configuration on this model; None where it would change nothing.

        Raises ValueError for layers or a site the model does not have, TypeError for anything that
        is no configuration.
        """
        if causalmm is None or isinstance(causalmm, BranchPlan):
            return causalmm
        if not isinstance(causalmm, CausalMMConfig):
            raise TypeError(f"causalmm: expected a CausalMMConfig, got {type(causalmm).__name__}")
        plan = build_plan(causalmm, self.causalmm_towers(), trace)
        if plan is not None:
            self._check_attention()
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

    def _prepare_multimodal_encoder_kwargs_for_generation(
        self, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        # Upstream removes every keyword the image encoder took; the decoder needs the plan too.
        plan = model_kwargs.get("causalmm")
        model_kwargs = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        if plan is not None:
            model_kwargs["causalmm"] = plan
        return model_kwargs

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        if model_kwargs.get("causalmm") is not None:
            if generation_mode not in _MODES:
                raise ValueError(
                    f"causalmm does not support {generation_mode.value}: "
                    "expected greedy search or sampling (num_beams=1, no assistant model)"
                )
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"causalmm does not support cache_implementation="
                    f"{generation_config.cache_implementation!r}: expected 'dynamic'"
                )
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _check_attention(self) -> None:
        for name in ("text_config", "vision_config"):
            chosen = getattr(self.config, name)._attn_implementation
            if chosen not in _ATTENTION:
                raise ValueError(
                    f"causalmm does not support attn_implementation={chosen!r} ({name}): "
                    f"expected one of {', '.join(_ATTENTION)}"
                )


def patched(module: Any, expected: type) -> None:
    """Raise ValueError unless `module` is an instance of the patched class `expected`."""
    if not isinstance(module, expected):
        raise ValueError(
            f"causalmm needs {expected.__name__}, this checkpoint has {type(module).__name__}: "
            "CausalMM is available for LLaVA-1.5 (CLIP + Llama) and Qwen2-VL"
        )
