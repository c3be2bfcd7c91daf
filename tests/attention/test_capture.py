import torch

from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import Site
from attnguide.types import PassContext, Step

SITE = Site("attn", "cross", 2, 2, 1)
CONTEXT = PassContext(Step.at_sigma(0, 1, 999.0, 14.6), "denoise", (0,), ("cond",))


def test_recorder_keeps_the_newest() -> None:
    recorder = Recorder()
    recorder(SITE, torch.zeros(1), CONTEXT)
    recorder(SITE, torch.ones(1), CONTEXT)
    assert recorder.tensors[SITE].item() == 1
    recorder.clear()
    assert not recorder.tensors


def test_positions_of_a_branch() -> None:
    context = PassContext(Step.at_sigma(0, 1, 999.0, 14.6), "denoise", (0, 1, 0, 1), ("uncond", "uncond", "cond", "cond"))
    assert context.positions("cond") == [2, 3]
    assert context.positions("source") == []


def test_a_probe_reads_passes_that_have_its_branch() -> None:
    alone = PassContext(CONTEXT.step, "denoise", (0,), ("uncond",))  # of a pipeline that computes one half after the other
    by_default, either = Probe("probs", Recorder()), Probe("probs", Recorder(), branch=None)
    assert [by_default.reads(context) for context in (CONTEXT, alone)] == [True, False]
    assert [either.reads(context) for context in (CONTEXT, alone)] == [True, True]
    assert not either.reads(PassContext(CONTEXT.step, "guide", (0,), ("cond",)))
