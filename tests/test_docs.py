"""The site of README's pages is built, every warning an error."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

import attnguide

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # of libraries in one another
def test_the_site_is_built_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    docs, said = ROOT / "docs", io.StringIO()
    with patch_docutils(docs), docutils_namespace():
        app = Sphinx(docs, docs, tmp_path / "site", tmp_path / "seen", "html", status=None, warning=said)
        app.build()
    assert app.statuscode == 0 and said.getvalue() == ""
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert [name for name in attnguide.__all__ if f'id="attnguide.{name}"' not in api] == ["METHODS"]
