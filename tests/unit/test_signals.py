"""Signals as a wish to stop after the step at hand."""

from __future__ import annotations

import os
import signal

import pytest

from flowrl.base.signals import Stopped, StopRequest, stop_at_once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_wish_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.asked is None
        os.kill(os.getpid(), number)
        assert stop.asked == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted_twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_termination_is_the_same_wish() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked == "SIGUSR1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_where_nothing_can_be_saved_a_signal_closes_all_and_names_itself(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    closed = []

    def wait() -> None:
        with stop_at_once():
            try:
                os.kill(os.getpid(), number)
                pytest.fail("went on")
            finally:
                closed.append(True)

    with pytest.raises(Stopped, match=number.name) as stopped:
        wait()
    assert stopped.value.exit_code == 128 + number
    assert closed == [True]
    assert signal.getsignal(number) is before


def test_ctrl_c_stays_what_it_is() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background process does not have

    def wait() -> None:
        with stop_at_once():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt) as interrupt:
        wait()
    signal.signal(signal.SIGINT, before)
    assert not isinstance(interrupt.value, Stopped)


def test_a_wish_can_be_obeyed_later() -> None:
    def wait() -> None:
        with stop_at_once():
            with StopRequest() as stop:
                os.kill(os.getpid(), signal.SIGTERM)
            stop.obey()
            pytest.fail("went on")

    with pytest.raises(Stopped, match="SIGTERM"):
        wait()
    with StopRequest() as unasked:
        pass
    unasked.obey()


def test_a_signal_that_the_caller_had_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_at_once(), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_is_a_wish_to_stop() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.asked == "SIGHUP"
