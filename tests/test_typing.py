"""What a type checker says of a program that uses the package."""

import ast
import subprocess
import sys
from pathlib import Path

import attnguide

PACKAGE = Path(attnguide.__file__)
PROGRAM = """
import attnguide

model = attnguide.load_model("shapes")
results = attnguide.sample("a cat", regions={"cat": (0.0, 0.0, 0.5, 1.0)}, seed=[0, 1], model=model)
reveal_type(results)
reveal_type(attnguide.Region("cat").box)
attnguide.sampel("x")
attnguide.sample(3)
"""


def test_the_public_names_have_their_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # Without the libraries that the package stands on: to read all of torch takes minutes.
    command = [sys.executable, "-m", "mypy", "--strict", "--no-site-packages", "--follow-imports=silent", "program.py"]
    environment = {"MYPYPATH": str(PACKAGE.parents[1]), "PATH": ""}
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    told = [line.removeprefix("program.py:") for line in output.splitlines() if line.startswith("program.py:")]
    assert told[0] == '6: note: Revealed type is "attnguide.figures.results.Results"', output
    assert told[1] == '7: note: Revealed type is "tuple[float, float, float, float] | None"'
    assert told[2].startswith('8: error: Module has no attribute "sampel"')
    assert told[3].startswith('9: error: Argument 1 to "sample" has incompatible type "int"')
    assert len(told) == 4


def test_type_checkers_see_the_names_that_a_program_can_use() -> None:
    (block,) = [node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == attnguide._HOMES
    for name in attnguide.__all__:
        assert getattr(attnguide, name) is not None


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE.parent / "py.typed").is_file()
