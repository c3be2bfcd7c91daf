from pathlib import Path

import pytest
import summarise_norms

HEAD = "id,step,stage,site,height,width,region,phrase,mean,l1,l2,max,entropy,inside\n"


def _write(folder: Path) -> None:
    """Two sites that differ by 4, two steps that differ by 2 at the second site alone, two words alike."""
    lines = []
    for step in (0, 1):
        for site, size, value in (("down.attn2", 16, 0.1), ("mid.attn2", 4, 0.4 * 2**step)):
            for region, phrase in enumerate(("red cat", "blue ball")):
                lines.append(f"a-plain,{step},before,{site},{size},{size},{region},{phrase},{value},1,1,1,1,nan\n")
    (folder / "map_norms.csv").write_text(HEAD + "".join(lines))


def test_by_hand(tmp_path: Path) -> None:
    _write(tmp_path)
    measures = summarise_norms.read(tmp_path / "map_norms.csv", "plain", "before")
    axes = summarise_norms.AXES
    assert summarise_norms.spread(measures, axes["site"], "mean") == pytest.approx(0.6 / 0.1)
    assert summarise_norms.spread(measures, axes["step"], "mean") == pytest.approx(0.45 / 0.25)
    assert summarise_norms.explained(measures, axes["word"], "mean") == pytest.approx(0)
    # log2: sites at 0 and 2 or 3 above it; between sites 2 (1.25^2), within 0.25 in all, over 4 maps.
    assert summarise_norms.explained(measures, axes["site"], "mean") == pytest.approx(4 * 1.25**2 / (4 * 1.25**2 + 0.5))
    assert summarise_norms.explained(measures, axes["map size"], "mean") == summarise_norms.explained(
        measures, axes["site"], "mean"
    )


def test_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path)
    summarise_norms.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "8 maps of 1 rows" in said and "mid.attn2   4x4" in said and "2.00" in said


@pytest.mark.parametrize(("words", "message"), [(["--rows", "inject"], "'inject' in its id"), (["gone"], "map_norms.csv")])
def test_wrong_runs(tmp_path: Path, words: list[str], message: str) -> None:
    _write(tmp_path)
    with pytest.raises(SystemExit, match=message):
        summarise_norms.main(words if "gone" in words else [str(tmp_path), *words])
