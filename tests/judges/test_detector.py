"""A detector of random weights as judge: what it is asked, where its boxes lie, what it leaves out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from attnguide.judges.attributes import color_words, queries_of
from attnguide.judges.base import Asked, AskedObject
from attnguide.judges.boxes import suppressed
from attnguide.judges.detector import DetectorJudge, _spans
from attnguide.metrics.functional import score
from tests.judges import networks

CAT, DOG = AskedObject("red cat"), AskedObject("dog")
PAIR = Asked("a red cat and a dog", (CAT, DOG))


@pytest.fixture(scope="module", params=["owlv2", "owlvit", "grounding_dino"])
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DetectorJudge:
    folder = tmp_path_factory.mktemp(request.param)
    made = {"owlv2": networks.owl, "owlvit": lambda path: networks.owl(path, "vit"), "grounding_dino": networks.grounding_dino}
    return DetectorJudge(str(made[request.param](folder)), threshold=0.01, nms=1.0)


def picture(width: int, height: int, color: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), color)


def saying(judge: DetectorJudge, patch: pytest.MonkeyPatch, boxes: list[list[float]], logits: list[list[float]]) -> None:
    """Let the network say something known: boxes ``(x, y, width, height)`` and a logit for each query or token."""
    config = judge.network.config

    class Network:
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.config = config

        def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
            rows = len(inputs["pixel_values"])
            return SimpleNamespace(
                logits=torch.tensor([logits] * rows), pred_boxes=torch.tensor([boxes] * rows), input_ids=inputs["input_ids"]
            )

    patch.setattr(judge, "network", Network())


def token_logits(judge: DetectorJudge, first: float, second: float) -> list[float]:
    """Logits of the two labels; for Grounding DINO over the tokens ``[CLS] red cat . dog . [SEP]``."""
    if judge.network.config.model_type == "grounding-dino":
        return [-9.0, first, first, 9.0, second, 9.0, 9.0]
    return [first, second]


def test_boxes_are_fractions_of_a_picture_that_is_not_square(judge: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = judge.network.config.model_type == "owlv2"  # to a square, whose upper half is the picture
    box = [0.25, 0.25, 0.5, 0.5] if padded else [0.25, 0.5, 0.5, 1.0]
    saying(judge, monkeypatch, [box, [0.5, 0.9, 0.1, 0.1]], [token_logits(judge, 3.0, -3.0), token_logits(judge, -9.0, -9.0)])
    (seen,) = judge.look([picture(64, 32)], [PAIR])
    assert seen is not None and seen.labels == ("red cat",)
    (found,) = seen.detections or ()
    assert found.box == pytest.approx((0.0, 0.0, 0.5, 1.0), abs=1e-6)
    assert found.score == pytest.approx(float(torch.tensor(3.0).sigmoid()), abs=1e-6)
    assert found.center == pytest.approx((0.25, 0.5), abs=1e-6)


def test_random_weights_see_within_the_picture_and_alone_as_in_a_batch(judge: DetectorJudge) -> None:
    pictures = [picture(64, 32), picture(64, 32, "blue"), picture(64, 32, "green")]
    asked = [PAIR, Asked("nothing"), Asked("a dog", (DOG,))]
    together = judge.look(pictures, asked)
    assert together[1] is None  # nothing was asked for
    for seen, one, own in zip(together, pictures, asked, strict=True):
        if seen is None:
            continue
        assert seen.detections and set(seen.labels) <= set(own.labels)
        for found in seen.detections:
            assert 0 <= found.box[0] < found.box[2] <= 1 and 0 <= found.box[1] < found.box[3] <= 1
        (alone,) = judge.look([one], [own])
        assert alone is not None and alone.labels == seen.labels
        for found, again in zip(seen.detections, alone.detections or (), strict=True):
            assert found.box == pytest.approx(again.box, abs=1e-4) and found.score == pytest.approx(again.score, abs=1e-4)


def test_nothing_above_the_threshold_is_an_empty_answer(judge: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(judge, monkeypatch, [[0.5, 0.5, 0.2, 0.2]], [token_logits(judge, -9.0, -9.0)])
    (seen,) = judge.look([picture(32, 32)], [PAIR])
    assert seen is not None and seen.detections == ()


def test_overlapping_boxes_of_one_label_are_one_object(judge: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "nms", 0.5)
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38], [0.1, 0.1, 0.1, 0.1]]
    logits = [token_logits(judge, 1.0, -9.0), token_logits(judge, 2.0, -9.0), token_logits(judge, 0.0, -9.0)]
    saying(judge, monkeypatch, boxes, logits)
    (seen,) = judge.look([picture(32, 32)], [PAIR])
    assert seen is not None and len(seen.detections or ()) == 2


def test_suppression_by_hand() -> None:
    boxes = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.9), (0.0, 0.0, 0.5, 1.0)]
    assert suppressed(boxes, [0.5, 0.9, 0.1], 0.6) == [1, 2]
    assert suppressed(boxes, [0.5, 0.9, 0.1], 1.0) == [1, 0, 2]
    assert suppressed([], [], 0.5) == []


def test_labels_are_found_in_the_order_of_the_text() -> None:
    assert _spans([2, 6, 7, 11, 7, 11, 3], [[6, 7], [7]]) == [(1, 3), (4, 5)]
    with pytest.raises(ValueError, match="do not fit"):
        _spans([2, 6, 3], [[6, 7]])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"threshold": 0.0}, "threshold"), ({"nms": 2.0}, "nms"), ({"batch_size": 0}, "batch_size")],
    ids=["threshold", "nms", "batch_size"],
)
def test_numbers_out_of_range(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DetectorJudge("nowhere", **options)  # type: ignore[arg-type]


def test_pictures_without_questions(judge: DetectorJudge) -> None:
    with pytest.raises(ValueError, match="got 1 and 0"):
        judge.look([picture(8, 8)], [])


def test_a_folder_without_a_detector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^detector: .* cannot be opened here"):
        DetectorJudge(str(tmp_path))


RED, BLUE = AskedObject("red cat", noun="cat", attribute="red"), AskedObject("blue ball", noun="ball", attribute="blue")


def test_a_colour_is_told_by_what_fits_best(judge: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture has a blue cat where a red one was asked for, seen as both; 0.4 wide boxes, the surer one blue."""
    if judge._grounded:  # whose text of 32 tokens is too short for eleven colours, see below
        return
    monkeypatch.setattr(judge, "nms", 0.5)
    queries = queries_of(Asked("a red cat", (RED,)))
    best = {"blue cat": [2.0, 1.0], "red cat": [0.0, 1.5]}
    logits = [[best.get(query.label, [-9.0, -9.0])[row] for query in queries] for row in range(2)]
    saying(judge, monkeypatch, [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38]], logits)
    asked = Asked("a red cat", (RED,))
    (seen,) = judge.look([picture(32, 32)], [asked])
    assert seen is not None and seen.labels == ("blue cat",)
    assert (seen.detections or ())[0].noun == "cat" and score(seen, asked)["binding"] == 0 == score(seen, asked)["presence"]
    monkeypatch.setattr(judge, "rivals", False)
    saying(judge, monkeypatch, [[0.5, 0.5, 0.4, 0.4]], [[1.0]])
    (seen,) = judge.look([picture(32, 32)], [asked])
    assert seen is not None and score(seen, asked)["binding"] == 1 == score(seen, asked)["presence"]


