"""``attnguide eval --pictures``: judges existing pictures instead of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnguide.cli.errors import UsageError, one_line
from attnguide.cli.eval_outcome import about, places, summary, title_of
from attnguide.cli.folders import existing_folder
from attnguide.evaluation.benchmark import benchmark_rows
from attnguide.run_folder.folder import check_run_folder, config_text, locked_run
from attnguide.run_folder.made_with import CONFIG_FILE


def judge_pictures(asked: Mapping[str, Any]) -> int:
    """Judge the pictures of a folder against a benchmark, and write the tables.

    Args:
        asked: Settings of ``attnguide eval``.

    Returns:
        0, or 1 if a row has no picture.

    Raises:
        UsageError: If the pictures, the benchmark, a judge or the folder cannot be used; nothing is written then.
    """
    from attnguide.cli.opening import judging, quiet
    from attnguide.evaluation.callback import EvalLog
    from attnguide.evaluation.pictures import judge_files, picture_rows
    from attnguide.report.page import write_report

    pictures, out = existing_folder("pictures", asked["pictures"]), asked["out"]
    if (name := next((name for name in ("methods", "resume", "tune") if asked[name]), None)) is not None:
        name = name.removesuffix("s")
        raise UsageError(f"{name}: expected pictures alone, which are only looked at; got --{name} beside --pictures")
    if out is None:
        raise UsageError("out: expected --out with a folder for the tables; got none")
    reference = None if asked["reference"] is None else existing_folder("reference", asked["reference"])
    try:
        found = picture_rows(pictures, benchmark_rows(asked))
        check_run_folder(out)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    quiet()
    judges = judging(asked["judge"])
    for judge in judges:
        judge.to(_device(asked["device"]))
    samples = [sample for sample, _ in found]
    print(f"judging {sum(path is not None for _, path in found)} pictures of {pictures} ...", flush=True)
    folder = Path(out)
    with locked_run(folder):
        kept = {name: value for name, value in asked.items() if name not in ("out", "resume")}
        (folder / CONFIG_FILE).write_text(config_text(kept), encoding="utf-8")
        judge_files(folder, found, judges)
        log = EvalLog(samples, {}, title_of(asked), {**about(asked, samples), "model": f"pictures of {pictures}"}, reference)
        compared = log.write(folder)
        page = write_report(folder)
    missing = sum(len(one.reasons) for one in compared.accounts)
    told = f"rows     {len(found) - missing} ok" + (f", {missing} refused" if missing else "")
    print("\n".join(["", *summary(compared), told]))
    print("\n".join(["", *places(folder), f"{page}  all of it on one page"]))
    return int(missing > 0)


def _device(name: str | None) -> str:
    from attnguide.models.load import resolve_device

    return str(resolve_device(name))
