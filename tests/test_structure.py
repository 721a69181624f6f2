"""The floors of the house: no room imports one above it, and no import goes round in a circle."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground floor up. Rooms of one line may not import each other.
FLOORS = (
    ("utils",),
    ("options",),
    ("dataloader",),
    ("nets",),
    ("op_utils",),
    ("training",),
    ("pruning",),
    ("cli",),
    ("deployment",),
    ("reports",),
    ("phases",),
    ("search", "finetune", "test"),
    ("ekg_tf",),
    ("train_cifar",),
    ("train_imagenet", "experiments", "benchmarks"),
    ("pages",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    rooms = [path for path in ROOT.iterdir() if path.is_dir() and path.name in FLOOR]
    files = [path for room in rooms for path in room.rglob("*.py")]
    return sorted(files + [path for path in ROOT.glob("*.py") if path.stem in FLOOR])


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules of ours that these nodes of a file import, as names from the checkout's root."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            outside = [alias.name for alias in node.names if alias.name.split(".")[0] in FLOOR]
            assert outside in ([], ["ekg_tf"]), f"{path} imports {outside} by a plain import"
        if not isinstance(node, ast.ImportFrom):
            continue
        names = (node.module or "").split(".") if node.module else []
        if node.level:
            names = [*package[: len(package) - node.level + 1], *names]
        elif names[0] == "ekg_tf":
            names = names[1:]
        else:
            assert names[0] not in FLOOR, f"{path}: {node.module} must be imported from ekg_tf"
            continue
        for alias in node.names:
            place = ROOT.joinpath(*names, alias.name)
            inside = place.with_suffix(".py").exists() or place.is_dir()
            found = ".".join([*names, alias.name] if inside else names)
            yield found if found.split(".")[0] in FLOOR else "ekg_tf"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_imports_only_rooms_below_it(path):
    own = name_of(path).split(".")[0]
    for module in imports(path, ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        room = module.split(".")[0]
        below = room == own or FLOOR[room] < FLOOR[own]
        assert below, f"{name_of(path)} imports {module}, which lies above it"


def outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            continue
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from ast.walk(node)


def test_no_import_goes_round_in_a_circle():
    graph = {
        name_of(path): set(
            imports(path, outside_functions(ast.parse(path.read_text(encoding="utf-8"))))
        )
        for path in modules()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(graph.get(name, set()) - {name}):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done >= graph.keys()


# ---------------------------------------------------------------- Keras's private API

PRIVATE = (
    *("keras.src", "_keras_history", "_inbound_nodes", "_nodes_by_depth", "_functional"),
    *("_flatten_layers", "_call_has_training_arg", "_seed_generators"),
)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_keras_private_api_stays_in_one_file(path):
    if name_of(path) == "nets.keras_graph":
        return
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert not used & set(PRIVATE)
    assert "from keras.src" not in path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- signatures


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Functions and methods that no name on the way to them hides, __init__ among them."""

    def inside(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from inside(node.body)
            if isinstance(node, ast.FunctionDef) and (
                not node.name.startswith("_") or node.name == "__init__"
            ):
                yield node

    yield from inside(ast.parse(path.read_text(encoding="utf-8")).body)


SHIPPED = [path for path in modules() if name_of(path).split(".")[0] not in FLOORS[-1] + FLOORS[-2]]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_public_signatures_are_typed(path):
    for function in public_functions(path):
        names = function.args
        every = [*names.posonlyargs, *names.args, *names.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{name_of(path)}.{function.name}: {bare}"
        assert function.returns is not None or function.name == "__init__", function.name
