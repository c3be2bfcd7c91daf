"""Networks of published sizes on tensors without data, with plain and guided passes, for benchmarks of further families.

The sizes are those of the models' public configurations, at 1024 pixels. Words are read by attnguide's interception.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attnguide.attention.attach import attach, stop_after
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.types import Step

STEP = Step(0, 2, 999.0, 0.0, 1.0)
WORDS = 4
"""Columns of words that are read, by default."""


# --------------------------------------------------------------------------------------------------------- architectures


@dataclass(frozen=True)
class Architecture:
    """A network of a family, with the sizes of its published configuration at 1024 pixels.

    Attributes:
        title: Display name.
        build: Makes the network.
        latents: Shape of one row's latents, as the network takes them.
        inputs: Number of rows -> the network's further arguments.
        sites: Pattern of the names of attention modules that are read.
        cells: Rows and columns of the maps that are read.
        heads: Attention heads.
        blocks: Query and key spans of the text block; ``None`` each for modules with text keys only (cross-attention).
        halves: Rows of a denoising pass for one picture.
        alike: Arguments of ``build`` that say how many equal blocks there are of a kind, and how many.
    """

    title: str
    build: Callable[..., nn.Module]
    latents: tuple[int, ...]
    inputs: Callable[[int], dict[str, Any]]
    sites: str
    cells: tuple[int, int]
    heads: int
    blocks: tuple[Any, Any] = (None, None)
    halves: int = 2
    alike: Mapping[str, int] = field(default_factory=dict)

    def with_blocks(self, **counts: int) -> Architecture:
        """The architecture with other numbers of blocks."""
        return replace(self, build=partial(self.build, **counts), alike=counts)

    @property
    def joint(self) -> bool:
        """Whether attention is joint, so that words are read as columns of one softmax."""
        return self.blocks != (None, None)


def _sdxl() -> nn.Module:
    unet: nn.Module = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return unet


def _sdxl_inputs(rows: int) -> dict[str, Any]:
    added = {"text_embeds": torch.randn(rows, 1280), "time_ids": torch.randn(rows, 6)}
    return {"timestep": torch.zeros(()), "encoder_hidden_states": torch.randn(rows, 77, 2048), "added_cond_kwargs": added}


def _sd35_medium() -> nn.Module:
    transformer: nn.Module = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    return transformer


def _sd35_inputs(rows: int) -> dict[str, Any]:
    states = {"encoder_hidden_states": torch.randn(rows, 77 + 256, 4096), "pooled_projections": torch.randn(rows, 2048)}
    return {**states, "timestep": torch.randn(rows)}


def _flux_dev(num_layers: int = 19, num_single_layers: int = 38) -> nn.Module:
    transformer: nn.Module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return transformer


def _flux_inputs(rows: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(rows, 512, 4096),
        "pooled_projections": torch.randn(rows, 768),
        "timestep": torch.randn(rows),
        "guidance": torch.randn(rows),
        "img_ids": torch.zeros(4096, 3),
        "txt_ids": torch.zeros(512, 3),
    }


ARCHITECTURES: dict[str, Architecture] = {
    "sdxl": Architecture(
        "SDXL UNet",
        _sdxl,
        (4, 128, 128),
        _sdxl_inputs,
        r"(down_blocks\.2|mid_block|up_blocks\.0)\..*attn2",
        (32, 32),
        20,
    ),
    "sd35_medium": Architecture(
        "Stable Diffusion 3.5 medium",
        _sd35_medium,
        (16, 128, 128),
        _sd35_inputs,
        r"transformer_blocks\.\d+\.attn",
        (64, 64),
        24,
        ((0, 4096), (4096, None)),
    ),
    "flux_dev": Architecture(
        "FLUX.1-dev",
        _flux_dev,
        (4096, 64),
        _flux_inputs,
        r"(single_)?transformer_blocks\.\d+\.attn",
        (64, 64),
        24,
        ((-4096, None), (0, -4096)),
        halves=1,
        alike={"num_layers": 19, "num_single_layers": 38},
    ),
}
"""By name, as published. Guidance reads cross-attention where it does by default: at the coarsest maps of SDXL, in every block
of a transformer."""


# ---------------------------------------------------------------------------------------------------------------- passes


@contextmanager
def _precision(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype for the block, in which new weights are made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Bench:
    """Passes of one architecture on tensors without data.

    Args:
        case: The architecture.
        columns: Columns of words that are read in joint attention.
        device: ``meta`` for tensors without data.
        dtype: Dtype of weights, latents and text states.
    """

    def __init__(
        self, case: Architecture, columns: int = WORDS, device: str = "meta", dtype: torch.dtype = torch.float32
    ) -> None:
        self.case, self.columns, self.device, self.dtype = case, columns, device, dtype
        with torch.device(device), _precision(dtype):
            self.network = case.build().eval().requires_grad_(False)
        names = self._in_order([name for name, _ in self.network.named_modules() if re.fullmatch(case.sites, name)])
        sites = [
            Site(name, "cross", *case.cells, case.heads, "block", 0, float(number), *case.blocks)
            for number, name in enumerate(names)
        ]
        self.modules = {site: self.network.get_submodule(site.name) for site in sites}

    def _in_order(self, names: Sequence[str]) -> list[str]:
        """Modules in the order in which they run; a UNet lists its middle behind its decoder."""
        parts = {"mid_block": 1, "up_blocks": 2, "single_transformer_blocks": 1}
        return sorted(names, key=lambda name: (parts.get(name.split(".")[0], 0), names.index(name)))

    def run(self, rows: int, latents: Tensor | None = None) -> Tensor:
        """Output of one forward pass for ``rows`` rows."""
        given = self.latents(rows) if latents is None else latents
        with torch.device(self.device):
            inputs = tree_map_only(Tensor, self._as_weights, self.case.inputs(rows))
        name = "sample" if isinstance(self.network, UNet2DConditionModel) else "hidden_states"
        answer: Tensor = self.network(**{name: given}, **inputs, return_dict=False)[0]
        return answer

    def _as_weights(self, given: Tensor) -> Tensor:
        """States in the weights' precision; times and positions as they are."""
        return given.to(self.dtype) if given.ndim > 1 and given.shape[-1] > 6 else given

    def latents(self, rows: int = 1) -> Tensor:
        """Latents of ``rows`` rows."""
        return torch.randn(rows, *self.case.latents, device=self.device, dtype=self.dtype)

    def plain(self) -> None:
        """A denoising pass."""
        with torch.no_grad():
            self.run(self.case.halves)

    def guide(self, *, whole: bool = False) -> None:
        """A guide pass of one row: maps are read, and the gradient of a loss on them is taken to the latents.

        Args:
            whole: Compute the prediction as well, as a fused step does; else stop after the last site.
        """
        latents = self.latents().requires_grad_(True)
        torch.autograd.grad(self.loss(latents, whole=whole)[0], latents)

    def loss(self, latents: Tensor, *, whole: bool = False) -> tuple[Tensor, Recorder]:
        """The forward part of :meth:`guide`: loss and maps."""
        recorder, context = Recorder(), pass_context(STEP, "guide", (0,), ("cond",))
        columns = range(1, 1 + self.columns) if self.case.joint else None
        probe = Probe("probs", recorder, kinds=frozenset({"guide"}))
        with ExitStack() as stack:
            attention = stack.enter_context(attach(self.modules, [probe], network=self.network, columns=columns))
            stack.enter_context(attention.during(context, list(self.modules)))
            if not whole:
                stack.enter_context(stop_after(list(self.modules.values())))
            self.run(1, latents)
        return torch.stack([maps.mean() for maps in recorder.tensors.values()]).sum(), recorder

    def fused(self) -> None:
        """The conditional pass with its gradient, and the unconditional one where there is one."""
        self.guide(whole=True)
        if self.case.halves > 1:
            with torch.no_grad():
                self.run(1)
