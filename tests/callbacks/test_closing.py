from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from attnguide.callbacks.closing import ClosingCallback


class Closing(ClosingCallback):
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.order = error, list[str]()

    def finish(self, trainer: L.Trainer) -> None:
        self.order.append("finish")
        if self.error is not None:
            raise self.error


def end(callback: Closing, *, first: bool, stopped: bool = False) -> list[str]:
    strategy = SimpleNamespace(barrier=lambda: callback.order.append("barrier"))
    trainer: Any = SimpleNamespace(is_global_zero=first, strategy=strategy)
    if stopped:
        callback.on_exception(trainer, L.LightningModule(), KeyboardInterrupt())
    else:
        callback.on_predict_end(trainer, L.LightningModule())
    return callback.order


def test_the_first_process_finishes_after_all_have_recorded_their_rows() -> None:
    assert end(Closing(), first=True) == ["barrier", "finish"]
    assert end(Closing(), first=False) == ["barrier"]


def test_a_stopped_run_is_finished_without_waiting_and_keeps_its_own_reason() -> None:
    assert end(Closing(OSError("full")), first=True, stopped=True) == ["finish"]
    assert end(Closing(), first=False, stopped=True) == []
    with pytest.raises(OSError, match="full"):
        end(Closing(OSError("full")), first=True)
