import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.types import Step
from tests import tiny


class _Spread(Guidance):
    """A method in its smallest form: the first word's attention should be spread evenly."""

    name = "spread"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[set[tuple[str, int]], torch.Size, torch.dtype, bool]] = []
        self.started = 0

    def start(self, targets: Targets) -> None:
        self.started += 1

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        site, probs = next(iter(maps.probs.items()))
        self.seen.append(({(s.kind, s.level) for s in maps.probs}, probs.shape, probs.dtype, probs.requires_grad))
        found: Tensor = maps.average(site.height, site.width)[..., 2].flatten(1).std(1)
        return LossOutput(found, found.detach())


class _Moves(Observer):
    def __init__(self) -> None:
        self.count = 0
        self.batches: list[BatchInfo] = []

    def on_guidance_update(self, event: object) -> None:
        self.count += 1


def test_a_new_method_is_a_loss() -> None:
    method, observer = _Spread(), _Moves()
    plain = Sampler(tiny.model()).run([tiny.row()])[0].latents
    moved = Sampler(tiny.model(), [method], observer=observer).run([tiny.row()])[0].latents
    assert plain is not None and moved is not None and not torch.equal(plain, moved)
    assert observer.count == 4 and method.started == 1
    # By default: the cross-attention maps of the model's guidance level, conditional half, float32, with gradient.
    assert method.seen == [({("cross", 0)}, torch.Size((1, 2, 256, tiny.LENGTH)), torch.float32, True)] * 4


def test_by_default_any_place_will_do() -> None:
    _Spread().check(Targets.build([tiny.row()], [tiny.model().tokenize(tiny.PROMPT)], "cpu"), [Site("a", "cross", 1, 1, 1)])
