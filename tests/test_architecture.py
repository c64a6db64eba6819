"""The house stands: floors, rooms, no hidden effects, and a command line that people can rely on."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.flags import FLAGS
from engine.options import distill_options, train_options

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"utils": 0, "data": 1, "models": 1, "losses": 1, "engine": 2, "distill": 2, "compress": 2}
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
ROOMS = [room for room in FLOORS if (ROOT / room).is_dir()]
SHELVES = {"models/blocks", "models/heads", "losses", "distill/features", "distill/outputs"}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + [ROOT / f"{s}.py" for s in SCRIPTS]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
LONGEST_FUNCTION = 60
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads"}
OPTIONAL = ("matplotlib", "tensorboard", "pycocotools", "safetensors")


def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imported(name: str) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: line {node.lineno}: relative import; write it out"
            yield node.module or ""


def calls(name: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, ast.Call))


def python(code: str) -> str:
    """What fresh Python prints; it must write nothing to stderr."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# -- floors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_strictly_down(name: str) -> None:
    room = Path(name).parts[0]
    for module in imported(name):
        other = module.partition(".")[0]
        assert other not in SCRIPTS, f"{name} imports the script {other}"
        if other in FLOORS and room in FLOORS and other != room:
            assert FLOORS[other] < FLOORS[room], f"{name} imports {module}, which is not below it"


def test_every_room_has_its_floor() -> None:
    """A new folder with code joins `FLOORS`."""
    others = {path.parent.name for path in ROOT.glob("*/*.py")} - set(FLOORS)
    assert others <= {"tests", "benchmarks", "docs"}


@pytest.mark.parametrize("name", [name for name in NAMES if Path(name).name == "__init__.py"])
def test_init_files_are_empty_except_shelves(name: str) -> None:
    body = tree(name).body
    if str(Path(name).parent) not in SHELVES:
        assert not body
        return
    assert ast.get_docstring(tree(name)), f"{name}: a shelf says what its things must be"
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    assert all(isinstance(node, allowed) for node in body[1:]), f"{name}: a shelf is a docstring and a table"


# -- no surprises -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_evaluated_and_nothing_unsafe_is_loaded(name: str) -> None:
    for call in calls(name):
        called = ast.unparse(call.func)
        place = f"{name}: line {call.lineno}: {called}"
        assert called not in {"eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads"}, (
            place
        )
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            assert keyword.arg != "weights_only" or value is True, place
            assert keyword.arg != "shell" or value is False, place
        if called == "torch.load":
            assert "weights_only" in {keyword.arg for keyword in call.keywords}, place


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_numpy_is_there(name: str) -> None:
    """`np.int`, `np.float` and their like went with NumPy 1.24 and 2."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert hasattr(np, node.attr), f"{name}: line {node.lineno}: np.{node.attr}"


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
def test_what_is_deprecated_is_an_error_where_we_use_it(kind: type[Warning]) -> None:
    """The filters of pyproject.toml: ours must not, others may."""
    deprecated = "import warnings; warnings.warn('old', kind)"
    for module in ("data.scan", "models.blocks.conv", "train_distill", "tests.data.test_scan"):
        with pytest.raises(kind):
            exec(deprecated, {"__name__": module, "kind": kind})
    with warnings.catch_warnings(record=True):
        exec(deprecated, {"__name__": "torch.nn.modules.conv", "kind": kind})


@pytest.mark.parametrize("name", NAMES)
def test_no_star_import_and_no_global(name: str) -> None:
    for node in ast.walk(tree(name)):
        assert not isinstance(node, ast.Global), f"{name}: line {node.lineno}: hidden state"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{name}: line {node.lineno}"


@pytest.mark.parametrize("name", [name for name in NAMES if Path(name).stem not in SCRIPTS])
def test_only_scripts_print(name: str) -> None:
    for call in calls(name):
        to_stderr = any(
            keyword.arg == "file" and ast.unparse(keyword.value) == "sys.stderr" for keyword in call.keywords
        )
        assert ast.unparse(call.func) != "print" or to_stderr, f"{name}: line {call.lineno}"


@pytest.mark.parametrize("name", NAMES)
def test_modules_only_define(name: str) -> None:
    """At the top of a module stand imports, definitions and constants; a script ends with its call of main."""
    defining = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree(name).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        allowed = guard == "TYPE_CHECKING" or (guard == "__name__ == '__main__'" and Path(name).stem in SCRIPTS)
        assert isinstance(node, defining) or docstring or allowed, f"{name}: line {node.lineno}"


@pytest.mark.parametrize("name", NAMES)
def test_functions_fit_on_a_page(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("name", NAMES)
def test_every_signature_is_typed(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{name}: line {node.lineno}: {node.name} does not say what {', '.join(bare)} is"
            assert node.returns is not None, f"{name}: line {node.lineno}: {node.name} does not say what it returns"


def test_importing_everything_has_no_effect() -> None:
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in NAMES]
    report = json.loads(
        python(f"""
