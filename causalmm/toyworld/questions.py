"""Questions about scenes, in the wording of the benchmarks, with their right answers.

Existence is POPE's sentence, bare, with the one-word suffix of the POPE scripts, or with MME's
yes/no suffix; statements are VLind-Bench's templates ("instructblip" set).
Held by tests/toyworld/test_toyworld.py.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from causalmm.toyworld.scenes import Item
from causalmm.toyworld.vocabulary import (
    CANONICAL,
    CLASSES,
    COLOURS,
    GROUP_OF,
    GROUPS,
    article,
    plural,
)

ONE_WORD = " Please answer this question with one word."
YES_OR_NO = " Please answer yes or no."
EXISTENCE_SUFFIXES = ("", ONE_WORD, YES_OR_NO)
CAPTION_PROMPTS = (
    "Describe the image.",
    "Describe this image.",
    "What is in the image?",
    "What can you see in the image?",
    "Please describe this image in detail.",
)
NUMBERS = ("zero", "one", "two", "three", "four")
KINDS = ("existence", "colour", "count", "position", "statement", "sense", "context", "caption")


@dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """What is asked about an image and what is right."""

    kind: str
    text: str
    answer: str


def existence(name: str, present: bool, suffix: str = "") -> SceneQuestion:
    text = f"Is there {article(name)} {name} in the image?{suffix}"
    return SceneQuestion(kind="existence", text=text, answer="Yes" if present else "No")


def colour(name: str, right: str) -> SceneQuestion:
    return SceneQuestion(
        kind="colour", text=f"What color is the {name}?", answer=right.capitalize()
    )


def colour_check(name: str, asked: str, right: str) -> SceneQuestion:
    """MME's colour question: yes or no."""
    text = f"Is the {name} {asked}?{YES_OR_NO}"
    return SceneQuestion(kind="colour", text=text, answer="Yes" if asked == right else "No")


def count(right: int) -> SceneQuestion:
    text = "How many objects are in the image?"
    return SceneQuestion(kind="count", text=text, answer=NUMBERS[right].capitalize())


def count_check(asked: int, right: int) -> SceneQuestion:
    verb, noun = ("Is", "object") if asked == 1 else ("Are", "objects")
    text = f"{verb} there {NUMBERS[asked]} {noun} in the image?{YES_OR_NO}"
    return SceneQuestion(kind="count", text=text, answer="Yes" if asked == right else "No")


def position(name: str, other: str, left: bool) -> SceneQuestion:
    text = f"Is the {name} on the left or on the right of the {other}?"
    return SceneQuestion(kind="position", text=text, answer="Left" if left else "Right")


def position_check(name: str, other: str, asked_left: bool, left: bool) -> SceneQuestion:
    side = "left" if asked_left else "right"
    text = f"Is the {name} on the {side} side of the {other}?{YES_OR_NO}"
    return SceneQuestion(kind="position", text=text, answer="Yes" if asked_left == left else "No")


def _statement(
    kind: str, statement: str, source: str, true: bool, context: str = ""
) -> SceneQuestion:
    given = f"Context: {context}\n" if context else ""
    text = (
        f"Only respond in True or False.\n{given}Statement: {statement}\n"
        f"Based on {source}, is the given statement true or false?"
    )
    return SceneQuestion(kind=kind, text=text, answer="True" if true else "False")


def image_statement(statement: str, true: bool) -> SceneQuestion:
    """VLind-Bench VP and LP."""
    return _statement("statement", statement, "the image", true)


def sense_statement(name: str, asked: str) -> SceneQuestion:
    """VLind-Bench CK: what is usual, whatever the image shows."""
    statement = colour_rule(name, asked)
    return _statement("sense", statement, "common sense", CANONICAL[name] == asked)


def context_statement(name: str, told: str, asked: str) -> SceneQuestion:
    """VLind-Bench CB: what the context says, whatever is usual or shown."""
    statement = colour_rule(name, asked)
    return _statement("context", statement, "the context", told == asked, world(name, told))


def context_colour(name: str, told: str) -> SceneQuestion:
    """What the context says, in an open question: no benchmark asks it, but it teaches to look."""
    text = f"Context: {world(name, told)}\nBased on the context, what color are {plural(name)}?"
    return SceneQuestion(kind="context", text=text, answer=told.capitalize())


def colour_rule(name: str, colour_name: str) -> str:
    return f"{plural(name).capitalize()} are {colour_name}."


def world(name: str, colour_name: str) -> str:
    """The context of a counterfactual world."""
    return f"In this world, all {plural(name)} are {colour_name}."


def presence(name: str) -> str:
    """VLind-Bench's sentence for visual perception."""
    return f"There is {name} in the given image."


def caption(items: Sequence[tuple[str, str]], prompt: str = CAPTION_PROMPTS[0]) -> SceneQuestion:
    """A caption names every (class, colour), left to right."""
    parts = [f"{article(colour_name)} {colour_name} {name}" for name, colour_name in items]
    sentence = ", ".join(parts)
    return SceneQuestion(
        kind="caption", text=prompt, answer=sentence[0].upper() + sentence[1:] + "."
    )


def absent_name(names: Sequence[str], own_group: float, rng: random.Random) -> str:
    """A class that is not there; with probability `own_group` one that would fit the others."""
    near = [name for name in GROUPS[GROUP_OF[rng.choice(list(names))]] if name not in names]
    if near and rng.random() < own_group:
        return rng.choice(near)
    return rng.choice([name for name in CLASSES if name not in names])


