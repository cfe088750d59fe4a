"""Versions that are there, too old, known to be bad, newer than tested, absent."""

from collections.abc import Callable

import pytest

from bmscale.doctor import packages
from bmscale.doctor.findings import Finding


def with_(**given: str | None) -> Callable[[str], str | None]:
    return lambda package: given[package] if package in given else packages.installed(package)


def test_this_environment_is_well():
    found = packages.check_versions()
    assert found.status == "ok", found
    assert "torch 2." in found.found
    assert found.alike == found.found
    assert not list(packages.missing())


@pytest.mark.parametrize(
    ("package", "version", "status", "said"),
    [
        ("torch", "2.4.1", "fail", "torch 2.4.1 is too old: must be <2.14,>=2.11"),
        ("torch", "2.99.0+cu999", "warn", "torch 2.99.0+cu999 is newer than what was tested"),
        ("torch", "2.7.0", "fail", "torch 2.7.0: ranks on GPUs hang when they meet"),
        ("deepspeed", "0.18.9", "fail", "drops the gradients of all micro-batches but one; must be <0.20,>=0.19.3"),
        ("transformers", "4.57.0", "fail", "tied weights are declared in another way"),
        ("transformers", None, "fail", "transformers<5.24,>=5.17 is not installed"),
        ("deepspeed", None, "warn", "one process trains without it, several ranks do not"),
    ],
)
def test_what_is_wrong_is_named(package, version, status, said):
    found: Finding = packages.check_versions(with_(**{package: version}))
    assert found.status == status
    assert said in found.found
    assert found.advice.startswith("pip install -c launch/constraints.txt")


def test_the_worst_is_told():
    found = packages.check_versions(with_(torch="2.4.1", datasets="99.0", numpy="1.0"))
    assert found.status == "fail"
    assert "torch" in found.found
    assert "numpy" in found.found
    assert "datasets" not in found.found


def test_without_torch_nothing_else_is_looked_at():
    assert list(packages.missing(with_(torch=None))) == ["torch"]
