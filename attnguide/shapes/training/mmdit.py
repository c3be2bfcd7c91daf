"""The parts of the embedded joint-attention pipeline, untrained, in FLUX.1's format: T5, transformer, scheduler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from attnguide.shapes.captions import NUMBERS, RELATION_WORDS
from attnguide.shapes.scene import BACKGROUNDS, COLORS, SHAPES
from attnguide.shapes.training.architecture import LATENT_CHANNELS, TEXT_WIDTH

PACKED_CHANNELS = 4 * LATENT_CHANNELS
"""Channels of one image token: FLUX packs two by two cells of the latent into one."""

TEXT_TOKENS = 24
"""Positions of the T5 text; shorter captions are padded, and the pads are read like words, as in FLUX."""

HEAD = 32
"""Channels of an attention head."""

SPLIT_PIECES: dict[str, tuple[str, ...]] = {"purple": ("pur", "ple"), "triangle": ("tri", "angle")}
"""Words that the T5 tokenizer reads as several tokens. Plurals are a word and its ending: *circles* is ``circle s``."""


def build_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows the world's words whole, but for those of :data:`SPLIT_PIECES` and for plurals.

    Every printable ASCII character is a piece as well, so that any English text can be read; others are ``<unk>``.
    """
    others = ("a", "an", "and", "with", "on", "background", "picture", "drawing", "of", "above", "below")
    related = {word for phrases in RELATION_WORDS.values() for phrase in phrases for word in phrase.split()}
    words = [*others, *sorted(related - {*others}), *list(NUMBERS.values())[1:], *COLORS, *BACKGROUNDS, *SHAPES]
    pieces: list[str] = []
    for word in words:
        first, *rest = SPLIT_PIECES.get(word, (word,))
        pieces += ["\u2581" + first, *rest]
    letters = ["\u2581", *(chr(code) for code in range(33, 127))]
    scored = [*((piece, -2.0) for piece in dict.fromkeys([*pieces, "s", "es"])), *((letter, -8.0) for letter in letters)]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = specials + list(dict(reversed(scored)).items())[::-1]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TEXT_TOKENS)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A T5 encoder of 2 layers; it carries the words' order, as the transformer's text positions are all alike."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=TEXT_WIDTH // 4,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=TEXT_TOKENS,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


class Size(NamedTuple):
    """Size of a transformer.

    Attributes:
        heads: Number of attention heads, 32 channels each.
        dual: Number of blocks with two streams.
        single: Number of blocks with one stream.
    """

    heads: int
    dual: int
    single: int


SMALL, LARGE = Size(6, 2, 4), Size(8, 2, 5)
"""5.1 and 10.1 million weights: what a CPU can train in a night, and what a graphics card can in minutes."""


def size_of(transformer: Mapping[str, Any]) -> Size:
    """Size of a transformer from its configuration."""
    return Size(transformer["num_attention_heads"], transformer["num_layers"], transformer["num_single_layers"])


def size_of_weights(state: Mapping[str, Tensor]) -> Size:
    """Size of a transformer from its weights, whose names may have a prefix."""
    dual, single = (
        len({match.group(1) for name in state if (match := re.search(rf"\b{part}\.(\d+)\.", name))})
        for part in ("transformer_blocks", "single_transformer_blocks")
    )
    (width,) = (len(weight) for name, weight in state.items() if name.endswith("x_embedder.weight"))
    return Size(width // HEAD, dual, single)


def build_transformer(heads: int = SMALL.heads, dual: int = SMALL.dual, single: int = SMALL.single) -> FluxTransformer2DModel:
    """FLUX.1's transformer on 8x8 image tokens: blocks with weights of their own for text and picture, then shared ones."""
    return FluxTransformer2DModel(
        in_channels=PACKED_CHANNELS,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching without a shift of its own: steps even in the noise level."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)


def build_flux_pipeline(
    vae: AutoencoderKL,
    clip: tuple[CLIPTokenizer, CLIPTextModel],
    t5: tuple[T5Tokenizer, T5EncoderModel],
    transformer: FluxTransformer2DModel,
) -> FluxPipeline:
    """A pipeline of the parts, which are shared and not copied; sets the autoencoder's ``shift_factor``, which FLUX reads."""
    vae.register_to_config(shift_factor=0.0)
    return FluxPipeline(
        scheduler=build_flow_scheduler(),
        vae=vae,
        text_encoder=clip[1],
        tokenizer=clip[0],
        text_encoder_2=t5[1],
        tokenizer_2=t5[0],
        transformer=transformer,
    )
