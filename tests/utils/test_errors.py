"""A user's mistake is one line and exit status 2."""

from __future__ import annotations

import signal

import pytest

from utils.errors import FIRST_HAND, FOLLOWING, LEAVING, PeerLost, UserError, exits_cleanly, nearest, shown


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lr_0", "; did you mean 'lr0'?"), ("moment", "; did you mean 'momentum'?"), ("zebra", ""), (0, "")],
)
def test_the_nearest_name_is_suggested_where_one_is_near(name: object, hint: str) -> None:
    assert nearest(name, ["lr0", "lrf", "momentum"]) == hint


def test_a_user_error_is_one_line_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> None:
        raise UserError("hyp/mine.yaml: unknown key 'lr_0'")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: hyp/mine.yaml: unknown key 'lr_0'\n"


def test_an_interrupt_is_no_traceback_either(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_programming_error_keeps_its_traceback() -> None:
    @exits_cleanly
    def main() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main()


def test_arguments_pass_through() -> None:
    seen = []

    @exits_cleanly
    def main(argv: list[str]) -> None:
        seen.append(argv)

    main(["--epochs", "3"])
    assert seen == [["--epochs", "3"]]


@pytest.mark.parametrize(
    ("rank", "error", "waits", "line", "status"),
    [
        ("0", UserError("wrong"), 0.0, "error: wrong\n", 2),
        ("1", UserError("wrong"), FIRST_HAND, "error: rank 1: wrong\n", 2),
        ("0", PeerLost("gone"), FOLLOWING, "error: gone\n", 1),
        ("3", PeerLost("gone"), FOLLOWING, "error: rank 3: gone\n", 1),
    ],
)
def test_of_several_ranks_the_first_tells_and_the_others_wait_to_be_ended(
    rank: str, error: Exception, waits: float, line: str, status: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waited, done = [0.0], []
    monkeypatch.setattr("utils.errors.time.sleep", waited.append)
    monkeypatch.setattr("utils.errors.signal.signal", lambda *what: done.append(what))
    monkeypatch.setattr("utils.errors.signal.alarm", lambda seconds: done.append(seconds))
    for name, value in {"WORLD_SIZE": "4", "RANK": rank, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    @exits_cleanly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        main()
    assert (waited[-1], stopped.value.code, capsys.readouterr().err) == (waits, status, line)
    assert (signal.SIGTERM, signal.SIG_DFL) in done  # torchrun ends it where it waits
    assert LEAVING in done


def test_a_value_that_is_small_and_would_be_written_out_as_much_is_shown_cut() -> None:
    nested: object = "word" * 1000
    for _ in range(60):
        nested = [nested, nested]
    assert len(shown(nested)) == 80
    assert shown({"b": 1, "a": [2, 3.5, None]}) == "{'a': [2, 3.5, None], 'b': 1}"
    assert shown("x" * 10**6) == f"{'x' * 76} ..."
