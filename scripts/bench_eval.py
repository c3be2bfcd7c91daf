"""Time of `attnguide eval` apart from sampling: reading and planning a long benchmark, its tables, its page.

    python scripts/bench_eval.py                        # 3,300 rows, plain, two methods and the best of two
    python scripts/bench_eval.py --rows 300 --browser   # also opens the page in a Chromium

The rows are the embedded benchmark's, again and again, as a CSV file of 7Bench's columns. No model is loaded: pictures
are noise and a stand-in for a detector says random things of them. Seconds by the clock and of the CPU, without imports.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from attnguide.callbacks.judging import append_judged
from attnguide.cli.eval import make_eval_plan, settings
from attnguide.cli.plan import Plan
from attnguide.evaluation.callback import EvalLog
from attnguide.evaluation.compare import compare_folder
from attnguide.judges.base import Detection, Seen
from attnguide.metrics.functional import DETAILS, QUESTIONS
from attnguide.report.page import write_report
from attnguide.run_folder.records import RECORDS_FILE, SAMPLES_FOLDER, record_of
from attnguide.run_folder.tables import append_table
from attnguide.shapes.layouts import FILES
from attnguide.types import Cost, SampleResult

T = TypeVar("T")
Line = dict[str, Any]

METHODS = ("mask_guidance", "layout_guidance")
PICTURES = 3000
"""Number of noise pictures that are written; the page shows 200 and the sheets a few."""


_DECODE = """
const all = [...document.images];
all.forEach(one => { one.loading = "eager" });
Promise.allSettled(all.map(one => one.decode())).then(() => arguments[0](all.length));
"""
_COUNT = """
return [[...document.images].filter(one => one.naturalWidth).length, document.images.length,
        document.querySelectorAll("table").length]
"""


def write_rows(path: Path, count: int) -> None:
    """Write a benchmark file with ``count`` rows."""
    with FILES["benchmark"].open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [{**lines[index % len(lines)], "id": f"{index:05d}"} for index in range(count)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plan_of(path: Path, out: Path) -> tuple[Plan, dict[str, int]]:
    """The plan that `attnguide eval` makes of a benchmark file."""
    asked = {setting.name: setting.default for setting in settings()}
    methods = [[{"name": name}] for name in METHODS]
    return make_eval_plan(
        {**asked, "rows": str(path), "box_size": [128, 128], "methods": methods, "best_of": 2, "out": str(out)}
    )


def pretend(plan: Plan) -> None:
    """Write a finished run folder for a plan, with noise as pictures and random detections."""
    rng = random.Random(0)
    noise = Image.effect_noise((128, 128), 40).convert("RGB")
    records, judged = [], []
    for number, sample in enumerate(plan.samples):
        numbers = {name: round(rng.random(), 3) for name in (*QUESTIONS, *DETAILS)}
        found = [
            Detection(region.phrase, (round(0.4 * rng.random(), 3), 0.1, 0.6, 0.9), rng.random()) for region in sample.regions
        ]
        records.append(record_of(SampleResult(sample, None, None, Cost(60, 0, 1.0, 1.0), "ok"), numbers))
        judged.append((sample.id, {"detector": (Seen(tuple(found)), numbers)}))
        if number < PICTURES:
            path = plan.folder / SAMPLES_FOLDER / f"{sample.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise.save(path)
    append_table(plan.folder / RECORDS_FILE, tuple(records[0]), records)
    append_judged(plan.folder, judged)


def timed(name: str, work: Callable[[], T], lines: list[Line]) -> T:
    """Call ``work`` and append its name and seconds to ``lines``; returns its result."""
    clock, cpu = time.perf_counter(), time.process_time()
    found = work()
    lines.append({"part": name, "seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu})
    return found


def opened(page: Path) -> str:
    """Numbers of pictures and tables that a Chromium shows once the page is loaded, as text."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        start = time.perf_counter()
        browser.get(page.resolve().as_uri())
        seconds = time.perf_counter() - start
        browser.execute_async_script(_DECODE)
        whole, pictures, tables = browser.execute_script(_COUNT)
        return f"{whole} of {pictures} pictures, {tables} tables, {seconds:.1f} s to load"
    finally:
        browser.quit()


def measure(folder: Path, rows: int) -> tuple[list[Line], Path, int]:
    """Seconds of each part, path of the page, and number of pictures of the run."""
    lines: list[Line] = []
    write_rows(folder / "rows.csv", rows)
    plan, tries = timed("reading and planning", lambda: plan_of(folder / "rows.csv", folder / "run"), lines)
    pretend(plan)
    log = EvalLog(plan.samples, tries, "a long benchmark", {})
    timed("closing tables", lambda: compare_folder(plan.folder, plan.samples, tries), lines)
    timed("closing tables again, and sheets", lambda: log.write(plan.folder), lines)
    page = timed("page", lambda: write_report(plan.folder), lines)
    return lines, page, len(plan.samples)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3300, help="of the benchmark")
    parser.add_argument("--browser", action="store_true", help="open the page in a Chromium (needs selenium and chromedriver)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        lines, page, pictures = measure(Path(folder), args.rows)
        print(f"{args.rows} rows, {pictures} pictures\n\n{'part':<36}{'seconds':>9}{'CPU':>9}")
        for line in lines:
            print(f"{line['part']:<36}{line['seconds']:>9.2f}{line['cpu']:>9.2f}")
        print(f"\nthe page has {page.stat().st_size / 2**20:.1f} MiB")
        if args.browser:
            print(f"in Chromium: {opened(page)}")


if __name__ == "__main__":
    main()
