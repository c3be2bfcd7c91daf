"""Detectors, dual encoders and answering models with random weights, as folders that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests import tiny

SIDE = 32
"""Of the pictures that the networks read, in pixels."""

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "blue", "ball", ".", "##s")


def image_processor(name: str, **settings: Any) -> Any:
    """A processor of pictures that needs no torchvision."""
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return kind(**settings)


def _text(reader: Any) -> dict[str, Any]:
    return {**tiny.text_config(reader, 16), "pad_token_id": 0}


def owl(folder: Path, version: str = "v2") -> Path:
    """OWL-ViT, or OWLv2, which pads pictures to squares."""
    torch.manual_seed(1)
    name = {"v2": "Owlv2", "vit": "OwlViT"}[version]
    config, model, processor = (
        getattr(transformers, name + ending) for ending in ("Config", "ForObjectDetection", "Processor")
    )
    reader = tiny.tokenizer(length=16)
    network = model(config(text_config=_text(reader), vision_config=_VISION, projection_dim=16))
    torch.nn.init.zeros_(network.box_head.dense2.weight)  # a box for each patch; random ones have no area
    torch.nn.init.zeros_(network.box_head.dense2.bias)
    network.save_pretrained(folder)
    processor(image_processor(name, size={"height": SIDE, "width": SIDE}), reader).save_pretrained(folder)
    return folder


def grounding_dino(folder: Path) -> Path:
    torch.manual_seed(1)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1] * 3, num_heads=[1, 1, 2], window_size=2,
            out_features=["stage1", "stage2", "stage3"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12, num_feature_levels=4, max_text_len=32,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    reader = transformers.BertTokenizerFast.from_pretrained(folder)
    pictures = image_processor("GroundingDino", size={"shortest_edge": 64, "longest_edge": 128})
    transformers.GroundingDinoProcessor(pictures, reader).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    torch.manual_seed(1)
    reader = tiny.tokenizer(length=16)
    config = transformers.CLIPConfig(text_config=_text(reader), vision_config=_VISION, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(_clip_pictures(), reader).save_pretrained(folder)
    return folder


def _clip_pictures() -> Any:
    return image_processor("CLIP", size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def llava(folder: Path) -> Path:
    """A model that answers questions about pictures."""
    torch.manual_seed(1)
    pieces = ("<unk>", "<pad>", "<image>", "yes", "no", "Yes", "No", "Does", "this", "picture", "show", "a", "red", "cat")
    words = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    reader = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    reader.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = reader.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(
            vocab_size=len(pieces), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=128,
        ),
        image_token_id=image,
        image_token_index=image,
    )  # fmt: skip
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    said = "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %} {{ c.text }}{% endif %}{% endfor %}"
    transformers.LlavaProcessor(
        _clip_pictures(),
        reader,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}" + said + "{% endfor %}",
    ).save_pretrained(folder)
    return folder
