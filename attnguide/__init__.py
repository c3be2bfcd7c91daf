"""Steer text-to-image diffusion models through their attention maps, and measure it.

Importing this does no work: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES: dict[str, str] = {
    # one call
    "sample": "attnguide.api",
    "steer": "attnguide.steered",
    "SteerError": "attnguide.steering.errors",
    # nouns
    "MapSource": "attnguide.types",
    "MethodConfig": "attnguide.types",
    "PassContext": "attnguide.types",
    "Region": "attnguide.types",
    "Sample": "attnguide.types",
    "SampleResult": "attnguide.types",
    "Step": "attnguide.types",
    # models and rows
    "adapt": "attnguide.api",
    "load_model": "attnguide.models.load",
    "prompt_embeds": "attnguide.models.embeds",
    "read_samples": "attnguide.rows.tables",
    # the engine, in plain torch
    "Observer": "attnguide.engine.observer",
    "Sampler": "attnguide.sampling.sampler",
    "sample_rows": "attnguide.sampling.table",
    # in a notebook
    "ConceptAttention": "attnguide.figures.concepts",
    "Watch": "attnguide.figures.watch",
    "plot": "attnguide.figures.plot",
    # judges
    "Asked": "attnguide.judges",
    "AskedObject": "attnguide.judges",
    "Detection": "attnguide.judges",
    "Judge": "attnguide.judges",
    "Seen": "attnguide.judges",
    "open_judge": "attnguide.judges",
    # methods of one's own
    "METHODS": "attnguide.methods",
    "MethodInfo": "attnguide.methods",
    "AttentionMaps": "attnguide.attention.maps",
    "Edit": "attnguide.attention.edits",
    "Guidance": "attnguide.guidance.base",
    "Injection": "attnguide.injection.base",
    "LossOutput": "attnguide.guidance.base",
    "PerRow": "attnguide.guidance.update",
    "Site": "attnguide.attention.sites",
    "SiteSelector": "attnguide.attention.sites",
    "Targets": "attnguide.prompt.targets",
    "Update": "attnguide.guidance.update",
    "Window": "attnguide.schedules",
    "WindowEdit": "attnguide.injection.base",
    "noise_variance": "attnguide.schedules",
    "region_maps": "attnguide.prompt.targets",
    "sqrt_linear": "attnguide.schedules",
    # families of models of one's own
    "Conditioning": "attnguide.models.base",
    "TextReader": "attnguide.models.readers",
    "TokenizedPrompt": "attnguide.prompt.tokens",
    "TransformerAdapter": "attnguide.models.transformer",
    "text_first": "attnguide.models.transformer",
    # under Lightning
    "GuidanceModule": "attnguide.module",
    "SampleDataModule": "attnguide.data",
    "SamplingCallback": "attnguide.callbacks",
    "make_trainer": "attnguide.module",
    "standard_callbacks": "attnguide.callbacks",
}
"""Public name -> module; the imports below say the same to type checkers, which see no ``__getattr__``."""

if TYPE_CHECKING:
    from attnguide.api import adapt as adapt
    from attnguide.api import sample as sample
    from attnguide.attention.edits import Edit as Edit
    from attnguide.attention.maps import AttentionMaps as AttentionMaps
    from attnguide.attention.sites import Site as Site
    from attnguide.attention.sites import SiteSelector as SiteSelector
    from attnguide.callbacks import SamplingCallback as SamplingCallback
    from attnguide.callbacks import standard_callbacks as standard_callbacks
    from attnguide.data import SampleDataModule as SampleDataModule
    from attnguide.engine.observer import Observer as Observer
    from attnguide.figures.concepts import ConceptAttention as ConceptAttention
    from attnguide.figures.plot import plot as plot
    from attnguide.figures.watch import Watch as Watch
    from attnguide.guidance.base import Guidance as Guidance
    from attnguide.guidance.base import LossOutput as LossOutput
    from attnguide.guidance.update import PerRow as PerRow
    from attnguide.guidance.update import Update as Update
    from attnguide.injection.base import Injection as Injection
    from attnguide.injection.base import WindowEdit as WindowEdit
    from attnguide.judges import Asked as Asked
    from attnguide.judges import AskedObject as AskedObject
    from attnguide.judges import Detection as Detection
    from attnguide.judges import Judge as Judge
    from attnguide.judges import Seen as Seen
    from attnguide.judges import open_judge as open_judge
    from attnguide.methods import METHODS as METHODS
    from attnguide.methods import MethodInfo as MethodInfo
    from attnguide.models.base import Conditioning as Conditioning
    from attnguide.models.embeds import prompt_embeds as prompt_embeds
    from attnguide.models.load import load_model as load_model
    from attnguide.models.readers import TextReader as TextReader
    from attnguide.models.transformer import TransformerAdapter as TransformerAdapter
    from attnguide.models.transformer import text_first as text_first
    from attnguide.module import GuidanceModule as GuidanceModule
    from attnguide.module import make_trainer as make_trainer
    from attnguide.prompt.targets import Targets as Targets
    from attnguide.prompt.targets import region_maps as region_maps
    from attnguide.prompt.tokens import TokenizedPrompt as TokenizedPrompt
    from attnguide.rows.tables import read_samples as read_samples
    from attnguide.sampling.sampler import Sampler as Sampler
    from attnguide.sampling.table import sample_rows as sample_rows
    from attnguide.schedules import Window as Window
    from attnguide.schedules import noise_variance as noise_variance
    from attnguide.schedules import sqrt_linear as sqrt_linear
    from attnguide.steered import steer as steer
    from attnguide.steering.errors import SteerError as SteerError
    from attnguide.types import MapSource as MapSource
    from attnguide.types import MethodConfig as MethodConfig
    from attnguide.types import PassContext as PassContext
    from attnguide.types import Region as Region
    from attnguide.types import Sample as Sample
    from attnguide.types import SampleResult as SampleResult
    from attnguide.types import Step as Step
else:
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'attnguide' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return __all__
