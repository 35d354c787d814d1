"""A demonstration model's own configuration is the first by `diagnose` on development scenes."""

import json

import pytest
from family_rows import fast_first
from tiny_evaluation import save_yes_no_checkpoint

from causalmm import CausalMMConfig
from causalmm.errors import FailureError
from causalmm.toyworld import choosing
from causalmm.toyworld.recipes import RECIPES

FEW = ("--methods", "uniform", "blind", "--windows", "all,third:+3", "--fluency", "1")


@pytest.mark.parametrize("family", fast_first(1, sorted(RECIPES)))
def test_the_first_by_the_ranking_is_chosen(family, tmp_path):
    model = save_yes_no_checkpoint(family, tmp_path / "model")
    given = (model, family, tmp_path / "choice")
    chosen, record = choosing.choose(*given, images=4, more=(*FEW, "--towers", "language"))
    assert CausalMMConfig.from_dict(record["chosen"]) == chosen
    first = record["ranked"][0]
    assert chosen == CausalMMConfig(
        mode="language",
        language_method=first["method"],
        language_scope=first["scope"],
        language_heads=first["heads"],
        language_layers=first["setting"],
        gamma=choosing.BASE.gamma,
    )
    gains = [each["development"]["AUC gain"] for each in record["ranked"]]
    assert gains == sorted(gains, reverse=True)
    # Two windows of uniform under both scopes, and of blind.
    assert len(gains) == 6
    assert record["split"] == "development"
    asked = (tmp_path / "choice" / "prior" / "toy_pope_odd.json").read_text().splitlines()
    assert all(json.loads(row)["image"].startswith("toy_development_") for row in asked)
    # What is there is not made again, and other configurations are added.
    _, more = choosing.choose(*given, images=4, more=FEW)
    assert len(more["ranked"]) == 8
    assert json.loads(json.dumps(record)) == record


def test_a_diagnosis_that_fails_chooses_nothing(tmp_path):
    model = save_yes_no_checkpoint("llava", tmp_path / "model")
    with pytest.raises(FailureError, match="no configuration is chosen: diagnose failed"):
        choosing.choose(model, "llava", tmp_path / "choice", 4, ("--windows", "50:60"))
