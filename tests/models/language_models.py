"""Tiny pipelines whose text encoder is a language model of causal attention."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import transformers
from torch import nn

from tests import tiny
from tests.models import readers
from tests.models.parts import ROPE, VISION, WIDTH, autoencoder, decoder, dynamic_flow, family, flow, sharpened, sized


def _qwen_autoencoder() -> Any:
    """Latents of a quarter of the picture's side, since every stage halves it."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    ).eval()


@family("qwen_image", "QwenImagePipeline")
def _qwen_image() -> Any:
    reader = readers.qwen()
    config = transformers.Qwen2_5_VLConfig(
        text_config=decoder(reader, rope_scaling=dict(ROPE), rope_parameters=dict(ROPE)), vision_config=dict(VISION)
    )
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    built = diffusers.QwenImagePipeline(
        scheduler=dynamic_flow(max_shift=0.9, max_image_seq_len=8192, shift=1.0, shift_terminal=0.02),
        vae=_qwen_autoencoder(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=reader,
        transformer=sharpened(network),
    )
    return sized(built)


@family("z_image", "ZImagePipeline")
def _z_image() -> Any:
    reader = readers.qwen()
    network = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**decoder(reader))).eval(),
        tokenizer=reader,
        transformer=sharpened(network),
    )


@family("lumina2", "Lumina2Pipeline")
def _lumina2() -> Any:
    reader = readers.gemma()
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(300, 64, 64),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=sharpened(network),
        scheduler=flow(shift=6.0),
        vae=autoencoder(),
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(**decoder(reader))).eval(),
        tokenizer=reader,
    )


def _flux2_network(width: int, *, guidance: bool) -> nn.Module:
    network = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return sharpened(network)


def _flux2_autoencoder() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


@family("flux2", "Flux2Pipeline")
def _flux2() -> Any:
    """Thirty layers of text, since the pipeline joins the states of the tenth, twentieth and thirtieth."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    reader = readers.mistral((*tiny.WORDS, *re.findall(r"\w+", SYSTEM_MESSAGE)))
    text = transformers.MistralConfig(**decoder(reader, layers=30, hidden_size=8, intermediate_size=8, head_dim=4))
    built = diffusers.Flux2Pipeline(
        scheduler=dynamic_flow(),
        vae=_flux2_autoencoder(),
        text_encoder=transformers.MistralModel(text).eval(),
        tokenizer=reader,
        transformer=_flux2_network(24, guidance=True),
    )
    return sized(built)


@family("flux2_klein", "Flux2KleinPipeline")
def _flux2_klein() -> Any:
    """Layers 9, 18 and 27 of Qwen 3 are joined; classifier-free guidance instead of a distilled one."""
    reader = readers.qwen()
    text = transformers.Qwen3Config(**decoder(reader, layers=27, hidden_size=8, intermediate_size=8, head_dim=4))
    built = diffusers.Flux2KleinPipeline(
        scheduler=dynamic_flow(),
        vae=_flux2_autoencoder(),
        text_encoder=transformers.Qwen3ForCausalLM(text).eval(),
        tokenizer=reader,
        transformer=_flux2_network(24, guidance=False),
    )
    return sized(built)


@family("ovis", "OvisImagePipeline")
def _ovis() -> Any:
    """Not a family of the package: the example of the page on adding one."""
    reader = readers.qwen()
    network = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    built = diffusers.OvisImagePipeline(
        scheduler=dynamic_flow(),
        vae=autoencoder(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**decoder(reader))).eval(),
        tokenizer=reader,
        transformer=sharpened(network),
    )
    return sized(built)


def _qwen3_vl(reader: Any) -> Any:
    rope = {**ROPE, "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config=decoder(reader, layers=3, rope_scaling=rope, rope_parameters=rope),
        vision_config={**VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    )


@family("krea2", "Krea2Pipeline")
def _krea2() -> Any:
    reader = readers.qwen()
    network = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.Krea2Pipeline(
        scheduler=dynamic_flow(),
        vae=_qwen_autoencoder(),
        text_encoder=transformers.Qwen3VLModel(_qwen3_vl(reader)).eval(),
        tokenizer=reader,
        transformer=sharpened(network),
        text_encoder_select_layers=(1, 3),
    )


class _Processor:
    """Tokenizer part of ``Qwen3VLProcessor``, whose pictures need another library."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> list[list[int]]:
        return [self.tokenizer.apply_chat_template(messages, **settings)]

    def __call__(self, text: list[str], **settings: Any) -> Any:
        return self.tokenizer(text, **settings)


@family("qwen_image_21", "QwenImage21Pipeline")
def _qwen_image_21() -> Any:
    """Latents are a sixteenth of the picture's side and a cell is one of them, so that maps of 128 pixels have 8 x 8 cells."""
    reader = readers.qwen()
    network = diffusers.QwenImage21Transformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        mlp_ratio=2,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=dynamic_flow(),
        vae=vae.eval(),
        text_encoder=transformers.Qwen3VLForConditionalGeneration(_qwen3_vl(reader)).eval(),
        processor=_Processor(reader),
        transformer=sharpened(network),
    )
