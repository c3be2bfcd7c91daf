"""The contract between the sampler and a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attnguide.attention.sites import Site, levels_of
from attnguide.attention.weights import weights_on_demand
from attnguide.models.fitting import Reads
from attnguide.models.gradients import check_quantiser, check_weights
from attnguide.models.locks import exclusive
from attnguide.models.pictures import Autoencoding
from attnguide.models.pictures import Picture as Picture
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Branch, PassContext, Sample, Step


def halves(sample: Sample, *, distilled: bool = False) -> tuple[Branch, ...]:
    """The branches of a plain denoising pass of a row: both halves of classifier-free guidance, or the conditional one alone.

    The only place that decides it.

    Args:
        sample: The row; at a ``cfg_scale`` of 1 or below it has no unconditional half.
        distilled: Whether the network reads ``cfg_scale`` as a condition instead: both halves then only with a
            ``true_cfg_scale`` above 1 and a negative prompt.
    """
    both = sample.cfg_scale > 1
    if distilled:
        both = sample.true_cfg_scale > 1 and sample.negative_prompt is not None
    return ("uncond", "cond") if both else ("cond",)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Inputs of the network besides latents and timestep, for every row and both CFG halves.

    Attributes:
        cond: Text states of the prompts, ``batch tokens channels``.
        uncond: Text states of the negative prompts, or ``None`` when no row uses classifier-free guidance.
        extra: Further inputs of a family (pooled states, masks) by name, each a pair ``(cond, uncond)``.
    """

    cond: Tensor
    uncond: Tensor | None = None
    extra: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of tokens of the longer half."""
        return max(half.shape[1] for half in (self.cond, self.uncond) if half is not None)

    def padded(self, length: int) -> Conditioning:
        """Text states padded with zeros to ``length`` tokens; masks (bool tensors in ``extra``) are padded with False.

        Raises:
            ValueError: If padding is needed and there is no mask, so that the network would attend to it.
        """
        masks = {name: pair for name, pair in self.extra.items() if pair[0].dtype == torch.bool}
        halves = [half for half in (self.cond, self.uncond) if half is not None]
        if not masks and any(half.shape[1] != length for half in halves):
            raise ValueError(f"Texts of {self.length} and {length} tokens cannot share a pass: there is no mask for padding.")
        pairs = {name: _longer_pair(pair, length) for name, pair in masks.items()}
        return Conditioning(*_longer_pair((self.cond, self.uncond), length), {**self.extra, **pairs})

    def half(self, *, uncond: bool) -> Conditioning:
        """Text states of one half for every row, held in ``cond``.

        Raises:
            ValueError: If the unconditional half is asked for and no negative prompt was encoded.
        """
        if uncond and self.uncond is None:
            raise ValueError("An unconditional pass was asked for, but no negative prompt was encoded.")
        pairs = {name: pair[1 if uncond else 0] for name, pair in self.extra.items()}
        extra = {name: (states, None) for name, states in pairs.items() if states is not None}
        return Conditioning(self.uncond if uncond and self.uncond is not None else self.cond, None, extra)

    def for_pass(self, context: PassContext) -> Conditioning:
        """Text states of one pass, one for each batch element of ``context``, all held in ``cond``."""

        def pick(cond: Tensor, uncond: Tensor | None) -> Tensor:
            parts = []
            for row, branch in zip(context.rows, context.branches, strict=True):
                half = uncond if branch == "uncond" else cond
                if half is None:
                    raise ValueError("An unconditional pass was asked for, but no negative prompt was encoded.")
                parts.append(half[row])
            return torch.stack(parts)

        extra = {name: (pick(*pair), None) for name, pair in self.extra.items()}
        return Conditioning(pick(self.cond, self.uncond), None, extra)


def _longer_pair(pair: tuple[Tensor, Tensor | None], length: int) -> tuple[Tensor, Tensor | None]:
    """Both halves padded with zeros to ``length`` on axis 1."""
    first, second = pair
    return _longer(first, length), None if second is None else _longer(second, length)


def _longer(half: Tensor, length: int) -> Tensor:
    missing = length - half.shape[1]
    return half if missing == 0 else torch.cat([half, half.new_zeros(len(half), missing, *half.shape[2:])], 1)


class ModelAdapter(Autoencoding, ABC):
    """Common interface to one family of text-to-image models.

    Attributes:
        kinds: Class names in diffusers that a pipeline's ``transformer`` may have.
        reads: Text encoders by the network's config entry that holds the channels of their states.
        packs: Latent cells packed into the channels of one token before the transformer reads them.
        name: Display name: the folder, hub id or class that the model came from.
        one_length: Whether the network's positions depend on the text's length, so that texts of different lengths are read in
            forwards of their own.
        controlnets: Loaded ControlNets by type of control picture; empty by default.
        repacks_text: Whether the network drops a text's padding, so that no further text can be appended to it.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Reads] = {}
    packs: ClassVar[int] = 1
    name: str
    one_length: ClassVar[bool] = False
    repacks_text: ClassVar[bool] = False

    def __init__(self, pipeline: Any, name: str = "pipeline") -> None:
        self.pipeline, self.name = pipeline, name
        self.controlnets: dict[str, nn.Module] = {}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        """Reasons why a pipeline's parts are not supported; each check assumes that the earlier ones passed."""
        yield from ()

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device that the network runs on."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""

    @property
    def latents_dtype(self) -> torch.dtype:
        """Dtype of latents between evaluations and of the noise drawn for them: the network's in most families."""
        return self.dtype

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """``(height, width)`` of the pictures it was trained on, in pixels."""

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Torch modules of the pipeline by name, for a runner that registers or moves them."""

    @property
    def network(self) -> nn.Module:
        """The network whose attention is steered; the sites' names are paths in it."""
        return next(iter(self.networks.values()))

    @abstractmethod
    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Tokens with character offsets; ``truncated`` holds the words past the end of what the text encoder reads."""

    @property
    def cuts_padding(self) -> bool:
        """Whether methods see only the words, end tokens and sinks of the text, not the padding that the network reads.

        False for UNets, whose methods were published with all of CLIP's 77 positions; True where padding is most of the text.
        """
        return False

    @property
    def guidance_distilled(self) -> bool:
        """Whether guidance is distilled into the network: no unconditional half; most read the weight as a condition."""
        return False

    @property
    def true_cfg(self) -> bool:
        """Whether a guidance-distilled network can run an unconditional half besides (``true_cfg_scale``)."""
        return False

    def halves(self, sample: Sample) -> tuple[Branch, ...]:
        """The branches of a plain denoising pass of a row."""
        return halves(sample, distilled=self.guidance_distilled)

    def combining_scale(self, sample: Sample) -> float:
        """Classifier-free guidance weight that combines a row's halves; distilled guidance is not part of it."""
        if "uncond" not in self.halves(sample):
            return 1.0
        return sample.true_cfg_scale if self.guidance_distilled else sample.cfg_scale

    def check_row(self, sample: Sample) -> None:
        """Refuse a row that asks for what the model cannot do.

        Raises:
            ValueError: If the picture's size does not divide evenly, nothing would read the negative prompt, or
                ``true_cfg_scale`` means nothing for the model or for the row.
        """
        self.latent_shape(sample.height or self.default_size[0], sample.width or self.default_size[1])
        if sample.true_cfg_scale != 1 and not self.true_cfg:
            raise ValueError(
                f"true_cfg_scale is for models that read cfg_scale as a condition and can run an unconditional half besides "
                f"(FLUX.1-dev); {self.name} is none, use cfg_scale; got {sample.true_cfg_scale:g}."
            )
        if sample.negative_prompt and self.guidance_distilled and not self.true_cfg:
            raise ValueError(
                f"negative_prompt: {self.name} is distilled for guidance and has no unconditional half to read it; "
                f"got {sample.negative_prompt!r}."
            )
        if self.guidance_distilled and self.true_cfg and "uncond" not in self.halves(sample):
            self._check_second_half(sample)

    def _check_second_half(self, sample: Sample) -> None:
        """Refuse a row that has no unconditional half but sets ``true_cfg_scale`` or a negative prompt."""
        if sample.true_cfg_scale > 1:
            raise ValueError(
                f"true_cfg_scale above 1 needs a negative_prompt, which may be empty, for {self.name} to run an unconditional "
                f"half; got {sample.true_cfg_scale:g} and no negative_prompt."
            )
        if sample.negative_prompt:
            raise ValueError(
                f"negative_prompt: {self.name} reads one with a true_cfg_scale above 1 only; got {sample.negative_prompt!r} "
                f"and {sample.true_cfg_scale:g}."
            )

    def remarks(self, sample: Sample) -> Iterator[str]:
        """Warnings where the model treats a setting otherwise than the row may mean; the same text for all such rows."""
        yield from ()

    def check_gradients(self) -> None:
        """Refuse networks that give no gradients, or wrong ones.

        Raises:
            ValueError: Naming the network, and what would work.
        """
        for name, network in self.networks.items():
            check_weights(name, network)
        check_quantiser(self.network)

    @abstractmethod
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        """Text states of prompts, and of negative prompts where any row has an unconditional half.

        Args:
            prompts: One per row.
            negative_prompts: One per row, ``None`` where the row says none; ``None`` when no row has an unconditional half.
            cfg_scales: One per row, for a network that reads the guidance weight as a condition; 1 each when ``None``.
        """

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(channels, height, width)`` of the latents of a picture of this size in pixels.

        Raises:
            ValueError: If the size does not divide evenly.
        """

    @abstractmethod
    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """Attention modules by site, for a picture of this size in pixels, in the network's own order."""

    def feature_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """Modules whose output is a feature map, by site of the kind ``feature``; none where a family offers none."""
        return {}

    @abstractmethod
    def predict(
        self, latents: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        """Run the network.

        Args:
            latents: Scaled network input, ``batch channels height width``.
            step: Evaluation of the schedule.
            conditioning: Inputs of exactly these batch elements (:meth:`Conditioning.for_pass`).
            until: Stop after the last of these sites and return ``None``.
        """

    def after_cfg(self, combined: Tensor, cond: Tensor) -> Tensor:
        """The family's correction of the combined prediction, ``batch channels height width``; none in most families.

        Args:
            combined: Prediction after classifier-free guidance; ``cond`` itself in rows without an unconditional half.
            cond: Prediction of the conditional half.
        """
        return combined

    @abstractmethod
    def make_scheduler(self, name: str | None, steps: int, latent_shape: tuple[int, int, int] | None = None) -> NoiseScheduler:
        """A fresh noise scheduler, set to a number of steps.

        Args:
            name: Scheduler name; the model's own scheduler when ``None``.
            steps: Denoising steps.
            latent_shape: ``(channels, height, width)`` of the latents, on which some schedules depend; that of a picture of
                the default size when ``None``.
        """

    @property
    def inversion_scheduler(self) -> str:
        """Name of the deterministic scheduler whose steps inversion undoes."""
        return "ddim"

    def attention_sites(self, height: int, width: int) -> tuple[Site, ...]:
        """Sites of a picture of this size in pixels."""
        return tuple(self.attention_modules(height, width))

    @property
    def guidance_level(self) -> int:
        """Default level of the maps that guidance reads, counted as :attr:`SiteSelector.levels`.

        This is 16x16 for Stable Diffusion 1.x, 24x24 for 2.x at 768 pixels, and the coarsest maps where all are larger.
        """
        cross = [site for site in self.attention_sites(*self.default_size) if site.kind == "cross"]
        levels = levels_of(cross)
        fitting = [site.level for site in cross if max(site.height, site.width) <= 24]
        return levels.index(min(fitting)) if fitting else len(levels) - 1

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the networks and the tokenizer (neither is thread-safe) for this thread; other threads wait.

        Meanwhile torch's default device is the CPU, whatever the user set, so that a seed gives the same noise.
        """
        elsewhere = torch.get_default_device().type != "cpu"
        with exclusive(network for network in self.networks.values() if network is not None):
            with torch.device("cpu") if elsewhere else nullcontext():
                yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put all modules in evaluation mode, locked for this thread; each module's mode is restored afterwards."""
        with self.exclusive():
            before, self._walked = self._walked, self._modules()
            training = [module for module in self._walked if module.training]
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                self._walked = before
                for module in training:
                    module.training = True

    def enable_checkpointing(self) -> None:
        """Switch on the network's gradient checkpointing.

        Raises:
            ValueError: If the network's class does not support it.
        """
        if not getattr(self.network, "_supports_gradient_checkpointing", False):
            raise ValueError(f"checkpointing: {type(self.network).__name__} cannot compute its activations anew.")
        self.network.enable_gradient_checkpointing()  # type: ignore[operator]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Set ``requires_grad`` of all weights to False, locked for this thread; each is restored afterwards.

        Use it for passes with gradients only: torch folds some matrix products differently for weights that require none, so
        freezing in other passes would change the last bits of a plain picture.
        """
        with self.exclusive():
            modules = self._modules() if self._walked is None else self._walked
            places: list[tuple[Any, str]] = [(module._parameters, name) for module in modules for name in module._parameters]
            places = [(own, name) for own, name in places if own[name] is not None and own[name].requires_grad]
            try:
                for own, name in places:
                    own[name].requires_grad = False
                with weights_on_demand(self.network):
                    yield
            finally:
                for own, name in places:  # whatever stands there now: offloading puts new weights in the place of the old
                    own[name].requires_grad = True

    def _modules(self) -> list[nn.Module]:
        return [module for network in self.networks.values() if network is not None for module in network.modules()]

    _walked: list[nn.Module] | None = None
    """Cache of all modules during a run, as walking the networks at every guided step would take too long."""
