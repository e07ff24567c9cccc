"""The wheel contains the three packages with the bundled model, and none of the programs that create them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PACKAGES = ("clara_core", "langchain_clara", "llama_index_clara")


def test_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as packed:
        held = {Path(name) for name in packed.namelist()}
    inside = {path for path in held if not path.parts[0].endswith(".dist-info")}
    modules = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {path for path in inside if path.suffix == ".py"} == modules
    assert {path.parts[0] for path in inside} == set(PACKAGES)
    assert {Path(package, "py.typed") for package in PACKAGES} <= inside
    assert {path.relative_to(ROOT) for path in (ROOT / "clara_core/serving/static").iterdir()} <= inside
    assert {Path("clara_core/pocket/base/model.safetensors"), Path("clara_core/pocket/adapters.safetensors")} <= inside
