"""Placement of a pipeline's networks: compute device, dtype and offloading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnguide.attention.hooks import foreign_hooks
from attnguide.models.names import check_offload

_OFFLOADING = frozenset(
    {"CpuOffload", "AlignDevicesHook", "SequentialHook", "GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook"}
)


@dataclass(frozen=True)
class Placement:
    """Placement of a pipeline's networks.

    Attributes:
        device: Device that the networks compute on.
        dtype: Dtype of the weights.
        offload: ``none`` keeps all networks on the device; ``model`` one network at a time, ``group`` one block of a
            network, ``sequential`` one module, with the rest in CPU memory.

    Raises:
        ValueError: If ``offload`` is unknown, or there is no device to offload from.
    """

    device: torch.device
    dtype: torch.dtype
    offload: str = "none"

    def __post_init__(self) -> None:
        check_offload(self.offload)
        if self.offload != "none" and self.device.type == "cpu":
            raise ValueError(
                f"offload {self.offload!r} keeps weights in the CPU's memory and brings them to a GPU; the device is 'cpu'."
            )

    def put(self, pipeline: Any) -> Any:
        """Move a diffusers pipeline from the CPU to its place, or install offloading hooks.

        Raises:
            ValueError: If offloading needs a package that is missing.
        """
        # UNet pipelines have one dtype throughout; others may have a T5, which keeps some weights in float32.
        pipeline = pipeline.to(self.dtype) if hasattr(pipeline, "unet") else pipeline
        if self.offload == "none":
            return pipeline.to(self.device)
        try:
            if self.offload == "group":
                offload_blocks(pipeline, self.device)
            elif self.offload == "model":
                pipeline.enable_model_cpu_offload(device=self.device)
            else:
                pipeline.enable_sequential_cpu_offload(device=self.device)
        except ImportError as error:
            raise ValueError(f"offload {self.offload!r} needs the package accelerate (pip install accelerate).") from error
        return pipeline


def offload_blocks(pipeline: Any, device: torch.device) -> None:
    """Keep all weights of a pipeline in CPU memory except the block that runs on ``device``."""
    # Without a stream: prefetching follows the order of the first pass, and guide passes end early.
    pipeline.enable_group_offload(onload_device=device, offload_type="block_level", num_blocks_per_group=1)


def is_offloaded(networks: Iterable[nn.Module | None]) -> bool:
    """Whether offloading hooks of diffusers or accelerate manage the networks' weights, so that nobody else may move them."""
    found = [hook for network in networks if network is not None for hook in foreign_hooks({"": network})]
    return bool(_OFFLOADING & set(found))


def computing_device(pipeline: Any, network: nn.Module) -> torch.device:
    """Device that a network computes on, even while its weights are offloaded."""
    modules = {"": network, **dict(network.named_children())}
    device: torch.device = next(network.parameters()).device
    if foreign_hooks(modules):
        device = torch.device(pipeline._execution_device)
    return device
