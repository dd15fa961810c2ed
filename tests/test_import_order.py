"""rwkv_core's rooms import in one direction, as a model file becomes text."""

import ast
from pathlib import Path

import rwkv_core

SOURCE = Path(rwkv_core.__file__).parent
# Each imports from itself and from those before it alone. `rwkv_core` itself has names of all of
# them, which it imports when they are used.
ORDER = [
    {"errors", "util"}, {"weights", "dtypes", "bundled"}, {"quantization"}, {"backends"},
    {"architectures"}, {"state"}, {"checkpoint"}, {"plugins"}, {"sources"}, {"model_file"},
    {"tokenizer"}, {"model"}, {"loading"}, {"generation"}, {"rwkv"},
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
