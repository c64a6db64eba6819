"""Signals wait for those who can stop, and for nobody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from utils.errors import exits_cleanly
from utils.files import ROOT
from utils.interruption import Interrupted, Interruption, leave_signals_to_parent, terminated_as_interrupted


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_raised_at_the_end(number: int, status: int) -> None:
    done = []
    with pytest.raises(Interrupted) as stopped, Interruption() as interruption:
        send(number)
        done.append(interruption.number)
    assert done == [number]
    assert stopped.value.status == status


def test_a_second_one_shortly_after_is_the_launchers_echo() -> None:
    with pytest.raises(Interrupted) as stopped, Interruption() as interruption:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert interruption.number == signal.SIGINT
    assert stopped.value.number == signal.SIGINT


def test_a_second_one_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.interruption.REPEATED", 0.0)
    with pytest.raises(Interrupted), Interruption():
        send()
        send()
        pytest.fail("it went on")


def test_what_can_be_broken_off_is() -> None:
    with pytest.raises(Interrupted), Interruption() as interruption, interruption.at_once():
        send()
        pytest.fail("it went on")


def test_what_can_be_broken_off_is_not_begun_after_a_signal() -> None:
    with pytest.raises(Interrupted), Interruption() as interruption:
        send()
        with interruption.at_once():
            pytest.fail("it began")


def test_behind_what_can_be_broken_off_signals_wait_again() -> None:
    with pytest.raises(Interrupted), Interruption() as interruption:
        with interruption.at_once():
            pass
        send()
        assert interruption.number == signal.SIGTERM


def test_what_a_process_was_started_to_ignore_is_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            send(signal.SIGINT)
            assert interruption.number == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with terminated_as_interrupted(), Interruption():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_mistake_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ZeroDivisionError), Interruption():
        send()
        raise ZeroDivisionError


def test_a_signal_is_the_reason_of_what_follows_from_it() -> None:
    with pytest.raises(Interrupted), Interruption(ZeroDivisionError):
        send()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Interruption(ZeroDivisionError):
        raise ZeroDivisionError


def test_other_threads_do_without() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with terminated_as_interrupted(), Interruption():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)])
def test_scripts_exit_as_shells_expect(raised: BaseException, status: int, capsys: Any) -> None:
    @exits_cleanly
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == status
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_tidies_up_where_nothing_listens() -> None:
    code = """
import os, signal
from utils.errors import exits_cleanly
@exits_cleanly
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("tidied up")
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "tidied up\n", "interrupted\n")


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who has sent a signal")
def test_a_worker_ends_when_its_parent_says_so_and_not_when_another_does() -> None:
    """Or a script that ends while its loader has workers would wait for them without end."""
    processes = multiprocessing.get_context("fork")
    ready = processes.Event()

    def work() -> None:
        leave_signals_to_parent()
        ready.set()
        time.sleep(120)

    worker = processes.Process(target=work, daemon=True)
    worker.start()
    assert ready.wait(60)
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
