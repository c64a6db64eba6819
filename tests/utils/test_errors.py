"""A user's mistake is one line and exit status 2."""

from __future__ import annotations

import pytest

from utils.errors import UserError, exits_cleanly, nearest


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
