"""Converts the progress of a run to the page's outputs: state, pictures, heat maps, loss chart."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from attnguide.figures.watch import Watched
from attnguide.sheets.colors import css, method_color
from attnguide.sheets.overlays import draw_regions, heat_map
from attnguide.text.html import png_bytes
from attnguide.types import Sample
from attnguide.ui.chart import loss_chart
from attnguide.ui.running import News

_SIDE = 256
_MOST_COLUMNS = 4
_NOTHING = Image.new("RGB", (64, 64), (238, 238, 238))


def shown_news(news: News, rows: Sequence[Sample]) -> tuple[Any, ...]:
    """Outputs of the page for a run: state text, pictures, heat maps, loss chart, and the canvas with the newest picture.

    Args:
        news: Newest progress of the run.
        rows: All rows of the run, in the order of their pictures on the page.
    """
    going = len(news.rows) < len(rows) and news.problem is None
    done = [row for row in news.rows if row.result.image is not None]
    ended = [row.result.status for row in news.rows if row.result.status != "ok"]
    state = f"{news.done} of {news.total} steps" if len(news.rows) < len(rows) else f"{len(done)} of {len(rows)} pictures"
    text = "; ".join([state, *([news.problem] if news.problem else []), *ended])
    previews = list(news.previews) if going else []
    newest = previews[-1] if previews else done[-1].result.image if done else None
    canvas = gr.HTML(background=data_url(newest)) if newest is not None else gr.skip()
    return text, _pictures(news, rows, going=going), _all_maps(done, rows), _loss(news, rows), canvas


def _pictures(news: News, rows: Sequence[Sample], *, going: bool) -> list[tuple[Image.Image, str]]:
    """Pictures with captions of all rows in order, plain beside steered; grey for rows that have not begun."""
    found = {row.result.sample.id: _large(row) for row in news.rows if row.result.image is not None}
    if going:
        found = {sample.id: image for sample, image in zip(news.samples, news.previews, strict=False)} | found
        ended = {row.result.sample.id for row in news.rows}
        found = {sample.id: _NOTHING for sample in rows if found and sample.id not in ended} | found
    return [(found[sample.id], _caption(sample)) for sample in rows if sample.id in found]


def _all_maps(done: Sequence[Watched], rows: Sequence[Sample]) -> Any:
    """Gallery of the finished rows' heat maps, one line per row if it has at most :data:`_MOST_COLUMNS` maps."""
    order = [sample.id for sample in rows]
    shown = [_maps(row) for row in sorted(done, key=lambda row: order.index(row.result.sample.id))]
    columns = max(map(len, shown), default=1)
    return gr.Gallery([pair for line in shown for pair in line], columns=min(max(columns, 1), _MOST_COLUMNS))


def _loss(news: News, rows: Sequence[Sample]) -> str:
    """Loss chart of the current batch."""
    method = next((sample.method for sample in rows if sample.methods), "plain")
    return loss_chart(news.losses, max(sample.steps for sample in rows), css(method_color(method)))


def _caption(sample: Sample) -> str:
    return f"seed {sample.seed}, {sample.method}"


def _large(row: Watched) -> Image.Image:
    """A finished picture with its regions drawn, enlarged by a whole factor if it is smaller than 256 pixels."""
    image = row.result.image
    assert image is not None
    scale = max(1, _SIDE // max(image.size))
    return draw_regions(image.resize((image.width * scale, image.height * scale)), row.result.sample.regions)


def _maps(row: Watched) -> list[tuple[Image.Image, str]]:
    image = row.result.image
    assert image is not None
    scale = max(1, _SIDE // max(image.size))
    large = image.resize((image.width * scale, image.height * scale))
    found: Mapping[str, Any] = row.maps
    return [(heat_map(large, maps.mean(0)), f"{phrase}: {_caption(row.result.sample)}") for phrase, maps in found.items()]


def data_url(image: Image.Image) -> str:
    """A picture as a PNG data URL."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
