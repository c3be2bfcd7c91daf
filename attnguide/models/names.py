"""Names a user may give for models, precisions, devices and schedulers. Importing this needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DEFAULT_MODEL = "shapes"

_WEIGHTS = Path(__file__).resolve().parent.parent / "shapes"
EMBEDDED: dict[str, Path] = {DEFAULT_MODEL: _WEIGHTS / "weights", "shapes-mmdit": _WEIGHTS / "weights_mmdit"}
"""Folders of the models that the package carries, by name: a UNet, and a transformer with joint attention."""


def model_path(name: str) -> Path:
    """Folder or file that a model's name stands for; of a hub id there is none."""
    return EMBEDDED.get(name) or Path(name)


OFFLOADS = ("none", "model", "group", "sequential")
"""What is kept in CPU memory: nothing, networks that do not run, all blocks but one, all modules but one."""


@dataclass(frozen=True)
class Family:
    """A pipeline of diffusers that is supported.

    Attributes:
        adapter: ``module:Class`` under ``attnguide.models``.
        parts: Parts that it must have.
        optional: Further networks and tokenizers that it may do without.
        half: Half-precision dtype in which its weights work, the default on a GPU.
        distilled: Whether guidance is distilled into its transformer, which then makes one pass a step: ``always``, ``never``,
            or as ``model_index.json`` says (``is_distilled``).
    """

    adapter: str
    parts: tuple[str, ...]
    optional: tuple[str, ...] = ()
    half: str = "fp16"
    distilled: Literal["never", "always", "index"] = "never"


_TRANSFORMER = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_UNET = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family("unet:StableDiffusion", _UNET),
    "LatentConsistencyModelPipeline": Family("unet:StableDiffusion", _UNET),
    "StableDiffusionXLPipeline": Family("sdxl:StableDiffusionXL", (*_UNET, "text_encoder_2", "tokenizer_2")),
    "StableDiffusion3Pipeline": Family(
        "sd3:StableDiffusion3",
        (*_TRANSFORMER, "text_encoder_2", "tokenizer_2"),
        optional=("text_encoder_3", "tokenizer_3"),
    ),
    "PixArtAlphaPipeline": Family("pixart:PixArtAlpha", _TRANSFORMER),
    "PixArtSigmaPipeline": Family("pixart:PixArtSigma", _TRANSFORMER),
    "AuraFlowPipeline": Family("auraflow:AuraFlow", _TRANSFORMER),
    "QwenImagePipeline": Family("qwen_image:QwenImage", _TRANSFORMER, half="bf16"),
    "QwenImage21Pipeline": Family(
        "qwen_image_21:QwenImage21", ("transformer", "vae", "text_encoder", "processor", "scheduler"), half="bf16"
    ),
    "Lumina2Pipeline": Family("lumina2:Lumina2", _TRANSFORMER, half="bf16"),
    "ZImagePipeline": Family("z_image:ZImage", _TRANSFORMER, half="bf16"),
    "Krea2Pipeline": Family("krea2:Krea2", _TRANSFORMER, half="bf16"),
    "FluxPipeline": Family("flux:Flux", (*_TRANSFORMER, "text_encoder_2", "tokenizer_2"), half="bf16", distilled="always"),
    "ChromaPipeline": Family("chroma:Chroma", _TRANSFORMER, half="bf16"),
    "Flux2Pipeline": Family("flux2:Flux2", _TRANSFORMER, half="bf16", distilled="always"),
    "Flux2KleinPipeline": Family("flux2:Flux2Klein", _TRANSFORMER, half="bf16", distilled="index"),
}
"""Supported pipelines of diffusers by class name.

Derived classes are refused, since whatever they add would be dropped silently.
"""