import json, logging, os, random, sys
import numpy, torch, torchvision, cv2

def state():
    return (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), dict(os.environ),
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), cv2.getNumThreads(),
            os.getcwd(), list(logging.getLogger().handlers), logging.getLogger().level, list(sys.argv))
before = state()
already = set(sys.modules)
import importlib
for module in {modules!r}:
    importlib.import_module(module)
new = {{name.partition(".")[0] for name in set(sys.modules) - already}}
print(json.dumps([state() == before, sorted(new)]))
""")
    )
    same, new = report
    assert same
    assert not set(OPTIONAL) & set(new), "optional packages are imported inside the function that uses them"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_read_their_options_before_importing_torch(script: str) -> None:
    loaded = python(f"import sys, {script}; print(*sys.modules)").split()
    assert not {"torch", "numpy", "cv2"} & set(loaded)


def test_the_licence_of_published_weights_is_told() -> None:
    """Ours is Apache-2.0; checkpoints of others keep theirs, and a user must hear of it."""
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    for name in ("README.md", "NOTICE"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "AGPL" in text and "weights" in text, name


# -- recipes and command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((ROOT / "hyp").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_recipe_begins_with_the_command_that_uses_it(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    python_word, script, *arguments = shlex.split(first.removeprefix("# "))
    assert python_word == "python"
    parse = {"train.py": train_options, "train_distill.py": distill_options}[script]
    options = parse(arguments)
    assert Path(options.hyp[-1]).stem == file.stem


COMMON = """
    --allow-download-scripts --batch --batch-size --data --device --exist-ok --image-size --img --img-size --imgsz
    --name --noplots --project --rect --single-cls --verbose --weights --workers --cfg
"""
TRAINING = f"""{COMMON}
    --adam --amp --anchors --augment-on --cache --cache-images --clip-grad --close-mosaic --compile --cos-lr --epochs
    --freeze --hyp --image-weights --label-smoothing --linear-lr --mosaic-pool --multi-scale --noautoanchor
    --nosave --notest --noval --optimizer --patience --poly-lr --quad --resume --save-interval --save-period --seed
    --sync-bn --val-period
"""
TEACHING = "--t_weights --teacher-weights --t_cfg --teacher-cfg"
RECORDED = {
    "train.py": TRAINING,
    "train_distill.py": f"{TRAINING} {TEACHING} --t_kind --t_device --t_imgsz --d_output --d_feature --baseline",
    "val.py": f"""{COMMON} {TEACHING}
        --augment --conf --conf-thres --metric --half --iou --iou-thres --max-det --nms --no-rect --save-conf
        --save-json --save-txt --task
    """,
}


@pytest.mark.parametrize("script", RECORDED)
def test_the_command_line_is_as_recorded(script: str) -> None:
    """People's notes and scripts hold these spellings: add to the record, take nothing away."""
    flags = [flag for _, group in FLAGS[script] for flag in group]
    assert {name for flag in flags for name in (flag.spelling, *flag.also)} == set(RECORDED[script].split())


def test_every_script_with_flags_has_a_record() -> None:
    assert set(FLAGS) == set(RECORDED)
