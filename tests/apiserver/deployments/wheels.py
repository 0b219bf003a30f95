"""Tiny packages for tests, as wheels in a folder that `uv` installs from, without an index."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, *, source: str = "", requires: tuple[str, ...] = ()) -> None:
    """A wheel with one module that says its version."""
    about = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    contents = {
        f"{name}.py": f"VERSION = {version!r}\n{source}",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*contents, f"{about}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**contents, f"{about}/RECORD": record}.items():
            wheel.writestr(path, text)


def without_index(folder: Path) -> dict[str, str]:
    """The variables that have `uv` install from a folder, and from nowhere else."""
    return {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(folder), "UV_OFFLINE": "1"}
