"""YAML files, which may be anybody's: plain data, every key once, and no more of it than anybody writes.

What is wrong is answered in one line that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, shown

MOST_BYTES = 1_000_000  # of a YAML file; twenty thousand class names take 0.5 MB
MOST_NODES = 500_000  # of what it says, aliases written out
MOST_NESTED = 50  # lists and mappings in one another
MOST_DIGITS = 64  # of a number


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file. Duplicate keys are an error, and 1e-3 is a number as in YAML 1.2.

    Raises:
        UserError: no such file, no YAML, more of it than anybody writes, or something else than a mapping; names the
            line.
    """
    try:
        size = Path(path).stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path}: {size / 1e6:.1f} MB, expected a YAML file of at most {MOST_BYTES / 1e6:.0f} MB")
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark first
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """As `read_yaml`, from text; `where` starts the errors."""
    try:
        content = _loaded(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where}: line {line}: a character that YAML does not allow") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where}: {_explain(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # what PyYAML runs into: the date 2020-13-45, brackets without end
        raise UserError(f"{where}: not valid YAML: {shown(str(error))}") from error
    if content is None:
        raise UserError(f"{where}: line 1: the file is empty, expected lines of 'key: value'")
    if not isinstance(content, dict):
        raise UserError(f"{where}: line 1: got {noun(content)}, expected lines of 'key: value'")
    return content


def _loaded(text: str) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})  # before anything is made of it
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, sizes: dict[int, int], depth: int = 0) -> int:
    """How many entries a node holds, aliases written out.

    Args:
        sizes: of the nodes that were met before, by their identity; 0 while one is open.

    Raises:
        ValueError: more than anybody writes, or a node that contains itself.
    """
    line = node.start_mark.line + 1
    if depth > MOST_NESTED:
        raise ValueError(f"line {line}: more than {MOST_NESTED} lists and mappings in one another")
    if id(node) not in sizes:
        sizes[id(node)] = 0
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        sizes[id(node)] = 1 + sum(_check_size(part, sizes, depth + 1) for pair in pairs for part in pair)
    if not sizes[id(node)]:
        raise ValueError(f"line {line}: what stands there contains itself")
    if sizes[id(node)] > MOST_NODES:
        raise ValueError(f"line {line}: more than {MOST_NODES} entries, aliases written out")
    return sizes[id(node)]


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML follows YAML 1.1, which takes 1e-3 for text because it has no point; ours is a number."""
    exponent = ("tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+\Z"))
    published = yaml.SafeLoader.yaml_implicit_resolvers
    return published | {first: [*published.get(first, []), exponent] for first in "-+.0123456789"}


class _StrictLoader(yaml.SafeLoader):
    """Plain data only, every key once."""

    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{shown(key)}' is there a second time", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(value)} digits", node.start_mark)
        return value


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark else ""
    problem = error.problem or error.context or "not valid YAML"
    if "'\\t'" in problem:
        problem = "a tab; YAML indents with spaces"
    return f"{line}{shown(problem, 200)}"


def noun(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return shown(repr(value))
