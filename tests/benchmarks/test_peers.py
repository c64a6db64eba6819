"""A peer answers what it is asked, and says in one line what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers import NAMES, Peer, machine, markdown, ratio, read_peers, rounds
from utils.errors import UserError

SNIPPET = """
import os, sys, time
print("a banner, which is no answer")
calls = []
def add(one, other):
    print("noise")
    calls.append(one)
    return {"sum": one + other, "calls": len(calls)}
def fail():
    raise ValueError("first line\\nsecond line")
def die():
    print("last words", file=sys.stderr)
    os._exit(3)
def sleep():
    time.sleep(60)
def modules():
    return sorted(name for name in ("utils", "models", "data") if name in sys.modules), os.getcwd()
"""


def refusal(function: str, **options: float) -> str:
    with pytest.raises(UserError) as refused:
        Peer("yolov5", sys.executable, SNIPPET, **options).ask(function)
    return str(refused.value)


def test_a_peer_answers_again_and_again_whatever_it_prints() -> None:
    with Peer("yolov5", sys.executable, SNIPPET) as peer:
        assert peer.ask("add", one=1, other=2) == {"sum": 3, "calls": 1}
        assert peer.ask("add", one=0.5, other=2) == {"sum": 2.5, "calls": 2}


def test_a_peer_works_in_a_folder_of_its_own_that_goes_with_it() -> None:
    with Peer("yolov5", sys.executable, SNIPPET) as peer:
        ours, place = peer.ask("modules")
        assert ours == []
        assert Path(place).resolve() == peer.folder.resolve()
        assert Path(place).is_dir()
    assert not Path(place).exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fail", "peer yolov5: ValueError: first line second line"),
        ("die", "peer yolov5: it ended without an answer (last words)"),
        ("nothing", "peer yolov5: KeyError: 'nothing'"),
    ],
)
def test_what_goes_wrong_there_is_one_line(function: str, said: str) -> None:
    assert refusal(function) == said


def test_a_peer_that_hangs_is_ended() -> None:
    assert refusal("sleep", patience=1.0) == "peer yolov5: no answer within 1 s (a banner, which is no answer)"


def test_a_peer_that_failed_is_not_asked_again() -> None:
    with Peer("yolov5", sys.executable, SNIPPET) as peer:
        for said in ("ValueError: first line second line", "it has ended"):
            with pytest.raises(UserError, match=f"^peer yolov5: {said}$"):
                peer.ask("fail")


def test_a_python_without_the_peer_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"^peer yolov5: ModuleNotFoundError: No module named 'no_such_peer'$"):
        Peer("yolov5", sys.executable, "import no_such_peer")
    with pytest.raises(UserError, match=r"^--peer yolov5=/none: No such file or directory; expected a Python that"):
        Peer("yolov5", "/none", SNIPPET)


def test_peers_are_read_by_name() -> None:
    assert read_peers(["yolov5=/a/python", "ultralytics=/b"]) == {"yolov5": "/a/python", "ultralytics": "/b"}
    assert read_peers([]) == {}
    for word, said in (("python", "expected NAME=PYTHON"), ("yolov5=", "expected"), ("yolo5=a", "did you mean")):
        with pytest.raises(UserError, match=said):
            read_peers([word])
    assert set(NAMES) == {"yolov5", "ultralytics"}


def test_rounds_alternate_and_the_first_do_not_count() -> None:
    order: list[str] = []

    def job(name: str) -> int:
        order.append(name)
        return len(order)

    found = rounds({name: lambda name=name: job(name) for name in ("ours", "peer")}, 3, warm_up=1)
    assert order == ["ours", "peer"] * 4
    assert found == {"ours": [3, 5, 7], "peer": [4, 6, 8]}


def test_a_ratio_above_one_says_that_ours_is_faster() -> None:
    assert ratio([4.0, 100.0, 3.0], [2.0, 1.0, 50.0]) == 2.0


def test_the_command_is_told_without_places_of_this_machine(tmp_path: Path) -> None:
    words = ["--data", str(tmp_path / "d.yaml"), "--peer", f"yolov5={tmp_path}/python", "--imgsz", "64"]
    told = machine("steps.py", words, "torch.bfloat16")
    assert "python benchmarks/steps.py --data d.yaml --peer yolov5=PYTHON --imgsz 64" in told
    assert ", bfloat16; 20" in told
    assert str(tmp_path) not in told


def test_a_table_has_a_line_a_row() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
