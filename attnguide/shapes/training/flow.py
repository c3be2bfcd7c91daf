"""Lightning module for training T5 and transformer together, by flow matching on cached latents."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from attnguide.shapes.training.drawing import NAMES, TOKENS_A_SIDE, Reader
from attnguide.shapes.training.mmdit import SMALL, Size, build_flux_pipeline, build_t5, build_t5_tokenizer, build_transformer
from attnguide.shapes.training.muon import Muon, split_parameters
from attnguide.shapes.training.pace import Progress, paced
from attnguide.shapes.training.preview import plain_preview


def pack(latents: Tensor) -> Tensor:
    """Pack latents ``batch channels height width`` into FLUX's image tokens of 2x2 cells, ``batch tokens (4 channels)``."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def grid_positions(height: int, width: int) -> Tensor:
    """Rotary positions of image tokens in FLUX, ``tokens 3``: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).float()


def draw_noise_levels(count: int, shift: float = 1.5, device: torch.device | None = None) -> Tensor:
    """``count`` noise levels in (0, 1), logistic-normal, stratified over quantiles and shifted towards noise.

    ``s -> shift s / (1 + (shift - 1) s)`` as in `Esser et al., 2024 <https://arxiv.org/abs/2403.03206>`_.
    """
    shares = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    level = torch.special.ndtri(shares.clamp(1e-4, 1 - 1e-4)).sigmoid()
    return shift * level / (1 + (shift - 1) * level)


def initialise(transformer: nn.Module) -> None:
    """Xavier-uniform matrices; modulations and the last layer start at 0, so that every block starts as the identity.

    As in `Peebles & Xie, 2023 <https://arxiv.org/abs/2212.09748>`_.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            if "norm" in name or name == "proj_out":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class ContentHead(nn.Module):
    """Linear classifier of what each image token shows, on a middle block's states; trained with the network, not exported.

    Aligning middle states with those of a recognition network speeds up training
    (`Yu et al., 2024 <https://arxiv.org/abs/2410.06940>`_); here exact labels take the place of that network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(names) for names in NAMES]
        self.classes = nn.Linear(width, sum(self.sizes))

    def forward(self, states: Tensor, contents: Tensor) -> Tensor:
        """Mean cross-entropy of shape plus that of colour: states ``batch tokens width``, contents ``batch tokens 2``."""
        shapes, colors = self.classes(states).split(self.sizes, -1)
        return F.cross_entropy(shapes.mT, contents[..., 0]) + F.cross_entropy(colors.mT, contents[..., 1])


class FlowModule(L.LightningModule):
    """Trains T5 and transformer by squared error on the velocity ``noise - latents``; captions and pooled vectors are dropped.

    Args:
        clip: Tokenizer and text encoder whose pooled vector the transformer reads; not trained.
        progress: Share of the training that is done, for the learning-rate schedule.
        lr: Peak learning rate of Muon's matrices; the rest has half of it.
        content_weight: Weight of :class:`ContentHead`'s loss.
        drop_pooled: Share of rows whose pooled vector is the empty prompt's, so that the text tokens carry the content.
        size: Size of the transformer.
        compile_blocks: Run each block through ``torch.compile``; blocks of a kind share one compilation.
        vae: Autoencoder that decodes the preview pictures of validation; no previews when ``None``.
        previews: Folder for grids of preview pictures.
    """

    def __init__(
        self,
        clip: tuple[CLIPTokenizer, CLIPTextModel],
        progress: Progress,
        lr: float = 4e-3,
        content_weight: float = 0.1,
        drop_pooled: float = 0.3,
        size: Size = SMALL,
        compile_blocks: bool = False,
        vae: AutoencoderKL | None = None,
        previews: Path | None = None,
    ) -> None:
        super().__init__()
        self.progress, self.lr, self.content_weight, self.drop_pooled = progress, lr, content_weight, drop_pooled
        self.previews, self.tokenizers = previews, (clip[0], build_t5_tokenizer())
        frozen = {"clip": clip[1].eval().requires_grad_(False), "vae": vae}
        object.__setattr__(self, "_frozen", frozen)  # not submodules: neither trained nor saved here
        self.register_buffer("empty_clip_ids", torch.from_numpy(Reader(clip[0])([""])[0]).long(), persistent=False)
        self.register_buffer("places", grid_positions(TOKENS_A_SIDE, TOKENS_A_SIDE), persistent=False)
        self.t5 = build_t5(self.tokenizers[1])
        self.transformer = build_transformer(*size)
        initialise(self.transformer)
        self.content = ContentHead(self.transformer.inner_dim)
        self.middle: Tensor | None = None
        self.transformer.single_transformer_blocks[0].register_forward_hook(self._keep_middle)
        if compile_blocks:
            for block in (*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks):
                block.compile()

    def load_weights(self, pipeline: Path) -> None:
        """Begin from the T5 and transformer of a pipeline folder, whatever precision they were saved in."""
        for network, name in ((self.t5, "text_encoder_2"), (self.transformer, "transformer")):
            saved = type(network).from_pretrained(pipeline / name)
            network.load_state_dict(saved.float().state_dict())

    def _keep_middle(self, block: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        if self.training:
            self.middle = output[1]

    empty_clip_ids: Tensor
    places: Tensor

    @torch.no_grad()
    def pooled(self, clip_ids: Tensor) -> Tensor:
        """CLIP's pooled vectors of token ids, a share ``drop_pooled`` of them replaced by the empty prompt's."""
        dropped = torch.rand(len(clip_ids), 1, device=clip_ids.device) < self.drop_pooled
        clip: CLIPTextModel = self.__dict__["_frozen"]["clip"].to(clip_ids.device)
        vectors: Tensor = clip(torch.where(dropped, self.empty_clip_ids, clip_ids)).pooler_output
        return vectors

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        latents = pack(batch["latents"])
        noise = torch.randn_like(latents)
        levels = draw_noise_levels(len(latents), device=latents.device)
        mixed = torch.lerp(latents, noise, levels[:, None, None])
        velocity = self.transformer(
            hidden_states=mixed,
            encoder_hidden_states=self.t5(batch["t5_ids"]).last_hidden_state,
            pooled_projections=self.pooled(batch["clip_ids"]),
            timestep=levels,
            img_ids=self.places,
            txt_ids=torch.zeros(batch["t5_ids"].shape[1], 3, device=latents.device),
        ).sample
        error = F.mse_loss(velocity.float(), noise - latents)
        middle, self.middle = self.middle, None
        assert middle is not None
        content = self.content(middle, batch["contents"])
        self.log_dict({"flow/error": error, "flow/content": content}, prog_bar=True)
        return error + self.content_weight * content

    def pipeline(self, vae: AutoencoderKL) -> FluxPipeline:
        """A pipeline of the current networks, which are shared and not copied, with an autoencoder."""
        clip = (self.tokenizers[0], self.__dict__["_frozen"]["clip"])
        return build_flux_pipeline(vae, clip, (self.tokenizers[1], self.t5), self.transformer)

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        vae = self.__dict__["_frozen"]["vae"]
        if vae is None or self.previews is None or self.global_rank:
            return
        pipeline = self.pipeline(vae.to(self.device))
        self.log_dict(plain_preview(pipeline, batch, self.previews / f"{self.global_step:06d}.png"), batch_size=len(batch))

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        return paced(Muon(*split_parameters(self), lr=self.lr, rest_lr=self.lr / 2), self.progress)
