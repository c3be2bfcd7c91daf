"""Batches of rows."""

from pathlib import Path

import pytest

from attnguide.data import SampleDataModule
from attnguide.types import MethodConfig, Region, Sample

CAT = (Region("cat", box=(0, 0, 0.5, 1)),)


def ids(data: SampleDataModule) -> list[list[str]]:
    return [[sample.id for sample in batch] for batch in data.predict_dataloader()]


def test_rows_that_can_share_a_batch_do() -> None:
    rows = [Sample(str(i), "a cat", seed=i, steps=5 if i % 2 else 6) for i in range(5)]
    assert ids(SampleDataModule(rows, 2)) == [["0", "2"], ["4"], ["1", "3"]]


def test_injections_share_a_batch_and_guidances_one_with_their_own_options() -> None:
    def steered(id: str, name: str, **options: float) -> Sample:
        return Sample(id, "a cat", regions=CAT, methods=(MethodConfig(name, options),))

    rows = [
        steered("a", "inject1", scale=1.0),
        steered("b", "inject1", start=0.9),
        steered("c", "inject3"),
        Sample("d", "a cat"),
    ]
    assert ids(SampleDataModule(rows)) == [["a", "b", "c", "d"]]
    assert ids(SampleDataModule(rows, skip=["b"])) == [["a", "b", "c", "d"]]
    rows = [steered("a", "mask_guidance", scale=1.0), steered("b", "mask_guidance", stop=0.9), steered("c", "mask_guidance")]
    assert ids(SampleDataModule(rows)) == [["a", "c"], ["b"]]


def test_batches_stay_as_they_were_and_those_that_are_done_are_left_out() -> None:
    rows = [Sample(id, "a cat") for id in "abcdef"]
    data = SampleDataModule(rows, 2, skip=["b", "c", "d"])
    assert ids(data) == [["a", "b"], ["e", "f"]]
    assert [batch.wanted for batch in data.batches] == [(0,), (0, 1)]
    assert [sample.id for sample in data.samples] == [*"abcdef"] and [sample.id for sample in data.remaining] == [*"aef"]


def test_a_table_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,obj1,bbox1\na cat,cat,"0,0,32,64"\n')
    assert SampleDataModule(tmp_path / "rows.csv", size=(64, 64)).samples[0].regions[0].box == (0, 0, 0.5, 1)


def test_bad_rows_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="more than one row"):
        SampleDataModule([Sample("a", "a cat"), Sample("a", "a dog")])
    with pytest.raises(ValueError, match="does not occur"):
        SampleDataModule([Sample("a", "a cat", regions=(Region("dog"),))])
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        SampleDataModule([Sample("a", "a cat")], 0)
