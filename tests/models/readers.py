"""Tokenizers of every kind of text encoder, made without a download; common words are one token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import tiny

_TEMPLATE_WORDS = (
    *("system", "user", "assistant", "Describe", "the", "image", "by", "detailing", "color", "shape", "size", "texture"),
    *("quantity", "text", "spatial", "relationships", "objects", "background"),
)
"""Words of Qwen-Image's system message, whose 34 tokens the pipeline cuts off by number."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's way of writing a conversation, without tools and pictures."""

MISTRAL_CHAT = (
    "<s>{% for message in messages %}{% if message.role == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% if message.role == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)
"""Mistral's way of writing a conversation."""


def _wrapped(tokenizer: Tokenizer, length: int, **special: Any) -> PreTrainedTokenizerFast:
    read = ["input_ids", "attention_mask"]  # older versions of the library would add types of tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, model_input_names=read, **special)


def _letters() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def t5(words: Sequence[str] = tiny.WORDS, length: int = 512) -> PreTrainedTokenizerFast:
    """Pieces of T5's kind: ``▁`` opens a word, ``</s>`` ends the text, nothing starts it, spaces at the ends are lost."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -2.0 - number / 100) for number, word in enumerate(words)]
    pieces += [(letter, -8.0 - number / 1000) for number, letter in enumerate(_letters())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _wrapped(tokenizer, length, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def gemma(words: Sequence[str] = tiny.WORDS, length: int = 512) -> PreTrainedTokenizerFast:
    """Pieces of Gemma's kind: ``<bos>`` starts the text and nothing ends it, a space belongs to the word after it."""
    pieces = [("<pad>", 0.0), ("<eos>", 0.0), ("<bos>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(mark + word, -2.0 - number / 100) for number, word in enumerate(words) for mark in ("", "▁")]
    known = {piece for piece, _ in pieces}
    pieces += [(letter, -8.0 - number / 1000) for number, letter in enumerate(_letters()) if letter not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _wrapped(tokenizer, length, padding_side="right", **special)


def _byte_pairs(words: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """Byte-level pieces, and exactly ``words``, also with the space before them."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(mark + word for word in words for mark in ("", "Ġ"))]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    # Without any pairs to merge a word is looked up whole, else spelt by bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def qwen(words: Sequence[str] = tiny.WORDS, length: int = 1200) -> PreTrainedTokenizerFast:
    """Byte pairs of Qwen's kind, with its conversation template; nothing starts or ends a text but the template."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _byte_pairs((*_TEMPLATE_WORDS, *words), (*special, "<|image_pad|>", "<|video_pad|>"))
    made = _wrapped(tokenizer, length, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="right")
    made.chat_template = CHAT
    return made


def mistral(words: Sequence[str] = tiny.WORDS, length: int = 1200) -> PreTrainedTokenizerFast:
    """Byte pairs of Mistral's kind (FLUX.2), with its conversation template; it pads on the left."""
    special = ("<pad>", "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")
    made = _wrapped(
        _byte_pairs(words, special), length, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    made.chat_template = MISTRAL_CHAT
    return made
