"""One question at a time has the models, in the order in which they came; others may give up."""

from threading import Event, Thread

import pytest

from causalmm.app.turns import Turns
from causalmm.errors import RequestError

SOON = 20  # seconds, for what takes a fraction of one


class Asker(Thread):
    """Stands in a line, and with its turn waits until it is let go."""

    def __init__(self, turns, order):
        super().__init__(daemon=True)
        self.turns, self.order = turns, order
        self.stop, self.done, self.told, self.before = Event(), Event(), Event(), []
        self.start()
        assert self.told.wait(SOON)

    def tell(self, before):
        self.before.append(before)
        self.told.set()

    def run(self):
        with self.turns.turn(self.stop, self.tell) as own:
            if own:
                self.order.append(self)
                self.told.set()
                self.done.wait(SOON)

    def end(self):
        self.done.set()
        self.join(SOON)
        assert not self.is_alive()


def test_they_come_in_order_and_know_how_many_are_before_them():
    turns, order = Turns(4), []
    askers = [Asker(turns, order) for _ in range(5)]
    for asker in askers:
        asker.end()
    assert order == askers
    assert askers[0].before == []
    for number, asker in enumerate(askers[1:], 1):
        assert (asker.before[0], asker.before[-1]) == (number, 0)
        assert asker.before == sorted(set(asker.before), reverse=True)
    assert turns.wait_until_empty(0)


def test_one_more_than_may_wait_is_refused():
    turns, order = Turns(1), []
    first, second = Asker(turns, order), Asker(turns, order)
    with (
        pytest.raises(RequestError, match=r"as many questions wait as may \(1\): ask again later"),
        turns.turn(),
    ):
        pytest.fail("it has a turn")
    assert not turns.wait_until_empty(0.1)
    first.end()
    second.end()
    with turns.turn() as own:
        assert own


def test_who_gives_up_is_passed_over():
    turns, order = Turns(4), []
    first, second, third = (Asker(turns, order) for _ in range(3))
    second.stop.set()
    second.join(SOON)
    assert order == [first]
    first.end()
    third.end()
    assert order == [first, third]
    assert third.before[-1] == 0
    with turns.turn(second.stop) as own:
        assert not own


def test_an_error_ends_a_turn():
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError), turns.turn():
        raise ZeroDivisionError
    assert turns.wait_until_empty(0)
