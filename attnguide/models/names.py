"""Names a user may give for models, precisions, devices and schedulers. Importing this needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

DEFAULT_MODEL = "shapes"

DTYPE_NAMES: tuple[str, ...] = ("fp32", "fp16", "bf16")

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpm_single": "DPMSolverSinglestepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Scheduler names and the diffusers class behind each."""


def nearest(word: str, known: Collection[str]) -> str:
    """``" (did you mean 'x'?)"``, or ``""`` if nothing known is close."""
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_scheduler(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: If it is unknown; the message lists what exists.
    """
    if name in SCHEDULERS:
        return name
    raise ValueError(f"Unknown scheduler {name!r}{nearest(name, SCHEDULERS)}; choose from {', '.join(SCHEDULERS)}.")


def check_dtype(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: If it is unknown; the message lists what exists.
    """
    if name in DTYPE_NAMES:
        return name
    raise ValueError(f"Unknown dtype {name!r}{nearest(name, DTYPE_NAMES)}; choose from {', '.join(DTYPE_NAMES)}.")


def check_device(name: str) -> str:
    """The name itself; whether this machine has the device is not asked.

    Raises:
        ValueError: If it is no device's name.
    """
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        return name
    raise ValueError(f"Unknown device {name!r}; choose from cpu, cuda, cuda:N, mps.")
