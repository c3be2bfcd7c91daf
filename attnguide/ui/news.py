"""What the page shows of a run: pictures as they are made, heat maps, losses."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from attnguide.figures.watch import Watched
from attnguide.sheets.overlays import draw_regions, heat_map
from attnguide.text.html import png_bytes
from attnguide.ui.running import News

_SIDE = 256


def shown_news(news: News, count: int) -> tuple[Any, ...]:
    """What the page shows of a run: its state, pictures, maps, losses, and the newest picture below the drawing."""
    done = [row for row in news.rows if row.result.image is not None]
    pictures = [(_large(row), _caption(row)) for row in done]
    waiting = list(zip(news.previews, news.captions, strict=False)) if len(news.rows) < count else []
    ended = [row.result.status for row in news.rows if row.result.status != "ok"]
    state = f"{news.done} of {news.total} steps" if len(news.rows) < count else f"{len(done)} of {count} pictures"
    text = "; ".join([state, *([news.problem] if news.problem else []), *ended])
    shown = data_url(done[-1].result.image) if done else data_url(waiting[-1][0]) if waiting else None  # type: ignore[arg-type]
    canvas = gr.HTML(background=shown) if shown is not None else gr.skip()
    return text, [*pictures, *waiting], [pair for row in done for pair in _maps(row)], loss_table(news.losses), canvas


def _caption(row: Watched) -> str:
    return f"seed {row.result.sample.seed}, {row.result.sample.method}"


def _large(row: Watched) -> Image.Image:
    """A finished picture with its regions, at least as large as can be looked at."""
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
    return [(heat_map(large, maps.mean(0)), f"{phrase}: {_caption(row)}") for phrase, maps in found.items()]


def loss_table(losses: Sequence[tuple[int, float, str]]) -> pd.DataFrame:
    """Losses as the chart takes them."""
    return pd.DataFrame(losses, columns=["step", "loss", "row"])


def data_url(image: Image.Image) -> str:
    """A picture as the page's own source."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
