"""The vocabulary of the tiny models: eight special tokens, then words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, IMAGE, VIDEO, VISION_START, VISION_END = range(7)
FIRST_WORD, VOCAB = 8, 64
KNOWN = ["USER", "ASSISTANT", ":", "?", "is", "there", "a", "banana", "what", "this", "user"]


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCAB, (count,), generator=generator).tolist()


def tokenizer(
    special: list[str], extra: dict[str, str], starts: bool = False
) -> PreTrainedTokenizerFast:
    """One token a word after eight `special` ones, in the order of the ids above.

    `starts`: with a start token in front, as Llama's has.
    """
    words = [*special, *KNOWN]
    words += [f"word{number}" for number in range(VOCAB - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(special)
    if starts:
        core.post_processor = processors.TemplateProcessing(
            single=f"{special[BOS]} $A", special_tokens=[(special[BOS], BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token=special[BOS],
        eos_token=special[EOS],
        pad_token=special[PAD],
        extra_special_tokens=extra,
        padding_side="left",
    )
