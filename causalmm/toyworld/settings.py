"""All that a training run of a demonstration model depends on.

Held by tests/toyworld/test_train_demo.py.
"""

from dataclasses import dataclass

from causalmm.toyworld.recipes import RECIPES
from causalmm.toyworld.scenes import SceneStyle


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything a training run depends on. Checked at construction."""

    family: str
    steps: int
    """Steps with questions, after the steps with pictures only."""
    rows: int = 32
    cell_steps: int = 0
    """Steps before, which train the vision tower on the cell labels alone, and so see more."""
    cell_rows: int = 96
    learning_rate: float = 1.1e-3
    warmup: int = 150
    weight_decay: float = 0.05
    auxiliary: float = 0.5
    """Weight of the auxiliary cell labels' loss."""
    own_group: float = 0.25
    """Share of the absent objects asked about that would fit the scene."""
    late_steps: int = 0
    """Steps after all others, at a low rate, with `late_own_group` in the place of `own_group`: so
    that the prior for what fits a scene shows in a model that sees well."""
    late_own_group: float = 0.0
    late_rate: float = 2e-4
    existence_pairs: int = 2
    """Questions for something present, and as many for something absent, about each image."""
    text_rows: int = 0
    """Statements about common sense and about a context, beside each step with questions, without
    an image: they are learnt sooner so. Where there are any, fewer are asked about images."""
    text_weight: float = 0.3
    """Weight of their loss."""
    statement_weight: float = 1.0
    """Weight of answers to statements about an image, 1 being that of other answers: a word each,
    they are few among the words taught."""
    rephrased: float = 0.0
    """Share of the questions that are asked in other words than the benchmarks'."""
    coherent: float = 0.8
    canonical: float = 0.82
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in RECIPES:
            raise ValueError(f"family={self.family!r}: expected one of {', '.join(RECIPES)}")
        for name in ("steps", "rows", "warmup", "cell_rows", "existence_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected an integer >= 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a number > 0")

    @property
    def total_steps(self) -> int:
        return self.cell_steps + self.steps + self.late_steps

    @property
    def images(self) -> int:
        """Pictures that are seen, each once."""
        return self.cell_steps * self.cell_rows + (self.steps + self.late_steps) * self.rows

    @property
    def style(self) -> SceneStyle:
        return SceneStyle(coherent=self.coherent, canonical=self.canonical)
