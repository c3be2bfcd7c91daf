"""``attnguide ui``: serves a page in the browser to draw regions on."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError, reason
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting, under

DESCRIPTION = """\
Open a page in the browser: pick words of the prompt, draw boxes with the mouse or masks with a brush, choose a method, and
watch the picture follow. The command line and the configuration of what is on the page can be copied from it.
The page is served on this machine alone (127.0.0.1). On any other address it asks for a name and a password, which
--auth-file or the environment variable ATTNGUIDE_UI_AUTH holds as USER:PASSWORD; without them other addresses are refused."""

EXAMPLES = """\
examples:
  attnguide ui
  attnguide ui "a cat and a dog" --model ./sd15 --port 7861
  attnguide ui --host 0.0.0.0 --auth-file ~/.attnguide-ui"""

AUTH = "ATTNGUIDE_UI_AUTH"
"""Environment variable with ``USER:PASSWORD``."""

_SHARED = ("model", "model_config", "variant", "device", "dtype", "offload", "checkpointing", "lora")


def settings() -> list[Setting]:
    """Settings of ``attnguide ui``."""
    shared = {setting.name: setting for setting in run_settings()}
    return [
        Setting("prompt", values.words, None, "prompt that the page begins with", metavar="PROMPT"),
        *(shared[name] for name in _SHARED),
        *under("the page", _served()),
    ]


def _served() -> list[Setting]:
    return [
        Setting("host", values.words, "127.0.0.1", "address to serve on; 0.0.0.0 lets every machine of the network in"),
        Setting(
            "auth_file",
            values.words,
            None,
            f"file that holds USER:PASSWORD, asked for by the page; the variable {AUTH} otherwise",
            metavar="FILE",
        ),
        Setting(
            "port",
            values.whole(1, most=65535),
            None,
            "port to serve on; the first free one from 7860 by default",
            metavar="N",
        ),
        Setting("browser", values.flag, True, "do not open a browser", option="--no-browser"),
    ]


def run(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide ui", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("ui: needs a package that is not installed: pip install 'attnguide[ui]'")
    auth = credentials(asked["auth_file"])
    if auth is None and not is_this_machine(asked["host"]):
        raise UsageError(
            f"host: {asked['host']!r} lets other machines in, which needs a password: --auth-file FILE or {AUTH}=USER:PASSWORD"
        )
    from attnguide.cli.opening import loaded, quiet

    print(f"loading model {asked['model']} ...", flush=True)
    quiet()
    model = loaded(asked)
    from attnguide.ui.page import Page, serve

    page = Page(model, asked["model"], *([asked["prompt"]] if asked["prompt"] else [])).blocks()
    try:
        address = serve(page, asked["host"], asked["port"], browser=asked["browser"], auth=auth)
    except OSError as error:
        raise UsageError(f"port: {reason(error)}") from error
    print(f"{address}  Ctrl-C ends it", flush=True)
    page.block_thread()
    return 0


def is_this_machine(host: str) -> bool:
    """Whether an address is a loopback address, which other machines cannot reach.

    Example:
        >>> [is_this_machine(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.0.7", "my-machine")]
        [True, True, True, False, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(path: str | None) -> tuple[str, str] | None:
    """User and password from a file, else from the environment variable :data:`AUTH`; ``None`` without either.

    Raises:
        UsageError: If the file cannot be read, others may read it, or it does not hold ``USER:PASSWORD``; never shows its text.
    """
    text = os.environ.get(AUTH)
    if path is not None:
        file = Path(path).expanduser()
        try:
            text = file.read_text(encoding="utf-8").strip()
            shared = file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"auth_file: {path!r} cannot be read ({reason(error)})") from error
        if shared and os.name == "posix":
            raise UsageError(f"auth_file: expected a file that nobody else may read; chmod 600 {path}")
    if text is None:
        return None
    user, divider, password = text.partition(":")
    if not (user and divider and password) or "\n" in text:
        raise UsageError(f"{'auth_file' if path else AUTH}: expected one line, USER:PASSWORD; what is there is not shown")
    return user, password
