"""rwkv_core's rooms import in one direction, as a model file becomes text.

rwkv_core/docs/architecture.md shows the order, and a picture of the rooms.
"""

import ast
import re
from pathlib import Path

import rwkv_core

SOURCE = Path(rwkv_core.__file__).parent
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "rwkv_core" / "docs" / "architecture.md"
# Each imports from itself and from those before it alone. `rwkv_core` itself has names of all of
# them, which it imports when they are used.
ORDER = [
    {"errors", "util"}, {"weights", "dtypes", "bundled"}, {"quantization"}, {"backends"},
    {"architectures"}, {"state"}, {"checkpoint"}, {"plugins"}, {"sources"}, {"model_file"},
    {"tokenizer"}, {"model"}, {"loading"}, {"generation"}, {"rwkv"}, {"serving"}, {"server"},
    {"rwkvstic"}, {"evaluation"}, {"bench"}, {"conformance"}, {"cli"}, {"__main__"},
]  # fmt: skip
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "rwkv_core":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").removeprefix("rwkv_core."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("rwkv_core.") for alias in node.names}
    return {name.partition(".")[0] for name in found} & PLACE.keys()


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert rooms == PLACE.keys()


def test_no_import_runs_against_the_order() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room != "__init__":
            late = [name for name in imports(path) if PLACE[name] > PLACE[room]]
            wrong += [f"{path.relative_to(SOURCE)} imports {name}" for name in late]
    assert not wrong


def test_the_page_shows_the_order() -> None:
    shown = re.search(r"<!-- order -->\n\n```text\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert shown is not None
    assert [set(line.split(", ")) for line in shown[1].splitlines()] == ORDER


def test_the_page_has_a_line_for_each_room() -> None:
    first_column = re.findall(r"^\| (`[^|]+) \|", PAGE.read_text("utf-8"), re.M)
    named = [name for cell in first_column for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)]
    assert sorted(named) == sorted(PLACE)


def test_the_picture_names_what_there_is() -> None:
    picture = PAGE.read_text("utf-8").split("```")[1]
    named = re.findall(r"[a-z]\w*/(?:\w+\.py)?|\b\w+\.py\b", picture)
    assert len(named) >= 8
    assert [name for name in named if not (SOURCE / name).exists()] == []
