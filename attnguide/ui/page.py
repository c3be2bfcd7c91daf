"""The page: prompt, canvas, method and options, pictures during sampling, heat maps, losses, and settings as text."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when the library is imported

import gradio as gr
from PIL import Image

from attnguide.method_docs import option_meanings
from attnguide.methods import DEFAULT, METHODS, method_options
from attnguide.models.base import ModelAdapter
from attnguide.text.html import region_colors
from attnguide.text.yaml12 import dump_yaml, yaml_value
from attnguide.types import PLAIN, MethodConfig, Region, Sample
from attnguide.ui.drawing import (
    as_yaml,
    command_line,
    config_of,
    load_drawing,
    phrases,
    read_drawing,
    read_seeds,
    save_drawing,
    with_source,
    without_overlaps,
)
from attnguide.ui.news import data_url, shown_news
from attnguide.ui.running import run_rows

PROMPT = "a red circle and a blue square on a white background"
_LARGEST_UPLOAD = "20mb"
_SIDE = 256
_WAYS = {"only to draw on": "none", "places of words, by inversion": "invert", "places of words, by noising": "noise"}


@dataclass(frozen=True)
class Screen:
    """All inputs of the page.

    Attributes:
        prompt: The prompt.
        drawing: Regions as JSON from the canvas.
        overlaps: Whether upper layers hide lower ones.
        method: Name of the method, or ``plain``.
        options: Table with a line of option, value and meaning for each option.
        seeds: Seeds as typed.
        steps: Denoising steps.
        cfg_scale: Classifier-free guidance weight.
        negative_prompt: Text that the unconditional half reads.
        picture: Path of the user's picture, if there is one.
        way: Use of the picture, a key of :data:`_WAYS`.
    """

    prompt: str
    drawing: str
    overlaps: bool
    method: str
    options: Any
    seeds: str
    steps: float
    cfg_scale: float
    negative_prompt: str
    picture: str | None
    way: str

    @property
    def regions(self) -> list[Region]:
        """The regions, checked.

        Raises:
            ValueError: If the drawing or the picture is invalid.
        """
        drawn = read_drawing(self.drawing)
        drawn = without_overlaps(drawn) if self.overlaps else drawn
        return with_source(drawn, self.prompt, self.picture, _WAYS.get(self.way, "none"))

    @property
    def changed_options(self) -> dict[str, Any]:
        """Options whose value on the page is not the default, read as YAML."""
        if self.method == PLAIN:
            return {}
        defaults = {name: _shown(value) for name, value in method_options(self.method).items()}
        lines = self.options.values.tolist() if hasattr(self.options, "values") else self.options or []
        given = {str(line[0]): str(line[1]).strip() for line in lines}
        return {name: yaml_value(text) for name, text in given.items() if name in defaults and text != defaults[name]}

    def config(self, model: str) -> dict[str, Any]:
        """The inputs as a configuration of ``attnguide sample``."""
        settings = {
            "prompt": self.prompt,
            "model": model,
            "method": self.method,
            "options": self.changed_options,
            "seeds": read_seeds(self.seeds),
            "steps": int(self.steps),
            "cfg_scale": float(self.cfg_scale),
            "negative_prompt": self.negative_prompt,
        }
        return config_of(settings, self.regions)

    def rows(self) -> list[Sample]:
        """Plain and steered rows of every seed.

        Raises:
            ValueError: If something on the page cannot be.
        """
        methods = () if self.method == PLAIN else (MethodConfig(self.method, self.changed_options),)
        common = Sample(
            "row",
            self.prompt,
            regions=tuple(self.regions),
            methods=methods,
            steps=int(self.steps),
            cfg_scale=float(self.cfg_scale),
            negative_prompt=self.negative_prompt,
        )
        rows = [replace(common, id=f"seed{seed}", seed=seed) for seed in read_seeds(self.seeds)]
        return [twin for row in rows for twin in (row.plain(), row)] if methods else rows


def serve(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    browser: bool = False,
    auth: tuple[str, str] | None = None,
) -> str:
    """Serve the page in background threads; returns its address.

    Args:
        page: The page of :meth:`Page.blocks`.
        host: Address to serve on.
        port: Port; the first free one from 7860 when ``None``.
        browser: Whether to open a browser.
        auth: User and password that the page asks for; none when ``None``.

    Raises:
        OSError: If the port is taken or the address does not belong to this machine.
    """
    _, address, _ = page.queue(max_size=32).launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        auth=auth,
        share=False,
        quiet=True,
        max_file_size=_LARGEST_UPLOAD,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
    )
    return str(address)


class Page:
    """The page for one model.

    Args:
        model: Model adapter; one run at a time uses it.
        name: The model as a value of ``--model``.
        prompt: Initial prompt.

    Attributes:
        stops: Session -> event that stops its newest run.
    """

    def __init__(self, model: ModelAdapter, name: str, prompt: str = PROMPT) -> None:
        self.model, self.name, self.prompt = model, name, prompt
        self.stops: dict[str, threading.Event] = {}

    def blocks(self) -> gr.Blocks:
        """Build the page, ready to be launched."""
        with gr.Blocks(title="attnguide", analytics_enabled=False) as page:
            self._lay_out(page)
        return page

    def _lay_out(self, page: gr.Blocks) -> None:
        """Create the page's components and connect their events."""
        gr.Markdown("# attnguide\nPick a word, draw where it should be, press *Make pictures*.")
        with gr.Row():
            with gr.Column(scale=1):
                prompt = gr.Textbox(self.prompt, label="Prompt", lines=2, elem_id="prompt")
                canvas = gr.HTML(
                    "",
                    html_template="<div></div>",
                    css_template=_asset("painter.css"),
                    js_on_load=_asset("painter.js"),
                    **_words(self.prompt),
                    background="",
                    elem_id="canvas",
                )
                overlaps = gr.Checkbox(False, label="Upper layers hide lower ones")
                with gr.Row():
                    save = gr.DownloadButton("Save regions", size="sm")
                    load = gr.UploadButton("Load regions", file_types=[".zip", ".json"], size="sm")
                with gr.Accordion("A picture of yours", open=False):
                    picture = gr.Image(type="filepath", sources=["upload"], label="Picture", height=200)
                    way = gr.Radio(list(_WAYS), value=next(iter(_WAYS)), label="What it is for")
            with gr.Column(scale=1):
                method = gr.Dropdown([PLAIN, *METHODS], value=DEFAULT, label="Method", elem_id="method")
                said = gr.Markdown(METHODS[DEFAULT].summary)
                with gr.Accordion("Options", open=False):
                    options = gr.Dataframe(
                        _option_lines(DEFAULT),
                        headers=["option", "value", "meaning"],
                        datatype="str",
                        static_columns=[0, 2],
                        column_widths=["20%", "20%", "60%"],
                        wrap=True,
                        interactive=True,
                        show_label=False,
                    )
                with gr.Row():
                    seeds = gr.Textbox("0", label="Seeds", info="0 1 2, or 0..3", elem_id="seeds")
                    steps = gr.Slider(1, 100, 30, step=1, label="Steps", elem_id="steps")
                    cfg = gr.Slider(1, 20, 5, step=0.5, label="CFG scale")
                negative = gr.Textbox("", label="Negative prompt")
                with gr.Row():
                    go = gr.Button("Make pictures", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", elem_id="stop")
                state = gr.Markdown("", elem_id="state")
                with gr.Tab("Pictures"):
                    pictures = gr.Gallery(label="Plain beside steered", columns=2, object_fit="contain", elem_id="pictures")
                with gr.Tab("Where words look"):
                    maps = gr.Gallery(label="Attention over the picture", columns=2, object_fit="contain", elem_id="maps")
                with gr.Tab("Loss"):
                    loss = gr.HTML("", elem_id="loss")
                with gr.Tab("As text"):
                    line = gr.Code(label="Command line", language="shell", elem_id="line", wrap_lines=True)
                    yaml = gr.Code(label="For attnguide sample --config", language="yaml", elem_id="yaml")
        screen = [prompt, canvas, overlaps, method, options, seeds, steps, cfg, negative, picture, way]
        run = go.click(
            self.run,
            screen,
            [state, pictures, maps, loss, canvas],
            concurrency_limit=1,
            concurrency_id="network",
            api_name="run",
        )
        stop.click(self.stop, None, state, queue=False, api_name=False)
        page.unload(self.left)
        prompt.change(lambda text: gr.HTML(**_words(text)), prompt, canvas, queue=False, api_name=False)
        method.change(_described, method, [said, options], queue=False, api_name=False)
        picture.change(lambda path: gr.HTML(background=_background(path)), picture, canvas, api_name=False)
        load.upload(_loaded, load, [canvas, state], api_name=False)
        save.click(self.save, screen, save, api_name=False)
        told = [prompt, canvas, overlaps, method, options, seeds, steps, cfg, negative, way]
        gr.on(
            [item.change for item in told],
            self.as_text,
            screen,
            [line, yaml],
            queue=False,
            api_name="text",
            show_progress="hidden",
        )
        page.load(self.as_text, screen, [line, yaml], queue=False, api_name=False)
        del run

    # ------------------------------------------------------------------------------------------------------ what happens

    def run(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Make the pictures, yielding outputs of the page until the run ends, is stopped or the page is closed."""
        stop = self.stops[str(request.session_hash)] = threading.Event()
        try:
            rows = Screen(*values).rows()
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        for news in run_rows(self.model, rows, stop):
            yield shown_news(news, rows)
        if news.problem is not None and news.problem != "stopped":
            raise gr.Error(news.problem, print_exception=False)

    def stop(self, request: gr.Request) -> str:
        """Stop the session's run at its next step."""
        if (stop := self.stops.get(str(request.session_hash))) is not None:
            stop.set()
        return "stopped"

    def left(self, request: gr.Request) -> None:
        """Stop the session's run when its tab is closed."""
        self.stop(request)
        self.stops.pop(str(request.session_hash), None)

    def as_text(self, *values: Any) -> tuple[str, str]:
        """The inputs as a command line and as YAML; the error, commented out, if they are invalid."""
        try:
            config = Screen(*values).config(self.name)
        except ValueError as error:
            return f"# {error}", f"# {error}"
        return command_line(config), as_yaml(config)

    def save(self, *values: Any) -> str:
        """Write regions and configuration to a zip file for the browser to download; returns its path."""
        screen = Screen(*values)
        path = Path(tempfile.mkdtemp(prefix="attnguide-")) / "regions.zip"
        try:
            save_drawing(path, screen.drawing, screen.config(self.name), screen.regions)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return str(path)


def _words(prompt: str) -> dict[str, Any]:
    """Properties of the canvas for a prompt: phrases that can be drawn, and their colours."""
    found = phrases(prompt)
    return {"words": found, "inks": dict(zip(found, region_colors(found), strict=True))}


def _asset(name: str) -> str:
    return (resources.files("attnguide.ui") / name).read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """A default value as YAML on one line; text as it is."""
    return dump_yaml(value).strip().removesuffix("...").strip().replace("\n", " ") if not isinstance(value, str) else value


def _option_lines(method: str) -> list[list[str]]:
    if method == PLAIN:
        return []
    meanings = option_meanings(method)
    return [[name, _shown(value), meanings.get(name, "")] for name, value in method_options(method).items()]


def _described(method: str) -> tuple[str, list[list[str]]]:
    return ("no method" if method == PLAIN else METHODS[method].summary), _option_lines(method)


def _loaded(path: str) -> tuple[Any, str]:
    try:
        return gr.HTML(value=load_drawing(Path(path))), "regions loaded"
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _background(path: str | None) -> str:
    """The user's picture as a data URL of at most 512 pixels for the canvas; empty text without a picture."""
    from attnguide.ui.drawing import check_picture

    if path is None:
        return ""
    try:
        check_picture(path)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((512, 512))
    return data_url(small)
