"""A visual question answering model as judge, by yes-or-no questions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from attnguide.judges.base import Asked, AskedObject, Judge, Seen, check_equally_many
from attnguide.judges.clip import cropped
from attnguide.judges.hub import opened

_QUESTION = "Does this picture show {thing}? Answer yes or no."
_RELATED = "In this picture, is the {first} {relation} the {second}? Answer yes or no."
_ANSWERS = ("yes", "no")


class VqaJudge(Judge):
    """Probability of yes against no at the first token of an image-text-to-text model's answer.

    * ``vqa``: mean over questions, one for each object and each relation, as TIFA (https://arxiv.org/abs/2303.11897) asks and
      Soft-TIFA scores; for a row without objects, one question about its whole prompt.
    * ``vqa_all``: geometric mean over the same questions, which one missing object brings down.
    * ``vqa_region``: mean over boxes of a question for the object about the crop of the picture to its box, as LayoutSAM-Eval
      (https://arxiv.org/abs/2412.03859) asks.

    Args:
        model: Folder or hub id of a model that ``AutoModelForImageTextToText`` opens.

    Raises:
        ValueError: If the model cannot be opened.
    """

    name = "vqa"

    def __init__(self, model: str) -> None:
        self.network, self.processor = opened(self.name, model, _load)
        self._answers = [self._first_tokens(word) for word in _ANSWERS]

    def _first_tokens(self, word: str) -> list[int]:
        """First token ids of a word in all spellings: capitalised or not, with a space before it or not."""
        spellings = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
        read = self.processor.tokenizer
        return sorted({read(spelling, add_special_tokens=False)["input_ids"][0] for spelling in spellings})

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        check_equally_many(pictures, asked)
        return [self._look(picture.convert("RGB"), one) for picture, one in zip(pictures, asked, strict=True)]

    def _look(self, picture: Image.Image, asked: Asked) -> Seen | None:
        questions = [_QUESTION.format(thing=_thing(one)) for one in asked.objects] or [
            _QUESTION.format(thing=f'"{asked.prompt.strip()}"')
        ]
        labels = asked.labels
        questions += [
            _RELATED.format(first=labels[first], relation=relation, second=labels[second])
            for first, relation, second in asked.relations
        ]
        yes = [self.yes(picture, question) for question in questions]
        scores = {"vqa": fmean(yes), "vqa_all": float(torch.tensor(yes).log().mean().exp())}
        placed = [
            self.yes(cropped(picture, box), _QUESTION.format(thing=f"a {one.label}"))
            for one in asked.objects
            for box in one.boxes
        ]
        return Seen(scores={**scores, **({"vqa_region": fmean(placed)} if placed else {})})

    @torch.no_grad()
    def yes(self, picture: Image.Image, question: str) -> float:
        """Probability of yes against no as the answer to a question about a picture."""
        inputs = self._inputs(picture, question).to(self.network.device)
        logits = self.network(**inputs).logits[0, -1].float()
        yes, no = (logits[tokens].logsumexp(0) for tokens in self._answers)
        return float(torch.sigmoid(yes - no))

    def _inputs(self, picture: Image.Image, question: str) -> Any:
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        return self.processor(images=picture, text=f"Question: {question} Answer:", return_tensors="pt")


def _thing(asked: AskedObject) -> str:
    return f"a {asked.label}" if asked.count == 1 else f"exactly {asked.count} of: {asked.label}"


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network, processor = AutoModelForImageTextToText.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    if not hasattr(processor, "tokenizer"):
        raise ValueError(f"{type(processor).__name__} reads no text")
    return network, processor
