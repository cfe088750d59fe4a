"""Versions: what bmscale asks for, what is there, and what is known to go wrong. Imports none of the packages."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from bmscale.doctor.findings import SEVERITY, Finding, Status

SHOWN = ("bmscale", "torch", "deepspeed", "accelerate", "transformers")

KNOWN_BAD = (
    ("deepspeed", "<0.19", "under CPU offload it drops the gradients of all micro-batches but one"),
    ("torch", ">2.6,<2.7.1", "ranks on GPUs hang when they meet"),
    ("transformers", "<5", "tied weights are declared in another way, and models do not load"),
)
"""(package, versions, what happens). Sources: DeepSpeed PR 7967 and 7981; pytorch issue 153960, which
deepspeed/comm/torch.py of 0.19.8 works around; transformers 5 made `_tied_weights_keys` a mapping. All of them lie
outside what pyproject.toml allows, and are found where somebody installed past it."""


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_versions(found: Callable[[str], str | None] = installed) -> Finding:
    """Whether each package that bmscale requires is there in a version that it was tested with.

    Too old or absent fails; newer than tested is a warning, and so is no DeepSpeed: one process trains without it.
    """
    shown = ", ".join(f"{package} {found(package)}" for package in SHOWN if found(package))
    here = f"python {platform.python_version()}, {shown}"
    try:
        wanted = [text for text in requires("bmscale") or [] if "extra ==" not in text]
    except PackageNotFoundError:
        return Finding(
            *("versions", "warn", f"{here}; bmscale runs from a folder and is not installed, so what it needs is"),
            *("not known; pip install -c launch/constraints.txt -e .", here),
        )
    troubles = [trouble for text in wanted if (trouble := _trouble(text, found))]
    if not troubles:
        return Finding("versions", "ok", here, alike=here)
    worst = max((status for status, _ in troubles), key=SEVERITY.__getitem__)
    said = "; ".join(text for status, text in troubles if status == worst)
    return Finding("versions", worst, said, "pip install -c launch/constraints.txt -e .", here)


def _trouble(requirement: str, found: Callable[[str], str | None]) -> tuple[Status, str] | None:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted = Requirement(requirement)
    there = found(wanted.name)
    if there is None:
        if wanted.name == "deepspeed":
            return "warn", "deepspeed is not installed: one process trains without it, several ranks do not"
        return "fail", f"{wanted.name}{wanted.specifier} is not installed"
    for package, versions, what in KNOWN_BAD:
        if package == wanted.name and SpecifierSet(versions).contains(there, prereleases=True):
            return "fail", f"{package} {there}: {what}; must be {wanted.specifier}"
    if wanted.specifier.contains(there, prereleases=True):
        return None
    least = SpecifierSet(",".join(str(part) for part in wanted.specifier if part.operator in (">", ">=")))
    status: Status = "warn" if least.contains(there, prereleases=True) else "fail"
    what = "is newer than what was tested" if status == "warn" else "is too old"
    return status, f"{wanted.name} {there} {what}: must be {wanted.specifier}"


def missing(found: Callable[[str], str | None] = installed) -> Iterator[str]:
    """Packages without which nothing else can be checked."""
    return (package for package in ("torch", "transformers", "accelerate") if found(package) is None)
