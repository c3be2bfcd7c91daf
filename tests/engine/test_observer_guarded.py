"""A watcher that only shows never ends a run; any other's exception does."""

import errno
import os
import warnings
from typing import Any
from unittest.mock import Mock

import pytest

from attnguide.callbacks import SamplingCallback
from attnguide.data import SampleDataModule
from attnguide.module import GuidanceModule, make_trainer
from attnguide.types import SampleResult
from tests import tiny

pytestmark = pytest.mark.filterwarnings("default:Callback")


class Broken(SamplingCallback):
    """Fails in one of its hooks, in each batch."""

    only_shows = True

    def __init__(self, hook: str) -> None:
        self.calls: list[str] = []
        for name in ("probes", "on_sample_start", "on_denoise_step_end", "on_sample_end"):
            setattr(self, name, lambda *arguments, name=name: self._called(name, hook))

    def _called(self, name: str, hook: str) -> Any:
        self.calls.append(name)
        if name == hook:
            raise RuntimeError("out of paint")
        return ()


def run(callback: SamplingCallback, tmp_path: Any) -> list[SampleResult]:
    trainer = make_trainer(tmp_path, callbacks=[callback], device="cpu")
    rows = [tiny.row("0", steps=2), tiny.row("1", steps=2)]
    batches = trainer.predict(GuidanceModule(tiny.model()), SampleDataModule(rows, batch_size=1))
    assert batches is not None
    return [result for batch in batches for result in batch]


@pytest.mark.parametrize("hook", ["probes", "on_sample_start", "on_denoise_step_end", "on_sample_end"])
def test_a_run_goes_on_without_it(hook: str, tmp_path: Any) -> None:
    broken = Broken(hook)
    with pytest.warns(UserWarning, match=r"Callback Broken failed .* \(RuntimeError: out of paint\)") as told:
        results = run(broken, tmp_path)
    assert [result.status for result in results] == ["ok", "ok"]
    assert len([warning for warning in told if "Callback" in str(warning.message)]) == 2  # one a batch
    assert broken.calls.count(hook) == 2 and broken.calls[-1] == hook


def test_other_callbacks_end_the_run(tmp_path: Any) -> None:
    broken = Broken("on_sample_start")
    broken.only_shows = False
    with pytest.raises(RuntimeError, match="out of paint"):
        run(broken, tmp_path)


def test_a_full_disk_ends_the_run_whoever_meets_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken("")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(broken, "on_sample_end", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left"):
        run(broken, tmp_path)


def test_a_reader_of_attention_is_guarded_too(tmp_path: Any) -> None:
    from attnguide.attention.capture import Probe

    class Reader(SamplingCallback):
        only_shows = True
        count = 0

        def probes(self, info: Any) -> list[Probe]:
            return [Probe("probs", self._record)]

        def _record(self, *arguments: Any) -> None:
            self.count += 1
            raise ValueError("no such word")

    reader = Reader()
    with pytest.warns(UserWarning, match="Callback Reader failed"):
        assert [result.status for result in run(reader, tmp_path)] == ["ok", "ok"]
    assert reader.count == 2


def test_every_word_of_a_prompt_with_decomposed_accents_is_drawn(tmp_path: Any) -> None:
    from attnguide.callbacks import AttentionMapsLogger

    rows = [tiny.row("0", "a cafe\u0301 dog's", regions=(), steps=1)]
    trainer = make_trainer(tmp_path, callbacks=[AttentionMapsLogger()], device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Callback")
        trainer.predict(GuidanceModule(tiny.model()), SampleDataModule(rows, batch_size=1))
    assert len(list((tmp_path / "maps" / "0").glob("*.npy"))) == 3
