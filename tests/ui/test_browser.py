"""Drawing with the mouse in a real Chromium, headless; where there is none, what can be told of the canvas without one."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from attnguide.metrics.scoring import shapes_scores
from attnguide.report.page import write_report
from attnguide.run_folder.records import RECORD_COLUMNS
from attnguide.run_folder.tables import append_table
from attnguide.types import Cost, Region, Sample, SampleResult
from attnguide.ui.page import PROMPT
from attnguide.ui.running import WORKER
from tests.ui.conftest import CHROMIUM, DRIVER, Served

BOXES = {"red circle": (0.05, 0.3, 0.45, 0.7), "blue square": (0.55, 0.3, 0.95, 0.7)}


def _until(found: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"nothing after {seconds} s")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1400"):
        options.add_argument(argument)
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def _open(browser: webdriver.Chrome, served: Served) -> None:
    browser.get(served.address)
    _until(lambda: browser.find_elements(By.CSS_SELECTOR, ".painter canvas"))
    _until(lambda: browser.find_elements(By.CSS_SELECTOR, ".painter .words button"))


def _drag(browser: webdriver.Chrome, phrase: str, box: tuple[float, float, float, float]) -> None:
    browser.find_element(By.CSS_SELECTOR, f'.painter .words button[data-phrase="{phrase}"]').click()
    canvas = browser.find_element(By.CSS_SELECTOR, ".painter canvas")
    width, height = canvas.size["width"], canvas.size["height"]
    corners = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in (box[:2], box[2:])]
    mouse = ActionChains(browser, duration=20).move_to_element_with_offset(canvas, *corners[0]).click_and_hold()
    mouse.move_to_element_with_offset(canvas, *corners[1]).release().perform()


def _layers(browser: webdriver.Chrome) -> list[str]:
    return [item.text.split(":")[0] for item in browser.find_elements(By.CSS_SELECTOR, ".painter .layers li")]


def _set(browser: webdriver.Chrome, selector: str, text: str) -> None:
    field = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].select()", field)
    field.send_keys(text + "\t")


def _choose(browser: webdriver.Chrome, selector: str, option: str) -> None:
    field = browser.find_element(By.CSS_SELECTOR, f"{selector} input")
    field.click()
    field.send_keys(Keys.CONTROL + "a" + Keys.NULL + option)
    _until(lambda: browser.find_elements(By.CSS_SELECTOR, f'[role="option"][aria-label="{option}"]'), 20)
    field.send_keys(Keys.ENTER)


def _tab(browser: webdriver.Chrome, name: str) -> None:
    browser.find_element(By.XPATH, f"//button[@role='tab' and contains(., '{name}')]").click()


FALLING = """
window.falling = [];
new MutationObserver(() => {
  const line = document.querySelector("#loss polyline");
  if (line) window.falling.push([document.querySelector("#state").innerText, line.getAttribute("points").split(" ").length]);
}).observe(document.body, {childList: true, subtree: true, characterData: true});
"""
"""Notes what the page says of the run, and how many points the loss has, whenever anything on the page changes."""


def _judged(url: str) -> dict[str, float]:
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    row = Sample("a", PROMPT, regions=tuple(Region(phrase, box=box) for phrase, box in BOXES.items()))
    return shapes_scores(SampleResult(row, picture, None, Cost(0, 0, 0, 0)))


def two_boxes_are_drawn_and_the_judge_finds_both_objects_in_them(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    for phrase, box in BOXES.items():
        _drag(browser, phrase, box)
    assert _layers(browser) == ["blue square", "red circle"], "the newest on top"
    _set(browser, '#steps input[type="number"]', "8")
    _choose(browser, "#method", "mask_guidance")
    _tab(browser, "Loss")
    browser.execute_script(FALLING)
    browser.find_element(By.ID, "go").click()
    _until(lambda: "2 of 2 pictures" in browser.find_element(By.ID, "state").text)
    points = [count for state, count in browser.execute_script("return window.falling") if "of 16 steps" in state]
    assert points and points == sorted(points), "the loss is drawn while the picture is made"
    _tab(browser, "Pictures")
    shown = _until(lambda: browser.execute_script("return document.querySelector('.painter').picture"))
    scores = _judged(shown)
    assert scores["region_hit"] == 1 and scores["all_present"] == 1, scores
    assert len(browser.find_elements(By.CSS_SELECTOR, "#pictures .gallery-item, #pictures .thumbnail-item")) >= 2
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]  # type: ignore[no-untyped-call]
    asked = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
    assert asked and all(re.match(r"(http://127\.0\.0\.1:|data:|blob:|chrome:|about:)", url) for url in asked), (
        "nothing from elsewhere"
    )


def a_brush_paints_a_soft_mask_and_layers_change_places(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    _drag(browser, "red circle", (0.1, 0.1, 0.6, 0.6))
    browser.find_element(By.CSS_SELECTOR, '.painter [data-tool="brush"]').click()
    _drag(browser, "blue square", (0.5, 0.5, 0.9, 0.9))
    browser.find_element(By.CSS_SELECTOR, '.painter .layers li button[title="down"]').click()
    assert _layers(browser) == ["red circle", "blue square"]
    _tab(browser, "As text")
    line = browser.find_element(By.ID, "line")
    _until(
        lambda: re.search(r"'blue square=blue_square.png' --region 'red circle=0.[01\d.,]+'", line.text.replace("\n", "")), 20
    )


def a_closed_tab_ends_its_run(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    before = set(served.page.stops)
    _set(browser, '#steps input[type="number"]', "100")
    _set(browser, "#seeds textarea, #seeds input", "0..15")  # minutes, if nothing ended it
    browser.find_element(By.ID, "go").click()
    _until(lambda: "steps" in browser.find_element(By.ID, "state").text)
    (session,) = set(served.page.stops) - before
    stop = served.page.stops[session]
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    second = browser.current_window_handle
    browser.switch_to.window(first)
    browser.close()
    browser.switch_to.window(second)
    _until(lambda: session not in served.page.stops, 30)
    assert stop.is_set()
    _until(lambda: all(thread.name != WORKER for thread in threading.enumerate()), 30)


def _report(folder: Path, count: int) -> Path:
    """The page of a run of four methods with long names and of more metrics than fit a screen."""
    methods = ("plain", "attend_and_excite", "bounded_attention", "cross_attention_control")
    scores = ("inside", "count", "region_hit", "object_inside", "background", "loss_bounded_attention", "count_found", "iou")
    settings = {"prompt": PROMPT, "steps": "30", "regions": json.dumps([{"phrase": k, "box": v} for k, v in BOXES.items()])}
    rows = [
        {**dict.fromkeys(RECORD_COLUMNS, ""), **settings, "id": f"seed{index // 4}-{methods[index % 4]}", "seed": index // 4}
        | {"method": methods[index % 4], "status": "ok", "unet_forwards": 60 + index % 4, "seconds": 1.5 + index % 7}
        | {name: (index % (3 + place)) / 7 for place, name in enumerate(scores)}
        for index in range(count)
    ]
    append_table(folder / "records.csv", tuple(rows[0]), rows)
    (folder / "samples").mkdir()
    for row in rows[:8]:
        Image.new("RGB", (64, 64), "red").save(folder / "samples" / f"{row['id']}.png")
    (folder / "plots").mkdir()
    for path in (folder / "sheet.png", folder / "plots" / "inside-over-scale.png"):
        Image.new("RGB", (1600, 400), "blue").save(path)
    (folder / "config.yaml").write_text("steps: 30\n")  # so that the page has every heading and link
    return write_report(folder)


def a_report_fits_a_screen_and_a_telephone(browser: webdriver.Chrome, tmp_path: Path) -> None:
    for count in (12, 300):
        page = _report(tmp_path / str(count), count)
        for width, height, scheme in ((1280, 900, "light"), (390, 800, "dark")):
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get(page.as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (count, width)
            tables = browser.find_elements(By.CSS_SELECTOR, ".scroll")
            shown = browser.execute_script(
                "const b = arguments[0].getBoundingClientRect(); return [b.right, b.bottom]", tables[0]
            )
            assert shown[0] <= width and shown[1] <= height, "the means lie on the first screen"
            if width == 1280:
                assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", tables[0])
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def the_page_is_served_with_a_canvas_that_no_browser_tried(served: Served) -> None:
    """Without a Chromium nobody draws: mouse, brush, layers and a closed tab are untested here."""
    page = urllib.request.urlopen(served.address, timeout=20).read().decode()
    assert "js_on_load" in page and "pointerdown" in page
    code = re.sub(r"//[^\n]*", "", (resources.files("attnguide.ui") / "painter.js").read_text())
    assert all(code.count(left) == code.count(right) for left, right in ("()", "[]", "{}"))


if CHROMIUM and DRIVER:
    test_two_boxes_in_chromium = two_boxes_are_drawn_and_the_judge_finds_both_objects_in_them
    test_a_brush_in_chromium = a_brush_paints_a_soft_mask_and_layers_change_places
    test_a_closed_tab_in_chromium = a_closed_tab_ends_its_run
    test_a_report_in_chromium = a_report_fits_a_screen_and_a_telephone
else:
    test_only_that_the_canvas_is_served_as_there_is_no_chromium = the_page_is_served_with_a_canvas_that_no_browser_tried
