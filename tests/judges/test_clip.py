"""A dual encoder and an answering model of random weights as judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from attnguide.judges.base import Asked, AskedObject
from attnguide.judges.clip import ClipJudge, cropped
from attnguide.judges.vqa import VqaJudge
from tests.judges import networks


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ClipJudge:
    return ClipJudge(str(networks.clip(tmp_path_factory.mktemp("clip"))), quality=True)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> VqaJudge:
    return VqaJudge(str(networks.llava(tmp_path_factory.mktemp("vqa"))))


def halves() -> Image.Image:
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    return picture


def cosine(judge: ClipJudge, picture: Image.Image, text: str) -> float:
    """With the library's own preparation, one pair at a time."""
    inputs = judge.processor(images=picture, text=text, return_tensors="pt", padding="max_length")
    with torch.no_grad():
        outputs = judge.network(**inputs)
    return float(F.cosine_similarity(outputs.image_embeds, outputs.text_embeds))


def test_scores_are_cosines_of_prompt_and_crops(judge: ClipJudge) -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    asked = Asked(
        "a red cat and a blue ball", (AskedObject("red cat", boxes=(left,)), AskedObject("blue ball", boxes=(right,)))
    )
    (seen, other) = judge.look([halves(), halves()], [asked, Asked("a dog")])
    assert seen is not None and other is not None and seen.detections is None
    assert seen.scores["clip"] == pytest.approx(max(0, cosine(judge, halves(), asked.prompt)), abs=1e-5)
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    expected = [max(0, cosine(judge, red, "red cat")), max(0, cosine(judge, blue, "blue ball"))]
    assert seen.scores["clip_region"] == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert 0 <= seen.scores["clip_iqa"] <= 1
    assert set(other.scores) == {"clip", "clip_iqa"}


def test_crops_by_hand() -> None:
    assert cropped(halves(), (0.25, 0.0, 0.75, 1.0)).size == (32, 32)
    assert cropped(halves(), (0.999, 0.999, 1.0, 1.0)).size == (1, 1)


def test_no_words_no_score(judge: ClipJudge) -> None:
    (seen,) = judge.look([halves()], [Asked("")])
    assert seen is not None and set(seen.scores) == {"clip_iqa"}


def test_answers_are_probabilities_of_the_first_token(answering: VqaJudge) -> None:
    asked = Asked("a red cat", (AskedObject("red cat", boxes=((0.0, 0.0, 0.5, 1.0),)),))
    (seen,) = answering.look([halves()], [asked])
    assert seen is not None and set(seen.scores) == {"vqa", "vqa_all", "vqa_region"}
    assert 0 < seen.scores["vqa"] < 1 and seen.scores["vqa"] == pytest.approx(seen.scores["vqa_all"])


def test_what_is_asked(answering: VqaJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []

    def yes(picture: Image.Image, question: str) -> float:
        questions.append(question)
        return 0.25 if "exactly 2" in question else 1.0

    monkeypatch.setattr(answering, "yes", yes)
    objects = (AskedObject("clock", count=2), AskedObject("dog", boxes=((0.0, 0.0, 0.5, 0.5),)))
    (seen,) = answering.look([halves()], [Asked("two clocks above a dog", objects, ((0, "above", 1),))])
    assert seen is not None
    assert questions[0] == "Does this picture show exactly 2 of: clock? Answer yes or no."
    assert questions[2] == "In this picture, is the clock above the dog? Answer yes or no."
    assert seen.scores == pytest.approx({"vqa": 0.75, "vqa_all": math.exp(math.log(0.25) / 3), "vqa_region": 1.0})


@pytest.mark.parametrize("kind", [ClipJudge, VqaJudge], ids=["clip", "vqa"])
def test_a_folder_of_something_else(kind: type[ClipJudge | VqaJudge], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^(clip|vqa): .* cannot be opened here"):
        kind(str(networks.owl(tmp_path)) if kind is VqaJudge else str(tmp_path))


def test_pictures_without_questions(judge: ClipJudge, answering: VqaJudge) -> None:
    judges: Sequence[ClipJudge | VqaJudge] = (judge, answering)
    for one in judges:
        with pytest.raises(ValueError, match="got 1 and 0"):
            one.look([halves()], [])
