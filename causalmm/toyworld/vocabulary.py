"""The things of the toy world: classes in co-occurrence groups, colours, canonical colours."""

GROUPS: dict[str, tuple[str, ...]] = {
    "kitchen": ("table", "cup", "apple", "banana"),
    "sea": ("boat", "fish", "anchor", "sun"),
    "street": ("house", "tree", "car", "lamp"),
    "study": ("book", "key", "clock", "chair"),
    "garden": ("flower", "butterfly", "mushroom", "leaf"),
}
CLASSES: tuple[str, ...] = tuple(name for group in GROUPS.values() for name in group)
GROUP_OF: dict[str, str] = {name: group for group, names in GROUPS.items() for name in names}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 42, 42),
    "orange": (244, 140, 32),
    "yellow": (244, 218, 46),
    "green": (52, 164, 62),
    "blue": (52, 92, 218),
    "purple": (140, 62, 180),
    "pink": (244, 150, 190),
    "brown": (130, 82, 42),
    "white": (244, 244, 244),
    "gray": (130, 130, 130),
    "black": (26, 26, 26),
}
CANONICAL: dict[str, str] = {
    "table": "brown",
    "cup": "white",
    "apple": "red",
    "banana": "yellow",
    "boat": "red",
    "fish": "orange",
    "anchor": "gray",
    "sun": "yellow",
    "house": "brown",
    "tree": "green",
    "car": "blue",
    "lamp": "black",
    "book": "blue",
    "key": "gray",
    "clock": "white",
    "chair": "brown",
    "flower": "pink",
    "butterfly": "purple",
    "mushroom": "red",
    "leaf": "green",
}
_IRREGULAR = {"fish": "fish", "butterfly": "butterflies", "leaf": "leaves"}


def article(word: str) -> str:
    """ "a" or "an", by the first letter of the next word."""
    return "an" if word[0] in "aeiou" else "a"


def plural(name: str) -> str:
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return f"{name}s"


SYNONYMS: dict[str, list[str]] = {
    name: [plural(name)] if plural(name) != name else [] for name in CLASSES
}
"""What a caption may call a class, beside its name."""
