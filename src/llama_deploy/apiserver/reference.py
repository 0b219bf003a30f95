"""A value that does not stand in the deployment file: it is followed when the deployment starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama_deploy.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Where a value is that does not stand in the file: a variable of the environment, or a file."""

    env: str | None = None
    file: Path | None = None
    """Relative to the deployment file's folder; its text without the spaces and line ends around it."""

    def read(self, base_folder: Path) -> str:
        """The value. Raises `SettingError` where there is none."""
        try:
            if self.file is not None:
                return (base_folder / self.file).read_text(encoding="utf-8").strip()
            return os.environ[self.env or ""]
        except KeyError:
            raise SettingError(
                f"the variable {self.env} is not set",
                why="the deployment file refers to it",
                fix=f"export {self.env}=...",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SettingError(f"cannot read {self.file}", why=str(why)) from None
