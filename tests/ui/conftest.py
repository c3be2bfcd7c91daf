"""The page, served on this machine, and a Chromium where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from attnguide.models.load import load_model
from attnguide.ui.page import Page, serve

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")


@dataclass(frozen=True)
class Served:
    """A page that is being served.

    Attributes:
        page: Behind it.
        address: To open.
    """

    page: Page
    address: str


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    page = Page(load_model("shapes"), "shapes")
    blocks = page.blocks()
    yield Served(page, serve(blocks))
    blocks.close()