_KINDS: dict[str, str] = {
    r"Sana": "its self-attention is linear, without a map",
    r"StableCascade|Wuerstchen|Kandinsky|UnCLIP|DeepFloyd|^IF": "it makes a picture in stages of several networks",
    r"Video|Wan|LTX|CogVideo|Mochi|AnimateDiff|Allegro|SkyReels|Cosmos|Latte|EasyAnimate|Helios|PIA|I2V|T2V": "it makes videos",
    r"Audio|Music|AceStep": "it makes sound",
    r"Modular": "modular pipelines are not read",
    r"Inpaint": "it draws inside masks alone; a text-to-image checkpoint of its family takes --inpaint-mask",
}
"""Why some kinds of pipelines are not supported, by a pattern in their names."""


def supported_pipelines() -> str:
    """Names of the supported pipelines, as a list in a sentence."""
    *first, last = FAMILIES
    return f"{', '.join(first)} and {last}"


def no_adapter(name: str) -> str:
    """Error message for an unsupported pipeline class: the reason if known, and the supported classes."""
    why = next((f" ({reason})" for pattern, reason in _KINDS.items() if re.search(pattern, name)), "")
    return f"No adapter for {name}{why}; supported are {supported_pipelines()}."


DTYPE_NAMES: tuple[str, ...] = ("fp32", "fp16", "bf16")

_DTYPES: dict[str, str] = {
    **{name: name for name in DTYPE_NAMES},
    **{"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"},
}

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "plms": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_3m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde_heun": "DPMSolverMultistepScheduler",
    "dpmpp_3m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "dpm_single": "DPMSolverSinglestepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "sa_solver": "SASolverScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
"""Scheduler names and the diffusers class behind each."""

SPACINGS: dict[str, str] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "trailing": "timestep_spacing",
}
"""Suffixes of scheduler names that choose the noise levels, and the option of the diffusers class that each sets."""

NEEDS: dict[str, str] = {"DPMSolverSDEScheduler": "torchsde"}
"""Scheduler classes that diffusers offers only where a further package is installed, and that package."""

