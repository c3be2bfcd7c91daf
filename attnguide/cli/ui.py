"""``attnguide ui``: a page in the browser to draw regions on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from attnguide.cli import sample, values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError, reason
from attnguide.cli.values import Setting

DESCRIPTION = """\
Open a page in the browser: pick words of the prompt, draw boxes with the mouse or masks with a brush, choose a method, and
watch the picture follow. The command line and the configuration of what is on the page can be copied from it.
The page is served on this machine alone (127.0.0.1) unless --host says otherwise."""

EXAMPLES = """\
examples:
  attnguide ui
  attnguide ui "a cat and a dog" --model ./sd15 --port 7861"""

_SHARED = ("model", "model_config", "variant", "device", "dtype", "offload", "checkpointing", "lora")


def settings() -> list[Setting]:
    """Everything ``attnguide ui`` can be told."""
    shared = {setting.name: setting for setting in sample.settings()}
    return [
        Setting("prompt", values.words, None, "what stands on the page at first", metavar="PROMPT"),
        *(shared[name] for name in _SHARED),
        Setting("host", values.words, "127.0.0.1", "address to serve on; 0.0.0.0 lets every machine of the network in"),
        Setting(
            "port", values.whole(1, most=65535), None, "port to serve on; the first free one from 7860 by default", metavar="N"
        ),
        Setting("browser", values.flag, True, "do not open a browser", option="--no-browser"),
    ]


def run(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide ui", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("ui: needs a package that is not installed: pip install 'attnguide[ui]'")
    from attnguide.cli.execute import loaded, quiet

    print(f"loading model {asked['model']} ...", flush=True)
    quiet()
    model = loaded(asked)
    from attnguide.ui.page import Page, serve

    page = Page(model, asked["model"], *([asked["prompt"]] if asked["prompt"] else [])).blocks()
    try:
        address = serve(page, asked["host"], asked["port"], browser=asked["browser"])
    except OSError as error:
        raise UsageError(f"port: {reason(error)}") from error
    print(f"{address}  Ctrl-C ends it", flush=True)
    page.block_thread()
    return 0