def other_colour(right: str, name: str, rng: random.Random) -> str:
    """A wrong colour; half of the time the canonical one, where that is wrong."""
    if right != CANONICAL[name] and rng.random() < 0.5:
        return CANONICAL[name]
    return rng.choice([each for each in COLOURS if each != right])


_EXISTENCE = re.compile(r"Is there (an? \w+) in the image\?(.*)")
_COLOUR = re.compile(r"What color is the (\w+)\?")
_EXISTENCE_OTHERWISE = (
    "Is there {} in this image?",
    "Is there {} in the picture?",
    "Do you see {} in the image?",
    "Can you see {}?",
    "Does the image show {}?",
)
_COLOUR_OTHERWISE = (
    "What colour is the {}?",
    "What is the color of the {}?",
    "Which color does the {} have?",
)
_CAPTION_OTHERWISE = (
    "What do you see?",
    "Describe the picture.",
    "What is in this picture?",
    "What objects are in the image?",
    "List the objects in the image.",
)


def rephrase(question: SceneQuestion, rng: random.Random) -> SceneQuestion:
    """The same question as a person might type it; statements keep their template."""
    text = question.text
    if match := _EXISTENCE.fullmatch(text):
        text = rng.choice(_EXISTENCE_OTHERWISE).format(match[1]) + match[2]
    elif match := _COLOUR.fullmatch(text):
        text = rng.choice(_COLOUR_OTHERWISE).format(match[1])
    elif question.kind == "caption":
        text = rng.choice(_CAPTION_OTHERWISE)
    if question.kind in ("statement", "sense", "context"):
        return question
    if rng.random() < 0.3:
        text = text[0].lower() + text[1:]
    return replace(question, text=text)


def training_questions(
    items: Sequence[Item],
    rng: random.Random,
    own_group: float = 0.25,
    existence_pairs: int = 2,
    text_apart: bool = False,
) -> list[SceneQuestion]:
    """About ten questions about one training image, whose items are given from left to right.

    `own_group` is the share of absent objects that would fit the others; `existence_pairs` are
    asked for something there and for something absent. `text_apart`: most questions that need no
    picture are asked elsewhere, and more statements made about the image.
    """
    in_order, items = tuple(items), list(items)
    rng.shuffle(items)
    names = tuple(item.name for item in in_order)
    asked: list[SceneQuestion] = []
    for index in range(existence_pairs):
        asked.append(
            existence(items[index % len(items)].name, True, rng.choice(EXISTENCE_SUFFIXES))
        )
        absent = absent_name(names, own_group, rng)
        asked.append(existence(absent, False, rng.choice(EXISTENCE_SUFFIXES)))
    # Odd colours are rare; asked about first, they are learnt without being common.
    odd = [item for item in items if item.colour != CANONICAL[item.name]]
    for item in (rng.choice(odd or items), rng.choice(items)):
        asked.append(colour(item.name, item.colour))
    extra = _check(items[0], rng) if rng.random() < 0.4 else _where_or_how_many(in_order, rng)
    asked.append(extra)
    asked.append(_image_statement(rng.choice(odd or items), names, own_group, rng))
    if not text_apart or rng.random() < 0.3:
        asked += blind_questions(rng)
    else:
        asked.append(_image_statement(rng.choice(items), names, own_group, rng))
    described = [(item.name, item.colour) for item in in_order]
    asked.append(caption(described, rng.choice(CAPTION_PROMPTS)))
    return asked


def _check(item: Item, rng: random.Random) -> SceneQuestion:
    wrong = other_colour(item.colour, item.name, rng)
    return colour_check(item.name, rng.choice((item.colour, wrong)), item.colour)


def _where_or_how_many(items: Sequence[Item], rng: random.Random) -> SceneQuestion:
    total = len(items)
    if total < 2 or rng.random() < 0.5:
        if rng.random() < 0.5:
            return count(total)
        wrong = rng.choice([number for number in range(1, 5) if number != total])
        return count_check(rng.choice((total, wrong)), total)
    first, second = rng.sample(range(total), 2)
    one, other = items[first].name, items[second].name
    if rng.random() < 0.5:
        return position(one, other, first < second)
    return position_check(one, other, rng.random() < 0.5, first < second)


def _image_statement(
    item: Item, names: Sequence[str], own_group: float, rng: random.Random
) -> SceneQuestion:
    true = rng.random() < 0.5
    if rng.random() < 0.5:
        name = item.name if true else absent_name(names, own_group, rng)
        return image_statement(presence(name), true)
    shown = item.colour if true else other_colour(item.colour, item.name, rng)
    return image_statement(colour_rule(item.name, shown), true)


def blind_questions(rng: random.Random) -> list[SceneQuestion]:
    """One or two questions that need no picture."""
    name, told = rng.choice(CLASSES), rng.choice(list(COLOURS))
    wrong = rng.choice([each for each in COLOURS if each != told])
    if rng.random() < 0.35:
        asked = [context_colour(name, told)]
    else:
        asked = [context_statement(name, told, rng.choice((told, wrong)))]
    if rng.random() < 0.5:
        name = rng.choice(CLASSES)
        usual = CANONICAL[name]
        wrong = rng.choice([each for each in COLOURS if each != usual])
        asked.append(sense_statement(name, rng.choice((usual, wrong))))
    return asked
