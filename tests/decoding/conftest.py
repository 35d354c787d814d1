"""A tiny model of every family, and two prompts of different lengths.

A module that needs another model has a fixture of the same name.
"""

import pytest
from family_rows import DECODERS
from tiny_models import model_pair, pad_together, sample


@pytest.fixture(scope="module", params=DECODERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return model_pair(family, "sdpa")[0]


@pytest.fixture
def inputs(family):
    return pad_together([sample(family, seed=1, before=4), sample(family, seed=2)])