_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
_OPTIONS: dict[str, dict[str, Any]] = {
    "plms": {"skip_prk_steps": True},
    "dpmpp_2m": _MULTISTEP,
    "dpmpp_3m": {**_MULTISTEP, "solver_order": 3},
    "dpmpp_2m_sde": {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
    "dpmpp_2m_sde_heun": {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    "dpmpp_3m_sde": {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "dpm_single": _MULTISTEP,
    "deis": {"algorithm_type": "deis", "solver_type": "logrho"},
    "sa_solver": {"algorithm_type": "data_prediction"},
}
"""Options of the diffusers class that a name sets, whatever the model's own scheduler has."""

_FIXED_LEVELS = ("ddim", "ddpm", "pndm", "plms", "euler_ancestral", "lcm", "tcd")
"""Schedulers whose noise levels are those of training timesteps."""

_OWN_SPACING = ("dpm_single", "lcm", "tcd")
"""Schedulers without a choice of where the timesteps lie."""

_ALIASES: dict[str, str] = {
    "euler_a": "euler_ancestral",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "k_lms": "lms",
    "k_heun": "heun",
    "dpm2": "kdpm2",
    "dpm_2": "kdpm2",
    "kdpm_2": "kdpm2",
    "dpm2_a": "kdpm2_ancestral",
    "dpm_2_ancestral": "kdpm2_ancestral",
    "kdpm2_a": "kdpm2_ancestral",
    "kdpm_2_a": "kdpm2_ancestral",
    "dpmpp_2s": "dpm_single",
    "dpm_multi": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
    "uni_pc": "unipc",
    "sasolver": "sa_solver",
}
"""Scheduler names of web UIs and other tools, normalised by :func:`_plain`."""

_UNFIT: dict[str, str] = {
    "ipndm": "its noise levels are those of another kind of model (Dance Diffusion); use 'pndm' or 'deis'",
    "edm_euler": "it is for networks trained with EDM's scaling of inputs (Playground 2.5); use 'euler_karras'",
    "edm_dpmpp_2m": "it is for networks trained with EDM's scaling of inputs (Playground 2.5); use 'dpmpp_2m_karras'",
    "flow_match_euler": "it is for flow-matching models; use 'euler'",
    "flow_match_heun": "it is for flow-matching models; use 'heun'",
    "ddim_inverse": "it makes noise of pictures; to invert one, use source_image or a region's source",
    "dpmpp_2s_a": "diffusers has no such scheduler; the nearest are 'dpmpp_2s' and 'dpmpp_sde'",
    "dpmpp_2s_ancestral": "diffusers has no such scheduler; the nearest are 'dpmpp_2s' and 'dpmpp_sde'",
    "dpm_fast": "diffusers has no such scheduler; the nearest is 'dpmpp_2s'",
    "dpm_adaptive": "its number of steps is not known in advance; the nearest is 'dpmpp_3m'",
    "restart": "diffusers has no such scheduler; the nearest is 'heun'",
}
"""Known schedulers that cannot be used here, with the reason."""


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler by name.

    Attributes:
        name: Name in this package's spelling.
        class_name: Class name in diffusers.
        options: Options of that class that override the model's own scheduler config.
    """

    name: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _with_spacings(base: str) -> dict[str, SchedulerChoice]:
    """A scheduler and its variants with other noise levels, by name."""
    own = _OPTIONS.get(base, {})
    fits = [ending for ending in SPACINGS if base not in (_OWN_SPACING if ending == "trailing" else _FIXED_LEVELS)]
    # The model's own scheduler config may choose other noise levels; the plain name must reset them.
    levels = {SPACINGS[ending]: False for ending in fits if ending != "trailing"}
    found = {base: SchedulerChoice(base, SCHEDULERS[base], {**levels, **own})}
    for ending in fits:
        chosen = {SPACINGS[ending]: "trailing" if ending == "trailing" else True}
        name = f"{base}_{ending}"
        found[name] = SchedulerChoice(name, SCHEDULERS[base], {**levels, **own, **chosen})
    return found


SCHEDULER_CHOICES: dict[str, SchedulerChoice] = {
    name: choice for base in SCHEDULERS for name, choice in _with_spacings(base).items()
}
"""Every scheduler by its full name, suffix included."""


def nearest(word: str, known: Collection[str]) -> str:
    """``" (did you mean 'x'?)"``, or ``""`` if nothing known is close."""
    near = [name for name in known if name.lower() == word.lower()] or difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _plain(name: str) -> str:
    """Normalise a scheduler's name: ``DPM++ 2M Karras`` is ``dpmpp_2m_karras``."""
    spelt = re.sub(r"[\s\-]+", "_", name.strip().lower().replace("++", "pp"))
    return re.sub(r"_(k|sgm_uniform|simple)$", lambda found: "_karras" if found[1] == "k" else "_trailing", spelt)


def scheduler_choice(name: str) -> SchedulerChoice:
    """The scheduler of a name, also in the spelling of web UIs (``DPM++ 2M Karras``, ``Euler a``) or as a diffusers class.

    Raises:
        ValueError: If it is unknown, or no scheduler for these models; the message lists what exists.
    """
    classes = {class_name.lower(): base for base, class_name in reversed(SCHEDULERS.items())}
    plain = classes.get(name.lower(), _plain(name))
    base, _, ending = plain.rpartition("_")
    if ending in SPACINGS and base in _ALIASES:
        plain = f"{_ALIASES[base]}_{ending}"
    plain = _ALIASES.get(plain, plain)
    if plain in SCHEDULER_CHOICES:
        return SCHEDULER_CHOICES[plain]
    base, _, ending = plain.rpartition("_")
    if ending in SPACINGS and base in SCHEDULERS:
        raise ValueError(f"Scheduler {name!r}: {base!r} has no {ending} noise levels.")
    for unfit in (plain, base):
        if unfit in _UNFIT:
            raise ValueError(f"Scheduler {name!r} cannot be used: {_UNFIT[unfit]}.")
    endings = ", ".join(f"_{ending}" for ending in SPACINGS)
    known = [*SCHEDULER_CHOICES, *_ALIASES]
    raise ValueError(
        f"Unknown scheduler {name!r}{nearest(plain, known)}; choose from {', '.join(SCHEDULERS)}; most also with {endings}."
    )


_FLOW: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", ("karras", "exponential", "beta"), {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", (), {}),
    "lcm": ("FlowMatchLCMScheduler", (), {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", (), _OPTIONS["dpmpp_2m"]),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", (), _OPTIONS["dpmpp_3m"]),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", (), _OPTIONS["dpmpp_2m_sde"]),
    "dpmpp_2m_sde_heun": ("DPMSolverMultistepScheduler", (), _OPTIONS["dpmpp_2m_sde_heun"]),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", (), _OPTIONS["dpmpp_3m_sde"]),
    "dpm_single": ("DPMSolverSinglestepScheduler", (), _OPTIONS["dpm_single"]),
    "unipc": ("UniPCMultistepScheduler", (), {}),
}
"""Schedulers for flow-matching models by name: class, suffixes that exist, options."""

_ENDING_IN_NOISE = {"deis": "DEISMultistepScheduler", "sa_solver": "SASolverScheduler"}
"""Schedulers whose last flow-matching noise level diffusers repeats instead of going to 0, so the picture stays noisy."""

FLOW_NAMES: tuple[str, ...] = tuple(_FLOW)
FLOW_CLASSES = frozenset({class_name for class_name, _, _ in _FLOW.values()} | set(_ENDING_IN_NOISE.values()))
"""Scheduler classes of diffusers for flow-matching models; a user's pipeline may have any of them."""


def flow_choice(name: str) -> SchedulerChoice:
    """The scheduler of a name for a network trained by flow matching.

    Raises:
        ValueError: If it is unknown, or there is no such scheduler for these networks; the message lists what exists.
    """
    plain = scheduler_choice(name).name
    base, _, ending = plain.rpartition("_")
    base, ending = (base, ending) if ending in SPACINGS else (plain, "")
    if base not in _FLOW:
        why = "leaves noise in pictures of" if base in _ENDING_IN_NOISE else "does not exist for"
        raise ValueError(f"Scheduler {name!r} {why} flow-matching models; choose from {', '.join(_FLOW)}.")
    class_name, endings, options = _FLOW[base]
    if ending and ending not in endings:
        others = f"; it has {', '.join(endings)}" if endings else ""
        raise ValueError(f"Scheduler {name!r}: {base!r} has no {ending} noise levels for flow-matching models{others}.")
    levels = {SPACINGS[known]: known == ending for known in endings}
    return SchedulerChoice(plain, class_name, {**levels, **options})


def check_scheduler(name: str) -> str:
    """The name as this package spells it.

    Raises:
        ValueError: As for :func:`scheduler_choice`.
    """
    return scheduler_choice(name).name


def check_offload(name: str) -> str:
    """Check that a name is one of :data:`OFFLOADS`, and return it.

    Raises:
        ValueError: If it is not.
    """
    if name not in OFFLOADS:
        raise ValueError(f"offload must be one of {', '.join(OFFLOADS)}; got {name!r}.")
    return name


def check_dtype(name: str) -> str:
    """``fp32``, ``fp16`` or ``bf16`` for any of their names: ``float32``, ``half``, ``torch.bfloat16``.

    Raises:
        ValueError: If it is unknown; the message lists what exists.
    """
    plain = str(name).strip().lower().removeprefix("torch.")
    if plain in _DTYPES:
        return _DTYPES[plain]
    raise ValueError(f"Unknown dtype {name!r}{nearest(plain, _DTYPES)}; choose from {', '.join(DTYPE_NAMES)}.")


def check_device(name: str) -> str:
    """Check the form of a device name and return it; whether this machine has the device is not checked.

    Raises:
        ValueError: If it is no device name.
    """
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        return name
    raise ValueError(f"Unknown device {name!r}; choose from cpu, cuda, cuda:N, mps.")
