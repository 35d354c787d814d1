"""A checkpoint's model_type against that of the class it is loaded into.

Transformers warns where they differ and goes on, with random weights for what the checkpoint lacks.
Tests: tests/families/test_upstream_contracts.py.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

HUB_OPTIONS = (
    *("cache_dir", "force_download", "local_files_only"),
    *("proxies", "token", "revision", "subfolder"),
)
"""Keywords of `from_pretrained` that say how a file of a hub id is found."""


def check_model_type(model_class: Any, source: Any, config: Any, hub: Mapping[str, Any]) -> None:
    """Raise ValueError where the configuration of a checkpoint is another model's.

    `source` is a folder or hub id; `config`, if given, a configuration or where to read it. Of the
    keywords `hub` only `HUB_OPTIONS` are used. What cannot be read is left to transformers.
    """
    if isinstance(config, PreTrainedConfig):
        kind = config.model_type
    else:
        options = {name: hub[name] for name in HUB_OPTIONS if name in hub}
        try:
            settings, _ = PreTrainedConfig.get_config_dict(config or source, **options)
        except OSError:
            return
        kind = settings.get("model_type")
    expected = model_class.config_class.model_type
    if kind not in (None, expected):
        raise ValueError(
            f"{source or 'config'} has model_type {kind!r}: expected {expected!r} for "
            f"{model_class.__name__}"
        )
