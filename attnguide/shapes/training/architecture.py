"""The parts of the embedded pipeline, untrained: tokenizer, text encoder, UNet, autoencoder, scheduler."""

from __future__ import annotations

import json
import re
from collections import Counter

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attnguide.shapes.captions import caption
from attnguide.shapes.scene import random_scene

LATENT_CHANNELS = 8
LATENT_FACTOR = 8
TEXT_WIDTH = 128
MAX_TOKENS = 32


SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "purple": ("pur", "ple"),
    "triangle": ("tri", "angle"),
    "triangles": ("tri", "angle", "s"),
    "diamond": ("dia", "mond"),
    "diamonds": ("dia", "monds"),
    "beige": ("be", "ige"),
}
"""Words that the tokenizer splits into several tokens, as real tokenizers do with rarer words.

Merges are added for these pieces; if an earlier merge applies first, the tokens differ (*triangles* is read as
``tri angl es``).
"""


def build_tokenizer(captions: int = 4000) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from the world's own captions.

    The words of :data:`SPLIT_WORDS` are left out of the learning and get merges up to their pieces only. All 256 bytes are
    in the vocabulary, so any text can be read.
    """
    words = Counter(w for seed in range(captions) for w in re.findall(r"\w+|,", caption(random_scene(seed), seed)))
    corpus = [" ".join([word] * count) for word, count in sorted(words.items()) if word not in SPLIT_WORDS]
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    for pieces in SPLIT_WORDS.values():
        for piece in pieces[:-1]:
            merges += _merges_up_to(list(piece), merges)
        merges += _merges_up_to([*pieces[-1][:-1], pieces[-1][-1] + "</w>"], merges)
    vocab = {symbol: index for index, symbol in enumerate(letters + [letter + "</w>" for letter in letters])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merges_up_to(symbols: list[str], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merges still missing for byte-pair encoding to join ``symbols`` into one."""
    for left, right in merges:
        at = 0
        while at + 1 < len(symbols):
            if symbols[at : at + 2] == [left, right]:
                symbols[at : at + 2] = [left + right]
            at += 1
    missing = []
    while len(symbols) > 1:
        missing.append((symbols[0], symbols[1]))
        symbols[:2] = [symbols[0] + symbols[1]]
    return missing


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of 3 layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet with self- and cross-attention on 16x16, 8x8 and 4x4 maps, and a middle block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_autoencoder() -> AutoencoderKL:
    """A convolutional autoencoder of factor 8 without attention, so that it can train on crops."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.0,
    )


def build_scheduler() -> DDIMScheduler:
    """Velocity prediction; more noise than Stable Diffusion's at the end, as a 16x16 latent averages less of it away."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A pipeline of the parts, which are shared and not copied."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