def test_rivals_by_hand() -> None:
    names = [query.label for query in queries_of(Asked("x", (RED, BLUE, DOG)))]
    assert names[:3] == ["red cat", "blue ball", "dog"] and len(names) == 3 + 2 * 10
    assert "gray cat" in names and "red ball" in names and len(set(names)) == len(names)
    wooden, metal = (AskedObject(f"{kind} box", noun="box", attribute=kind) for kind in ("wooden", "metal"))
    lamp = AskedObject("wooden lamp", noun="lamp", attribute="wooden")
    assert [query.label for query in queries_of(Asked("x", (metal, lamp)))][2:] == ["wooden box", "metal lamp"]
    assert len(queries_of(Asked("x", (wooden, metal)))) == 2  # each is the other's rival
    assert len(queries_of(Asked("x", (RED, BLUE)), rivals=False)) == 2
    assert color_words("Grey mouse") == {"noun": "mouse", "attribute": "Grey"}
    assert len(queries_of(Asked("x", (AskedObject("grey mouse", **color_words("grey mouse")),)))) == 11


def test_rivals_that_do_not_fit_into_the_text_are_left_out(judge: DetectorJudge) -> None:
    asked = Asked("a red cat", (RED,))
    assert len(judge._queries(asked)) == (1 if judge._grounded else 11)  # of the tiny Grounding DINO, which reads 32 tokens
    if judge._grounded:
        judge.network.config.max_text_len, short = 64, judge.network.config.max_text_len
        assert len(judge._queries(asked)) == 11
        judge.network.config.max_text_len = short
