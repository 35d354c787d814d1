"""Which class builds a tower of the patched Qwen3-VL: always one of its own modeling file."""

from typing import Any


class OwnTowers:
    """Stands where upstream builds its towers with `AutoModel`, which knows upstream's classes."""

    def __init__(self, *models: type) -> None:
        self.models = models

    def from_config(self, config: Any, **kwargs: Any) -> Any:
        """The tower of a configuration, of the class that is made for it."""
        [model] = [each for each in self.models if isinstance(config, each.config_class)]
        return model._from_config(config, **kwargs)
