"""Noise schedulers of diffusers behind a common interface, which knows when latents may be changed."""

from attnguide.models.schedulers.base import NoiseScheduler as NoiseScheduler
from attnguide.models.schedulers.base import unpatched_copy as unpatched_copy
from attnguide.models.schedulers.base import written_config as written_config
from attnguide.models.schedulers.discrete import DiscreteScheduler as DiscreteScheduler
from attnguide.models.schedulers.discrete import make_discrete as make_discrete
from attnguide.models.schedulers.discrete import named_scheduler as named_scheduler
from attnguide.models.schedulers.discrete import scheduler_class as scheduler_class
from attnguide.models.schedulers.flow import FlowScheduler as FlowScheduler
from attnguide.models.schedulers.flow import is_flow as is_flow
from attnguide.models.schedulers.flow import make_flow as make_flow
from attnguide.models.schedulers.flow import named_flow_scheduler as named_flow_scheduler
from attnguide.models.schedulers.flow import size_shift as size_shift
