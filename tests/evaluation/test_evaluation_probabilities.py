"""Probabilities of two answers: which tokens are a word, where it is decided, what was said."""

import pytest
import torch
from family_rows import TWO_FAMILIES
from tiny_llava import llava_processor
from tiny_models import model_pair, sample
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from causalmm import BranchTrace, CausalMMConfig
from causalmm.decoding.trace import StepLogits
from causalmm.evaluation.probabilities import WordTrace, deciding_step, word_tokens
from causalmm.families.checkpoints import resolve

GREEDY = {"do_sample": False, "max_new_tokens": 5}


def byte_level(words):
    """As GPT-2's and Qwen's: Ġ stands for a blank, bytes for what is no word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *words])}
    core = Tokenizer(models.BPE(vocabulary, [], byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def metaspace(words):
    """As Llama's: ▁ stands for a blank, and the first one is not shown."""
    pieces = [("<unk>", 0.0), *((word, -1.0) for word in words)]
    core = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def texts(tokenizer, ids):
    return sorted(tokenizer.convert_ids_to_tokens(ids))


def test_a_word_is_known_in_every_spelling():
    near = ["yesterday", "Ġyesterday", "eyes", "Yes!", "ye"]
    tokenizer = byte_level(["Yes", "ĠYes", "yes", "Ġyes", "YES", "ĊYes", *near])
    wanted = sorted(["Yes", "ĠYes", "yes", "Ġyes", "YES", "ĊYes"])
    assert texts(tokenizer, word_tokens(tokenizer, "yes")) == wanted
    tokenizer = metaspace(["Yes", "▁Yes", "▁yes", "▁YES", "▁yesterday", "▁Ye", "s"])
    wanted = sorted(["Yes", "▁Yes", "▁yes", "▁YES"])
    assert texts(tokenizer, word_tokens(tokenizer, "yes")) == wanted
    assert word_tokens(tokenizer, "no") == []


def test_the_demonstration_model_knows_its_answers():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(resolve("demo-llava"))
    for word in ("yes", "no", "true", "false"):
        ids = word_tokens(tokenizer, word)
        assert ids
        assert {tokenizer.decode([each]).strip().lower() for each in ids} == {word}


@pytest.mark.parametrize(
    ("pieces", "step"),
    [
        (["Yes"], 0),
        (["ĠYes"], 0),
        (["Ċ", "Yes", ".", "ĠNo"], 1),
        (["S", "n", "o", "w", "Ġ", "N", "o"], 5),
        (["ĠNo", "-", "o", "n", "e", "Ġyes"], 5),
        (["Well", "Ġ", "y", "e", "s"], 2),
        # A smile of four bytes, before it is whole not one character but several.
        (["ð", "Ł", "ĺ", "Ģ", "yes"], 4),
        (["Well"], 0),
        ([], 0),
    ],
)
def test_an_answer_is_decided_where_its_word_begins(pieces, step):
    tokenizer = byte_level(["Yes", "ĠYes", "yes", "Ġyes", "ĠNo", "Well"])
    ids = tokenizer.convert_tokens_to_ids(pieces)
    assert deciding_step(tokenizer, ids, ("yes", "no")) == step


def test_what_comes_after_the_end_decides_nothing():
    tokenizer = llava_processor().tokenizer
    ids = tokenizer.convert_tokens_to_ids(["word30", "</s>", "<pad>", "<pad>"])
    assert deciding_step(tokenizer, ids, ("yes", "no")) == 0
    ids = tokenizer.convert_tokens_to_ids(["word30", "banana", "</s>", "<pad>"])
    assert deciding_step(tokenizer, ids, ("apple", "banana")) == 1


@pytest.mark.parametrize("mode", [None, "vision", "language", "multimodal", "joint"])
@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_kept_are_the_probabilities_of_whole_logits(family, mode):
    model = model_pair(family, "sdpa")[0]
    config = None if mode is None else CausalMMConfig(mode=mode, draws=2, epsilon=0.01)
    words = {"yes": [9, 12, 40], "no": [8], "true": [63]}
    whole, kept = BranchTrace(), WordTrace(words)
    for trace in (whole, kept):
        model.generate(**sample(family, seed=1), causalmm=config, causalmm_trace=trace, **GREEDY)
    assert kept.steps == []
    branches = {"factual", "adjusted"} | {
        None: set(), "multimodal": {"vision", "language", "unmasked"}
    }.get(mode, {mode, "unmasked"})  # fmt: skip
    for number, step in enumerate(whole.steps):
        scores = kept.scores(0, number, ("no", "yes"))
        assert scores.keys() == branches
        for branch, pair in scores.items():
            probabilities = getattr(step, branch)[0].double().softmax(-1)
            wanted = [probabilities[8].item(), probabilities[[9, 12, 40]].sum().item()]
            torch.testing.assert_close(torch.tensor(pair), torch.tensor(wanted))
        if mode is None:
            assert scores["factual"] == scores["adjusted"]


def test_memory_does_not_grow_with_the_vocabulary():
    trace = WordTrace({"yes": [1], "no": [2, 3]})
    logits = torch.zeros(5, 1000)
    for _ in range(4):
        trace.record(StepLogits(factual=logits, adjusted=logits))
    held = [tensor for step in trace.words for tensor in step.values()]
    assert {tuple(tensor.shape) for tensor in held} == {(5, 2)}
    assert {tensor.untyped_storage().nbytes() for tensor in held} == {5 * 2 * 4}
