"""Strict YAML: what is wrong is said in one line, with file, key, and what was meant."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from utils.config import (
    Range,
    choice,
    from_mapping,
    number,
    read_record,
    to_mapping,
    write_mapping,
)
from utils.errors import UserError
from utils.yaml_file import parse_yaml, read_yaml


@dataclass(frozen=True)
class Inner:
    kind: str = choice("flat", ("flat", "Round"))
    count: int = number(0, low=0)


@dataclass(frozen=True)
class Record:
    rate: float = number(0.1, above=0)
    share: float = number(0.5, low=0, below=1)
    steps: int | None = None
    active: bool = False
    layers: tuple[int, ...] | None = number(None, low=0)
    pair: tuple[int, int] = (1, 2)
    anchors: int | float | tuple[tuple[float, ...], ...] | None = None
    methods: Mapping[str, Mapping[str, Any]] | None = None
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ValueError("steps: 13 is unlucky")


def read(text: str) -> Record:
    return from_mapping(parse_yaml(text, "mine.yaml"), Record, "mine.yaml")


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rat: 1", "mine.yaml: unknown key 'rat'; did you mean 'rate'?"),
        ("zzz: 1", "mine.yaml: unknown key 'zzz'"),
        ("rate: fast", "mine.yaml: rate: got 'fast', expected a number above 0"),
        ("rate: 0", "mine.yaml: rate: got 0, expected a number above 0"),
        ("rate: yes", "mine.yaml: rate: got true, expected a number above 0"),
        ("rate:", "mine.yaml: rate: got nothing, expected a number above 0"),
        ("rate: .nan", "mine.yaml: rate: got nan, expected a number above 0"),
        ("rate: .inf", "mine.yaml: rate: got inf, expected a number above 0"),
        ("share: 1", "mine.yaml: share: got 1, expected a number in [0, 1)"),
        ("steps: 1.5", "mine.yaml: steps: got 1.5, expected a whole number"),
        ("steps: 13", "mine.yaml: steps: 13 is unlucky"),
        ("active: 1", "mine.yaml: active: got 1, expected true or false"),
        ("title: 3", "mine.yaml: title: got 3, expected text"),
        ("layers: 17", "mine.yaml: layers: got 17, expected a list of whole numbers of at least 0"),
        ("layers: [1, -2]", "mine.yaml: layers[1]: got -2, expected a whole number of at least 0"),
        ("layers: [true]", "mine.yaml: layers[0]: got true, expected a whole number of at least 0"),
        ("pair: [1, 2, 3]", "mine.yaml: pair: got 3 entries, expected 2"),
        ("anchors: many", "mine.yaml: anchors: got 'many', expected a number or a list of lists"),
        ("anchors: [[1, x]]", "mine.yaml: anchors[0][1]: got 'x', expected a number"),
        ("methods: [cwd]", "mine.yaml: methods: got a list, expected a mapping such as {name: {weight: 1.0}}"),
        ("methods: {cwd: 3}", "mine.yaml: methods.cwd: got 3, expected a mapping such as {name: {weight: 1.0}}"),
        ("inner: flat", "mine.yaml: inner: got 'flat', expected a mapping of kind, count"),
        ("inner: {knd: flat}", "mine.yaml: inner: unknown key 'knd'; did you mean 'kind'?"),
        ("inner: {kind: rund}", "mine.yaml: inner: kind: got 'rund'; did you mean 'Round'? known: flat, Round"),
        ("several: {kind: flat}", "mine.yaml: several: got a mapping, expected a list of mappings of kind, count"),
        ("several: [flat]", "mine.yaml: several[0]: got 'flat', expected a mapping of kind, count"),
        ("several: [{kind: flat}, {cont: 1}]", "mine.yaml: several[1]: unknown key 'cont'; did you mean 'count'?"),
        ("", "mine.yaml: line 1: the file is empty, expected lines of 'key: value'"),
        ("# only a comment\n", "mine.yaml: line 1: the file is empty, expected lines of 'key: value'"),
        ("- 1\n- 2", "mine.yaml: line 1: got a list, expected lines of 'key: value'"),
        ("rate: 1\nshare: 0\nrate: 2", "mine.yaml: line 3: key 'rate' is there a second time"),
        ("inner: {count: 1, count: 2}", "mine.yaml: line 1: key 'count' is there a second time"),
        ("rate: 1\n\tshare: 2", "mine.yaml: line 2: a tab; YAML indents with spaces"),
        ("rate: 1\nlayers: [1, 2\nactive: true", "mine.yaml: line 3: expected ',' or ']', but got ':'"),
        ("rate: 1\ntitle: \x01", "mine.yaml: line 2: a character that YAML does not allow"),
        ("when: 2020-13-45", "mine.yaml: not valid YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.system [ls]", None),
    ],
)
def test_a_mistake_is_one_line(text: str, expected: str | None) -> None:
    found = message(text)
    assert expected is None or found == expected


def laughs(line: str) -> str:
    """Nine lines that each say the one before nine times."""
    pairs = zip("abcdefghi", "bcdefghij", strict=True)
    return "a: &a {x: 1}\n" + "".join(line.format(b, ", ".join([f"*{a}"] * 9)) + "\n" for a, b in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (laughs("{0}: &{0} [{1}]"), "more than 500000 entries, aliases written out"),
        (laughs("{0}: &{0} {{<<: [{1}]}}"), "more than 500000 entries, aliases written out"),
        ("layers: &a [1, *a]", "what stands there contains itself"),
        ("layers: " + "[" * 60 + "]" * 60, "more than 50 lists and mappings in one another"),
        ("layers: " + "[" * 1000, "maximum recursion depth exceeded"),
        ("rate: " + "1" * 200_000, "a number of 200000 digits"),
        ("rate: " + "1" * 200_000 + "x", "rate: got '1111"),
        ("steps: 0x" + "f" * 5000, "a number of 5002 digits"),
        ("steps: " + "1" + ":11" * 5000, "a number of 15001 digits"),
        ("when: !!timestamp x", "not valid YAML"),
        ("when: !!int ''", "not valid YAML"),
        ("x" * 1000 + ": 1", "unknown key"),
        ('"\\e[2J\\r": 1', "unknown key '\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}'"),
    ],
)
def test_a_text_that_means_far_more_than_it_says_is_refused_at_once(text: str, expected: str) -> None:
    begun = time.process_time()
    found = message(text)
    assert expected in found and len(found) < 500
    assert time.process_time() - begun < 10


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(UserError, match=r"x\.yaml: 1\.5 MB, expected a YAML file of at most 1 MB"):
        read_yaml(tmp_path / "x.yaml")


def test_aliases_as_people_use_them_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: [*a, *a]", "x")["c"] == [[1, 2], [1, 2]]


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    assert "line 1" in message(f"a: !!python/object/apply:pathlib.Path.touch [{victim}]")
    assert not victim.exists()


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", "+1e-3", ".1e-2", "1.e-3"])
def test_exponents_without_a_point_are_numbers(text: str) -> None:
    assert read(f"rate: {text}").rate == pytest.approx(0.001)


def test_text_that_looks_like_an_exponent_stays_text() -> None:
    content = parse_yaml("a: 12e\nb: 1-2\nc: '1e-3'\nd: 2e-4abc", "x")
    assert content == {"a": "12e", "b": "1-2", "c": "1e-3", "d": "2e-4abc"}


def test_whole_numbers_serve_as_floats() -> None:
    rate = read("rate: 1").rate
    assert rate == 1.0
    assert isinstance(rate, float)


def test_null_is_the_default_of_an_optional_key_and_an_empty_mapping_is_not() -> None:
    assert read("methods:").methods is None
    assert read("methods: {}").methods == {}


def test_a_method_without_options_may_be_left_blank() -> None:
    assert read("methods:\n  cwd:\n  mgd: {weight: 2}").methods == {"cwd": {}, "mgd": {"weight": 2}}


def test_merge_keys_are_not_duplicates() -> None:
    content = parse_yaml("base: &b {x: 1}\nother:\n  <<: *b\n  x: 2", "x")
    assert content["other"] == {"x": 2}


def test_words_are_matched_in_upper_and_lower_case() -> None:
    assert read("inner: {kind: round}").inner.kind == "Round"


def test_a_record_without_a_default_names_what_is_missing() -> None:
    @dataclass(frozen=True)
    class Needy:
        path: str
        size: int = 1

    with pytest.raises(UserError, match=r"f\.yaml: missing: path"):
        from_mapping({}, Needy, "f.yaml")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = read("rate: 1e-5\nlayers: [1, 2]\nanchors: [[1, 2.5]]\nmethods: {a: {b: [1]}}\ninner: {count: 3}")
    path = write_mapping(tmp_path / "r.yaml", to_mapping(record))
    assert read_record(path, Record) == record


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfrate: 2\r\n")
    assert read_yaml(path) == {"rate": 2}


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for path, expected in [
        (tmp_path / "absent.yaml", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "latin.yaml", "not a text file in UTF-8"),
    ]:
        with pytest.raises(UserError, match=expected):
            read_yaml(path)


def test_ranges_say_what_they_hold() -> None:
    assert [str(Range(low=0)), str(Range(above=0)), str(Range(low=0, high=1)), str(Range(above=0, below=1))] == [
        "of at least 0",
        "above 0",
        "in [0, 1]",
        "in (0, 1)",
    ]
    assert 0 not in Range(above=0)
    assert 1 in Range(low=0, high=1)
    assert float("nan") not in Range(low=0)
