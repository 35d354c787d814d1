"""Which class builds a tower of the patched LLaVA-NeXT: LLaVA's patched ones, and Mistral."""

from llava_causalmm import towers
from llava_causalmm.towers import check_features
from llavanext_causalmm.modeling_mistral import MistralModel

__all__ = ["PatchedAutoModel", "check_features"]


class PatchedAutoModel(towers.PatchedAutoModel):
    """Stands where upstream builds its towers with `AutoModel`."""

    patched = towers.PatchedAutoModel.patched | {"mistral": MistralModel}
