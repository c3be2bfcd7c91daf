"""What else people do to a transformer: other backends, compiled blocks, caches, fused projections."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import attention_backend

from attnguide.attention.attach import CaptureError, attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.complaints import attention_backend as named_backend
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import Step
from tests.attention import cases
from tests.closeness import assert_close

CONTEXT = pass_context(Step.at_sigma(0, 4, 999.0, 14.6), "denoise", (0,), ("cond",))


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return _read(cases.flux())


@pytest.fixture
def case() -> Iterator[cases.Case]:
    yield cases.flux()


def _read(case: cases.Case) -> dict[str, torch.Tensor]:
    """Probabilities of all sites in one pass, by name."""
    network, modules, run, shape = case
    recorder: Any = Recorder()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), attach(modules, [Probe("probs", recorder, SiteSelector("cross"))], [], network) as attention:
        with attention.during(CONTEXT):
            run(inputs)
    return {site.name: tensor for site, tensor in recorder.tensors.items()}


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert_close(tensor, wanted[name])


def test_fused_projections_are_read(case: cases.Case, plain: dict[str, torch.Tensor]) -> None:
    case[0].fuse_qkv_projections()  # type: ignore[operator]
    _same(_read(case), plain)


def test_another_backend_is_named_with_its_cure(case: cases.Case) -> None:
    said = r"its processor is FluxAttnProcessor.*the attention backend 'flex' is active.*set_attention_backend\('native'\)"
    with attention_backend("flex"), pytest.raises(CaptureError, match=said):
        _read(case)
    assert named_backend(object()) is None


def test_compiled_blocks_run_as_written_where_they_are_read(case: cases.Case, plain: dict[str, torch.Tensor]) -> None:
    case[0].compile_repeated_blocks(backend="eager", fullgraph=True)  # type: ignore[operator]
    compiled = [module for module in case[0].modules() if module._compiled_call_impl is not None]
    with pytest.warns(UserWarning, match="is compiled; passes in which attention is read or edited run without"):
        _same(_read(case), plain)
    assert compiled and all(module._compiled_call_impl is not None for module in compiled)


def test_blocks_that_a_cache_skips_are_an_error_that_names_it(case: cases.Case) -> None:
    network, _, run, shape = case
    network.enable_cache(FirstBlockCacheConfig(threshold=10.0))  # type: ignore[operator]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with network.cache_context("cond"):  # type: ignore[operator]
        with torch.no_grad():
            run(inputs)
        with pytest.raises(CaptureError, match=r"did not run in a pass that .*hooks of other libraries here: FBC"):
            _read(case)


def test_sites_of_one_module_are_missed_together(case: cases.Case) -> None:
    network, modules, _, _ = case
    (site, module), *_ = modules.items()
    both = {site: module, Site(site.name, "self", 8, 8, 2, queries=(-64, None), keys=(-64, None)): module}
    with attach(both, [Probe("probs", Recorder())], [], network) as attention:
        with pytest.raises(CaptureError, match=rf"{site.name}' and 1 more did not run"), attention.during(CONTEXT):
            pass
