"""Trains a small CLIP tokenizer on captions, with the `tokenizers` library.

tokenizer = train_tokenizer(["a red ball rolls to the right"], vocab_size=600, model_max_length=32)
"""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], vocab_size: int = 600, model_max_length: int = 32) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's format, so that any prompt can be encoded.

    Args:
        captions: text to learn merges from.
        vocab_size: at most this many tokens, the 512 of single bytes and the two special ones included.
        model_max_length: longest prompt in tokens, both ends included.

    Raises:
        ValueError: no captions, or a vocabulary that does not hold the single bytes.
    """
    if not any(captions):
        raise ValueError("components.tokenizer: there are no captions to train a tokenizer on")
    if vocab_size < 514:
        raise ValueError(f"components.tokenizer.config.vocab_size: {vocab_size} is less than 514 (bytes and two ends)")
    backend = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = (word for text in captions for word, _ in backend.pre_tokenizer.pre_tokenize_str(text.lower()))
    ends = sorted({f"{word[-1]}</w>" for word in parts})
    # Pairs as frequent as each other are merged by these numbers, which the trainer would else deal at random.
    known = [*alphabet, *ends]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 256, special_tokens=known, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(captions, trainer)
    state = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    # CLIP's order: bytes, bytes at the end of a word, merges, the two special tokens
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocab = {word: number for number, word in enumerate([*dict.fromkeys(words), BOS, EOS])}
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=EOS,
        model_max_length=model_max_length,
    )  # fmt: skip
    return tokenizer
