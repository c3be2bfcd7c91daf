"""The page as a program talks to it, without a browser."""

from __future__ import annotations

import json
import threading
import types
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import gradio
import pytest
from gradio_client import Client
from PIL import Image

from attnguide.cli import main
from attnguide.metrics.scoring import shapes_scores
from attnguide.models.load import load_model
from attnguide.sampling.table import sample_rows
from attnguide.types import Sample
from attnguide.ui.news import shown_news
from attnguide.ui.page import PROMPT, Screen, serve
from attnguide.ui.running import Live, run_rows
from tests.ui.conftest import Served

BOXES = {"red circle": [0.05, 0.3, 0.45, 0.7], "blue square": [0.55, 0.3, 0.95, 0.7]}
DRAWING = json.dumps({"regions": [{"phrase": phrase, "box": box} for phrase, box in BOXES.items()]})
NO_OPTIONS = {"headers": ["option", "value", "meaning"], "data": []}


def _asked(drawing: str = DRAWING, method: str = "mask_guidance", seeds: str = "0", steps: int = 8) -> list[object]:
    return [PROMPT, drawing, False, method, NO_OPTIONS, seeds, steps, 5, "", None, "only to draw on"]


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.address, verbose=False)


def test_a_drawing_becomes_pictures_maps_and_losses(client: Client) -> None:
    job = client.submit(*_asked(steps=4, seeds="0 1"), api_name="/run")
    state, pictures, maps, *_ = job.result(timeout=120)
    assert state == "4 of 4 pictures"
    order = ["seed 0, plain", "seed 0, mask_guidance", "seed 1, plain", "seed 1, mask_guidance"]
    assert [picture["caption"] for picture in pictures] == order, "plain beside steered"
    assert [heat["caption"] for heat in maps["value"]] == [f"{word}: {row}" for row in order for word in BOXES]
    assert maps["columns"] == 2 and Image.open(maps["value"][0]["image"]).size == (256, 256)
    first = job.outputs()[0]
    assert first[0].endswith("of 8 steps"), "told of before it was done"
    assert [picture["caption"] for picture in first[1]] == order, "each in its place from the beginning"


def test_previews_and_losses_come_while_a_picture_is_made() -> None:
    rows = Screen(PROMPT, DRAWING, False, "mask_guidance", [], "0", 4, 5.0, "", None, "").rows()
    (steered,) = [row for row in rows if row.methods]
    live = Live(threading.Event(), 4)
    list(sample_rows(load_model("shapes"), [steered], observer=live))
    told = list(live.news.queue)
    assert [news.done for news in told] == [1, 2, 3, 4, 4] and not any(news.rows for news in told[:4])
    pictures = [news.previews[0].tobytes() for news in told[:4]]
    assert len(set(pictures)) == 4, "another picture after each step"
    counts = [len(news.losses) for news in told[:4]]
    assert counts[0] >= 1 and counts[1] > counts[0], "guided in the first half of the steps"
    assert told[3].losses[-1][1] < told[3].losses[0][1], "it falls"
    charts = [shown_news(news, [steered])[3] for news in told[:4]]
    assert [chart.count("<polyline") for chart in charts] == [1] * 4 and charts[0] != charts[1]


def test_the_page_is_on_this_machine_alone_and_bounds_what_is_sent(served: Served, client: Client) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    boundary = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(f"{served.address}gradio_api/upload", boundary + bytes(21 * 2**20) + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with pytest.raises(OSError, match="413"):
        urllib.request.urlopen(request, timeout=20)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seeds": "0..99"}, "at most 16"),
        ({"drawing": '{"regions": 3}'}, "a list of at most"),
        ({"drawing": json.dumps({"regions": [{"phrase": "cat", "box": [0, 0, 1, 1]}]})}, "does not occur in the prompt"),
    ],
)
def test_what_cannot_be_made_is_said(changed: dict[str, str], says: str, client: Client) -> None:
    with pytest.raises(Exception, match=says):
        client.predict(*_asked(**changed), api_name="/run")  # type: ignore[arg-type]


