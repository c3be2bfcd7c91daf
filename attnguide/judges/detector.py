"""A zero-shot object detector as judge: OWL-ViT, OWLv2, Grounding DINO and others that transformers opens as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from attnguide.judges.attributes import Query, queries_of
from attnguide.judges.base import Asked, Detection, Judge, Seen, check_equally_many
from attnguide.judges.boxes import box_area, clipped, suppressed
from attnguide.judges.hub import opened

_GROUNDING = ("grounding-dino", "mm-grounding-dino")
"""Model types that read all labels as one text and give each box a score for every token of it."""


class DetectorJudge(Judge):
    """Searches each picture for every label of its row with a zero-shot detector.

    The networks are those of ``AutoModelForZeroShotObjectDetection``: OWL-ViT (https://arxiv.org/abs/2205.06230), OWLv2
    (https://arxiv.org/abs/2306.09683), Grounding DINO (https://arxiv.org/abs/2303.05499). A box gets the one label that it
    scores best for. Boxes are scaled back to the picture's own proportions, also where the network's processor pads it to a
    square.

    Colours are judged by the best match: if a row asks for a red car, the picture is also searched for cars of every other
    colour (:func:`~attnguide.judges.attributes.queries_of`). A blue car is then found as such: it is no red car, and counts as
    a car of the wrong colour in :class:`~attnguide.metrics.AttributeBinding`. Overlapping boxes of one noun are one object.

    Args:
        model: Folder or hub id.
        threshold: Least score of a detection, in (0, 1).
        nms: IoU above which a box is dropped in favour of one with a higher score and the same noun (the same label if it has
            no noun), in (0, 1]; 1 keeps all.
        batch_size: Most pictures in one pass.
        rivals: Whether to search for other attributes too; left out if they exceed the text length of the model.

    Raises:
        ValueError: If a number is out of range, or the model cannot be opened.
    """

    name = "detector"
    finds_objects = True

    def __init__(
        self, model: str, *, threshold: float = 0.2, nms: float = 0.5, batch_size: int = 8, rivals: bool = True
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1); got {threshold}.")
        if not 0 < nms <= 1:
            raise ValueError(f"nms must lie in (0, 1]; got {nms}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        self.threshold, self.nms, self.batch_size, self.rivals = threshold, nms, batch_size, rivals
        self.network, self.processor = opened(self.name, model, _load)

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        check_equally_many(pictures, asked)
        found: list[Seen | None] = [None if not one.objects else Seen(()) for one in asked]
        waiting = [index for index, one in enumerate(asked) if one.objects]
        for start in range(0, len(waiting), self.batch_size):
            batch = waiting[start : start + self.batch_size]
            queries = [self._queries(asked[index]) for index in batch]
            for index, detections in zip(batch, self._detect([pictures[i] for i in batch], queries), strict=True):
                found[index] = Seen(detections)
        return found

    def _queries(self, asked: Asked) -> tuple[Query, ...]:
        found = queries_of(asked, self.rivals)
        if self._grounded and len(found) > len(asked.objects):
            text = self.processor.tokenizer(_one_text([query.label for query in found]))["input_ids"]
            if len(text) > self.network.config.max_text_len:
                return queries_of(asked, rivals=False)
        return found

    @property
    def _grounded(self) -> bool:
        return self.network.config.model_type in _GROUNDING

    @torch.no_grad()
    def _detect(self, pictures: Sequence[Image.Image], asked: Sequence[tuple[Query, ...]]) -> list[tuple[Detection, ...]]:
        pictures = [picture.convert("RGB") for picture in pictures]
        labels = [tuple(query.label for query in own) for own in asked]
        most = max(map(len, labels))  # rows with fewer labels are padded with their last one
        queries = [[*own, *(own[-1:] * (most - len(own)))] for own in labels]
        inputs = self._inputs(pictures, labels if self._grounded else queries).to(self.network.device)
        outputs = self.network(**inputs)
        sizes = [(picture.height, picture.width) for picture in pictures]
        if self._grounded:
            found = self._best_labels(outputs, inputs["input_ids"], labels)
        else:
            found = [
                list(zip(*(one[key] for key in ("scores", "text_labels", "boxes")), strict=True))
                for one in self._post_processed(outputs, queries, sizes)
            ]
        return [self._detections(*one) for one in zip(found, asked, sizes, strict=True)]

    def _inputs(self, pictures: Sequence[Image.Image], queries: Sequence[Sequence[str]]) -> Any:
        if self._grounded:
            text: Any = [_one_text(own) for own in queries]
            return self.processor(images=list(pictures), text=text, return_tensors="pt", padding=True)
        return self.processor(
            images=list(pictures), text=list(map(list, queries)), return_tensors="pt", padding="max_length", truncation=True
        )

    def _post_processed(
        self, outputs: Any, queries: Sequence[list[str]], sizes: Sequence[tuple[int, int]]
    ) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self.processor.post_process_grounded_object_detection(
            outputs, text_labels=list(queries), target_sizes=list(sizes), threshold=self.threshold
        )
        return found

    def _best_labels(self, outputs: Any, ids: torch.Tensor, labels: Sequence[tuple[str, ...]]) -> list[list[tuple[Any, ...]]]:
        """Score, label and box ``(x0, y0, x1, y1)`` as fractions of each detection of Grounding DINO.

        The score of a label is the mean over its tokens, as in the authors' evaluation on COCO. The processor's own labels are
        not used: they are all tokens above a threshold, which need not form a label.
        """
        found = []
        for logits, boxes, row, own in zip(outputs.logits.sigmoid(), outputs.pred_boxes, ids.tolist(), labels, strict=True):
            spans = _spans(row, [self._tokens(label) for label in own])
            scores = torch.stack([logits[:, start:stop].mean(1) for start, stop in spans], 1)
            best, which = scores.max(1)
            keep = best > self.threshold
            middle, half = boxes[:, :2], boxes[:, 2:] / 2
            corners = torch.cat([middle - half, middle + half], 1)[keep]
            found.append(list(zip(best[keep], [own[i] for i in which[keep].tolist()], corners, strict=True)))
        return found

    def _tokens(self, label: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(_spelt(label), add_special_tokens=False)["input_ids"]
        return ids

    def _detections(
        self, found: Sequence[tuple[Any, ...]], queries: Sequence[Query], size: tuple[int, int]
    ) -> tuple[Detection, ...]:
        """Detections of one picture, after non-maximum suppression among boxes of one noun or label."""
        height, width = (1, 1) if self._grounded else size
        named = {query.label: query for query in queries}
        groups: dict[str, list[Detection]] = {}
        for score, label, box in found:
            x0, y0, x1, y1 = (float(edge) for edge in box)
            fractions = clipped((x0 / width, y0 / height, x1 / width, y1 / height))
            if box_area(fractions) > 0:
                query = named[str(label)]
                one = Detection(query.label, fractions, float(score), noun=query.noun, attribute=query.attribute)
                groups.setdefault(query.noun or query.label, []).append(one)
        return tuple(
            own[index]
            for own in groups.values()
            for index in suppressed([one.box for one in own], [one.score for one in own], self.nms)
        )


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    return AutoModelForZeroShotObjectDetection.from_pretrained(name).float().eval(), AutoProcessor.from_pretrained(name)


def _spelt(label: str) -> str:
    """A label as Grounding DINO reads it: in lower case, without full stops, which divide labels."""
    return " ".join(label.lower().replace(".", " ").split())


def _one_text(labels: Sequence[str]) -> str:
    return " ".join(f"{_spelt(label)}." for label in labels)


def _spans(ids: Sequence[int], parts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Start and stop of each part in a text's token ids, in order.

    Raises:
        ValueError: If a part is missing, because the text was truncated.
    """
    spans, start = [], 0
    for part in parts:
        ends = range(start, len(ids) - len(part) + 1)
        at = next((index for index in ends if part and list(ids[index : index + len(part)]) == list(part)), None)
        if at is None:
            raise ValueError("detector: a row's labels do not fit into the text that the model reads; ask for fewer objects.")
        spans.append((at, at + len(part)))
        start = at + len(part)
    return spans
