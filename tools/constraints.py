"""Print constraints.txt: the installed versions of all packages that the project requires (``make constraints``)."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAD = """\
# What `make` installs, so that an install is quick and the same on every day; `make test-newest` goes without, and
# `make test-oldest` has constraints-oldest.txt. After a change of the dependencies: `make constraints`.
# torch: without its pin pip takes the newest, which drags gigabytes of CUDA packages behind it where no CPU build is
# offered.\
"""


def versions(root: Path) -> dict[str, str]:
    """Name and version of every package that the project in `root` and its extras ``dev`` and ``docs`` require here."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in (*project["dependencies"], f"{project['name']}[dev,docs]")]
    while waiting:
        requirement = waiting.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == project["name"]:
            waiting += [Requirement(text) for extra in wanted for text in extras[extra]]
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform
        found[name] = package.version.partition("+")[0]
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append(needed)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    print(HEAD)
    for name, version in versions(Path(__file__).parents[1]).items():
        print(f"{name}=={version}")
