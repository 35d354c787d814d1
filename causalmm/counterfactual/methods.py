"""Every counterfactual method, declared once; everything else asks here.

METHODS are those of attention. `NOISE` is none of them: it changes the pixels that the vision
encoder is given, and only a configuration knows it, as one of VISION_CHOICES.
An attention method is a name, the tower it edits, and a formula for either normalization. Formulas
are functions of causalmm/counterfactual/formulas.py, and the dense ones as released, for
comparison, of causalmm/counterfactual/released.py, both called by name, so that asking which
methods there are loads no torch. To add a method: its declaration here, its formula there, and what
it should give in tests/dense_methods.py. Tests: tests/counterfactual/test_attention.py.
"""

from dataclasses import dataclass, replace

TOWERS = ("vision", "language")
NORMALIZATIONS = ("visible", "released")
SCOPES = ("all", "image")
"""Which weights of the decoder are edited: of all visible keys, or of the image keys of text
queries alone."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """How a method's output is computed, and what it needs at a time."""

    compute: str
    """The function, taking an `AttentionCall` and returning outputs [B, H, Q, D]."""
    softmax_stats: bool = False
    """Whether it looks at the factual output and largest weights."""
    random_weights: bool = False
    """Whether it looks at a random number for every pair of a query and a key."""
    whole_map: bool = False
    """Whether it needs all queries of a head at once; with `softmax_stats`, M as every m_i."""
    counts_every_key: bool = False
    """Whether keys count that no query may see."""
    part: str | None = None
    """Of scope "image". "inside": applied to the image keys of text queries, whose share of the
    attention stays what it is, beside the factual rest. "outside": applied to that rest, which gets
    all attention."""

    @property
    def takes_stats(self) -> bool:
        """Whether statistics of the factual softmax are computed for it."""
        return self.softmax_stats or self.part == "inside"

    @property
    def builds_a_map(self) -> bool:
        """Whether weights of pairs exist at some time, of some queries or a head."""
        return self.random_weights or (self.whole_map and not self.softmax_stats)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One counterfactual attention of one tower."""

    name: str
    tower: str
    summary: str
    """Its weights on the keys that a query sees, in a line."""
    visible: Formula | None
    """None: it is defined for scope "image" alone."""
    released: Formula | None = None
    """None: the released code does not have it."""
    without_image: Formula | None = None
    """Under scope "image", in the place of `visible` applied to the image keys."""
    stochastic: bool = False
    """Whether draws differ."""

    @property
    def released_map(self) -> str:
        """The function of the released formula on a whole attention map."""
        return f"{self.tower}_{self.name}"

    def formula(self, normalization: str, scope: str = "all") -> Formula:
        """That of a normalization and a scope. Raises ValueError for ones that there are not, or
        not of this method."""
        for name, value, known in (
            ("normalization", normalization, NORMALIZATIONS),
            ("language_scope", scope, SCOPES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        if scope not in self.scopes:
            raise ValueError(
                f"language_scope={scope!r}: {self.tower} method {self.name!r} is defined for scope "
                f"{', '.join(self.scopes)} only"
            )
        if scope == "image":
            if normalization != "visible":
                raise ValueError(
                    f"normalization={normalization!r} with language_scope='image': the released "
                    "code edits all keys; expected normalization='visible' or language_scope='all'"
                )
            return self.without_image or replace(self.visible, part="inside")
        if normalization not in self.normalizations:
            raise ValueError(
                f"normalization={normalization!r}: the released code has no {self.tower} method "
                f"{self.name!r}; expected {', '.join(self.normalizations)}"
            )
        return getattr(self, normalization)

    @property
    def normalizations(self) -> tuple[str, ...]:
        """Those that it has a formula for."""
        return NORMALIZATIONS if self.released is not None else ("visible",)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Those that it has a formula for."""
        if self.tower == "vision":
            return ("all",)
        return SCOPES if self.visible is not None else ("image",)


_UNIFORM = Formula(compute="uniform")
_REVERSE = Formula(compute="reverse", softmax_stats=True)
_REVERSE_AND_NORMALIZE = Formula(compute="reverse_and_normalize", softmax_stats=True)
_RANDOM = Formula(compute="random", random_weights=True)
_SHUFFLE = Formula(compute="shuffle", whole_map=True)

METHODS = (
    Method(
        tower="language",
        name="uniform",
        summary="every visible key the same, 1/n",
        visible=_UNIFORM,
        released=Formula(compute="uniform_over_all_keys", counts_every_key=True),
    ),
    Method(
        tower="language",
        name="reverse",
        summary="the row's largest weight minus the weight, not normalised",
        visible=_REVERSE,
        released=_REVERSE,
    ),
    Method(
        tower="language",
        name="reverse_and_normalize",
        summary="the same, normalised to sum to 1",
        visible=_REVERSE_AND_NORMALIZE,
        released=_REVERSE_AND_NORMALIZE,
    ),
    Method(
        tower="language",
        name="random",
        summary="random numbers from 0 to 1, normalised to sum to 1",
        visible=_RANDOM,
        released=Formula(
            compute="random_over_all_keys",
            random_weights=True,
            counts_every_key=True,
        ),
        stochastic=True,
    ),
    Method(
        tower="language",
        name="blind",
        summary="no weight on image keys, the others' normalised to sum to 1; scope image only",
        visible=None,
        without_image=Formula(compute="factual", softmax_stats=True, part="outside"),
    ),
    Method(
        tower="vision",
        name="uniform",
        summary="every patch the same, 1/N",
        visible=_UNIFORM,
        released=_UNIFORM,
    ),
    Method(
        tower="vision",
        name="reversed",
        summary="the map's largest weight minus the weight, normalised to sum to 1",
        visible=Formula(compute="reverse_and_normalize", softmax_stats=True, whole_map=True),
        released=Formula(compute="reverse", softmax_stats=True, whole_map=True),
    ),
    Method(
        tower="vision",
        name="random",
        summary="random numbers from 0 to 1, normalised to sum to 1",
        visible=_RANDOM,
        released=Formula(compute="random_doubled", random_weights=True),
        stochastic=True,
    ),
    Method(
        tower="vision",
        name="shuffle",
        summary="the map's own weights, permuted",
        visible=_SHUFFLE,
        released=_SHUFFLE,
        stochastic=True,
    ),
)


def names(tower: str) -> tuple[str, ...]:
    """The methods of a tower, in the order of declaration."""
    return tuple(method.name for method in METHODS if method.tower == tower)


def find(tower: str, name: str) -> Method:
    """A tower's method. Raises ValueError naming those that there are."""
    for method in METHODS:
        if (method.tower, method.name) == (tower, name):
            return method
    raise ValueError(f"{tower} method={name!r}: expected one of {', '.join(names(tower))}")


LANGUAGE_METHODS = names("language")
VISION_METHODS = names("vision")


@dataclass(frozen=True, kw_only=True)
class PixelMethod:
    """A counterfactual picture, under attention as it is."""

    name: str
    tower: str
    summary: str
    stochastic: bool


NOISE = PixelMethod(
    name="noise",
    tower="vision",
    summary="attention as it is, over pixels noised by the diffusion schedule of VCD",
    stochastic=True,
)
VISION_CHOICES = (*VISION_METHODS, NOISE.name)
"""What a configuration may name for the vision branch."""
