"""Ranks exchange what they found, and nobody waits for ever."""

import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from bmscale.doctor import meeting
from bmscale.doctor.meeting import GivenUp, Meeting, Worker, check_address
from bmscale.errors import LostRank


def test_work_gives_its_value_or_raises():
    worker = Worker()
    assert worker.do(lambda: 3, 10) == 3
    with pytest.raises(ZeroDivisionError):
        worker.do(lambda: 1 / 0, 10)
    assert not worker.stuck


def test_work_that_does_not_end_is_given_up():
    worker, over = Worker(), threading.Event()
    with pytest.raises(GivenUp, match=r"did not end within 0\.2 s"):
        worker.do(lambda: over.wait(60), 0.2)
    assert worker.stuck
    over.set()


def test_where_another_rank_failed_it_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(meeting, "GRACE", 0.3)
    worker, over, begun = Worker(), threading.Event(), time.monotonic()
    with pytest.raises(GivenUp, match="since rank 1 failed"):
        worker.do(lambda: over.wait(60), 60, lambda: "given up, since rank 1 failed")
    assert time.monotonic() - begun < 10
    over.set()


def test_who_fails_by_itself_meanwhile_has_more_to_say():
    def fail() -> None:
        time.sleep(0.3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Worker().do(fail, 60, lambda: "given up")


def test_all_ranks_hear_all():
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda rank: Meeting(store, rank, 3).exchange("topic", {"rank": rank}, 30), range(3)))
    assert said == [{rank: {"rank": rank} for rank in range(3)}] * 3


def test_a_rank_that_is_silent_is_waited_for_once():
    store = HashStore()
    meetings = [Meeting(store, rank, 3) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for topic in ("one", "two"):
            begun = time.monotonic()
            said = list(pool.map(lambda meeting: meeting.exchange(topic, topic, 1.0), meetings))  # noqa: B023
            assert said == [{0: topic, 1: topic}] * 2
            assert (time.monotonic() - begun >= 1.0) == (topic == "one")
    assert meetings[0].present == meetings[1].present == {0, 1}


def test_without_the_first_rank_each_has_its_own_word(monkeypatch):
    monkeypatch.setattr(meeting, "GRACE", 0.1)
    lonely = Meeting(HashStore(), 2, 3)
    assert lonely.exchange("topic", "word", 0.2) == {2: "word"}
    assert lonely.present == {2}


def test_who_cannot_do_its_part_says_so():
    store = HashStore()
    one, other = Meeting(store, 0, 2), Meeting(store, 1, 2)
    assert one.broken("engine") is None
    other.say_broken("engine", "rank 1 on b")
    assert one.broken("engine") == "given up, since rank 1 on b failed"
    assert one.broken("trial") is None


def test_one_process_meets_itself():
    alone = Meeting(None, 0, 1)
    alone.say_broken("engine", "rank 0 on a")
    assert alone.broken("engine") is None
    assert alone.exchange("topic", "word", 1) == {0: "word"}


def listener() -> socket.socket:
    """Something that listens and is no store."""
    busy = socket.socket()
    busy.bind(("127.0.0.1", 0))
    busy.listen()
    return busy


@pytest.mark.parametrize("port", ["", "x", "0", "65536", "-1", "29500.0", "123456"])
def test_what_is_no_port(port):
    with pytest.raises(LostRank, match="MASTER_PORT must be a number of 1 to 65535; got"):
        check_address({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, listens=False)


@pytest.mark.parametrize("address", ["", "no.such.host.invalid", "a" * 300])
def test_what_is_no_address(address, monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "not known")  # without asking a name server

    if "." in address:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(LostRank, match="MASTER_ADDR must be a name or an address of rank 0's machine"):
        check_address({"MASTER_ADDR": address, "MASTER_PORT": "29500"}, listens=False)


def test_a_port_that_rank_0_cannot_have():
    with listener() as busy:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(busy.getsockname()[1])}
        with pytest.raises(LostRank, match=r"must be a port that rank 0 can listen at; got \d+, and another process"):
            check_address(environment, listens=True)
        check_address(environment, listens=False)  # the others, or where the launcher holds it
    check_address(environment, listens=True)


def test_a_port_that_the_system_keeps(monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(socket.socket, "bind", refused)  # the superuser may take it
    with pytest.raises(LostRank, match="got 80, and the system keeps it for itself: take a free one above 1023"):
        check_address({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "80"}, listens=True)


def test_where_nobody_listens_it_says_where_to_look(monkeypatch):
    with listener() as free:
        port = str(free.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name, value in (("MASTER_PORT", port), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        LostRank, match=rf"all 2 ranks must meet at 127\.0\.0\.1:{port} within 0\.3 s, and did not: look"
    ):
        Meeting.of_launch(1, 2, 0.3)