def test_what_is_on_the_page_can_be_typed(client: Client) -> None:
    line, yaml = client.predict(*_asked(seeds="0..2"), api_name="/text")
    assert line.startswith("attnguide sample 'a red circle and a blue square on a white background' --region 'red circle=0.05")
    assert "--method mask_guidance --seed 0 1 2 --steps 8" in line and "seed:\n- 0\n- 1\n- 2" in yaml


def test_the_judge_finds_both_objects_in_their_boxes() -> None:
    rows = Screen(PROMPT, DRAWING, False, "mask_guidance", [], "0", 8, 5.0, "", None, "").rows()
    last = list(run_rows(load_model("shapes"), rows, threading.Event()))[-1]
    assert [row.result.sample.id for row in last.rows] == ["seed0-plain", "seed0"] and last.problem is None
    assert shapes_scores(last.rows[1].result)["region_hit"] == 1


def test_a_run_ends_at_its_next_step_when_it_is_told_to() -> None:
    stop = threading.Event()
    told = run_rows(load_model("shapes"), [Sample("a", "a red circle", steps=500)], stop)
    next(told)
    stop.set()
    *_, last = told
    assert last.problem == "stopped" and last.done < 500 and last.rows == ()


def test_the_command_serves_the_page_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[str, int | None]] = []

    def serve(page: gradio.Blocks, host: str, port: int | None, *, browser: bool, auth: tuple[str, str] | None) -> str:
        served.append((host, port))
        monkeypatch.setattr(page, "block_thread", lambda: None)
        assert browser is False and "a red cat" in str(page.get_config_file())
        return "http://here"

    monkeypatch.setattr("attnguide.ui.page.serve", serve)
    assert main(["ui", "a red cat", "--no-browser", "--port", "7999", "--model", "shapes"]) == 0
    assert served == [("127.0.0.1", 7999)] and "http://here  Ctrl-C ends it" in capsys.readouterr().out


def test_other_machines_are_asked_for_a_password(served: Served) -> None:
    page = served.page.blocks()
    address = serve(page, auth=("me", "secret"))
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}config", timeout=20)
        for password, opened in (("wrong", False), ("secret", True)):
            form = urllib.parse.urlencode({"username": "me", "password": password}).encode()
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            try:
                browser.open(f"{address}login", form, timeout=20)
                found = "components" in json.load(browser.open(f"{address}config", timeout=20))
            except urllib.error.HTTPError:
                found = False
            assert found == opened, password
    finally:
        page.close()


def test_another_address_needs_a_password_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []
    monkeypatch.setattr("attnguide.cli.opening.loaded", lambda asked: None)
    monkeypatch.setattr("attnguide.ui.page.Page", lambda *_: types.SimpleNamespace(blocks=lambda: _Endless()))
    monkeypatch.setattr("attnguide.ui.page.serve", lambda *_, browser, auth: given.append(auth) or "http://there/")
    file = tmp_path / "auth"
    file.write_text("me:s3cret:word\n")
    words = ["ui", "--host", "0.0.0.0", "--no-browser"]
    assert main(words) == 2 and "needs a password" in capsys.readouterr().err
    file.chmod(0o644)
    assert main([*words, "--auth-file", str(file)]) == 2 and "chmod 600" in capsys.readouterr().err
    file.chmod(0o600)
    assert main([*words, "--auth-file", str(file), "--print_config"]) == 0
    assert main([*words, "--auth-file", str(file)]) == 0
    monkeypatch.setenv("ATTNGUIDE_UI_AUTH", "you:f00bar")
    assert main(words) == 0 and given == [("me", "s3cret:word"), ("you", "f00bar")]
    monkeypatch.setenv("ATTNGUIDE_UI_AUTH", "s3cret")
    assert main(words) == 2 and main([*words, "--auth-file", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert "s3cret" not in said.out + said.err and "f00bar" not in said.out + said.err


class _Endless:
    def block_thread(self) -> None:
        """Ctrl-C at once."""
