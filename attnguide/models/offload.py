"""Where a pipeline's networks compute, and where their weights wait."""

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
    """Where a pipeline's networks compute, and where their weights wait.

    Attributes:
        device: Where the networks compute.
        dtype: Of the weights.
        offload: ``none`` keeps all networks there. ``model`` keeps one network at a time there, ``group`` one block of a
            network, ``sequential`` one module; the rest waits in the CPU's memory.

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
        """Place a pipeline of diffusers that is on the CPU.

        Raises:
            ValueError: If a package is missing.
        """
        # A UNet's parts are all of one precision; of T5's weights some stay in float32, as it needs them.
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
    """All weights of a pipeline in the CPU's memory, but for the block that computes on ``device``."""
    # Without a stream: what is fetched ahead follows the order of the first pass, and guide passes end early.
    pipeline.enable_group_offload(onload_device=device, offload_type="block_level", num_blocks_per_group=1)


def is_offloaded(networks: Iterable[nn.Module | None]) -> bool:
    """Whether hooks of diffusers or accelerate bring weights in when they are needed, so that nobody else may move them."""
    found = [hook for network in networks if network is not None for hook in foreign_hooks({"": network})]
    return bool(_OFFLOADING & set(found))


def computing_device(pipeline: Any, network: nn.Module) -> torch.device:
    """Where a network computes, wherever its weights are at the moment."""
    modules = {"": network, **dict(network.named_children())}
    device: torch.device = next(network.parameters()).device
    if foreign_hooks(modules):
        device = torch.device(pipeline._execution_device)
    return device
