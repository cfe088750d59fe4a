"""Findings of ranks become lines."""

import pytest

from bmscale.doctor.findings import NAME_WIDTH, Finding, Report, attempt, merged
from bmscale.errors import BadInput


def reports(*findings: Finding) -> list[Report]:
    return [Report(rank, f"n{rank // 2}", [finding]) for rank, finding in enumerate(findings)]


OK = Finding("disk", "ok", "9 GiB free")


def test_one_rank_speaks_for_itself():
    (line,) = merged([Report(0, "here", [Finding("disk", "warn", "1 GiB\nfree", "make room")])])
    assert line.to_text() == f"warn  {'disk':<{NAME_WIDTH}}  1 GiB free -> make room"


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_a_check_that_fails_on_any_rank_fails_and_names_rank_and_host(status):
    (line,) = merged(reports(OK, OK, OK, Finding("disk", status, "full", "make room")))
    assert (line.status, line.found, line.advice) == (status, "rank 3 on n1: full", "make room")
    assert line.to_dict()["ranks"]["3"]["found"] == "full"


def test_the_worst_is_shown_and_like_troubles_together():
    full, little = Finding("disk", "fail", "full"), Finding("disk", "warn", "little")
    (line,) = merged(reports(full, little, OK, full, Finding("disk", "fail", "gone")))
    assert line.status == "fail"
    assert line.found == "rank 0 on n0, rank 3 on n1: full; rank 4 on n2: gone"
    (line,) = merged(reports(*[full] * 9))
    assert line.found == "every rank: full"
    (line,) = merged(reports(OK, *[full] * 9))
    assert line.found == "rank 1 on n0, rank 2 on n1, rank 3 on n1 and 6 more: full"
    (line,) = merged(reports(*(Finding("disk", "fail", f"{number} broken") for number in range(5))))
    assert line.found.endswith("rank 2 on n1: 2 broken; and 2 more (--json has all)")


def test_what_must_be_alike_fails_where_it_is_not():
    same = [Finding("versions", "ok", "torch", alike="torch 2.13") for _ in range(3)]
    assert merged(reports(*same))[0].status == "ok"
    (line,) = merged(reports(*same, Finding("versions", "ok", "torch", alike="torch 2.11")))
    assert line.status == "fail"
    assert "rank 3 on n1 has torch 2.11; rank 0 on n0 has torch 2.13" in line.found
    unknown = Finding("versions", "fail", "no torch")  # says more than that it differs
    assert merged(reports(*same, unknown))[0].found == "rank 3 on n1: no torch"


def test_checks_keep_their_order_and_need_not_be_on_all_ranks():
    first = Report(0, "a", [OK, Finding("ports", "ok", "free")])
    second = Report(1, "b", [OK, Finding("memory", "fail", "none"), Finding("ports", "ok", "free")])
    assert [(line.check, line.status) for line in merged([first, second])] == [
        *(("disk", "ok"), ("ports", "ok"), ("memory", "fail"))
    ]


def test_a_check_that_cannot_be_made_has_failed():
    def refused() -> Finding:
        raise BadInput("this must be that; got those")

    def broken() -> Finding:
        raise RuntimeError("\nno route to host\nframe #0: c10::Error")

    assert attempt("x", refused).found == "this must be that; got those"
    assert attempt("x", broken) == Finding("x", "fail", "RuntimeError: no route to host")
    assert attempt("x", lambda: OK) is OK
