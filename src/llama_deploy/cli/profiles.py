"""The file of profiles: which servers a person uses, and how. It is that person's alone (mode 0600).

A profile is a name and settings; one of them may be the current one. Nothing here decides what wins over what; that is
`settings.py`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_deploy.errors import SettingError

FILE_VARIABLE = "LLAMACTL_CONFIG"
"""Where the file is, if not in the folder of settings of this person."""

CONFIG_FILE = "llama_deploy.cli.profiles.file"
"""Where in a command's context stands which file an option names; it wins over the variable."""

KEYS: dict[str, str] = {
    "server": "the URL of the control plane",
    "api-server": "the URL of the API server",
    "token": "the token; it is read from standard input",
    "token-file": "a file that holds the token",
    "ca-file": "a file of authorities to believe",
    "insecure": "true: believe any certificate of the server",
    "request-timeout": "seconds that one request may go without an answer",
    "output": "the form of output",
}
"""What a profile may say."""

OTHERS_MAY = 0o077


@dataclass
class Profiles:
    """What the file says. `save` writes it as a whole."""

    path: Path
    current: str | None = None
    profiles: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, name: str) -> dict[str, str]:
        """A profile. Raises `SettingError` where there is none of this name."""
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none yet"
            raise SettingError(
                f"there is no profile {name!r}",
                why=f"Profiles in {self.path}: {known}.",
                fix=f"llamactl config set server URL --profile {name}     make it",
            )
        return self.profiles[name]

    def save(self) -> None:
        """Write the file: all of it or nothing, and for nobody else to read. Raises `SettingError`."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        document = {"current": self.current, "profiles": self.profiles}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
                file.write("\n")
            partial.replace(self.path)
        except OSError as error:
            raise SettingError(f"{self.path} cannot be written", why=error.strerror or str(error)) from error


def profiles_file() -> Path:
    """Where the file is."""
    import click

    context = click.get_current_context(silent=True)
    said = context.meta.get(CONFIG_FILE) if context is not None else None
    said = said or os.environ.get(FILE_VARIABLE)
    if said:
        return Path(said)
    return Path(click.get_app_dir("llamactl")) / "config.json"


def load() -> Profiles:
    """What the file says; nothing where there is none. Raises `SettingError` for one that cannot be used."""
    path = profiles_file()
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Profiles(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingError(f"the profiles in {path} cannot be read", why=str(why)) from error
    profiles = _parsed(text, path)
    if mode & OTHERS_MAY and any("token" in profile for profile in profiles.profiles.values()):
        raise SettingError(
            f"{path} holds a token and can be read by others (mode {mode & 0o777:o})", fix=f"chmod 600 {path}"
        )
    return profiles


def _parsed(text: str, path: Path) -> Profiles:
    try:
        document: Any = json.loads(text)
        current, profiles = document.get("current"), document["profiles"]
        valid = isinstance(current, str | None) and all(_is_profile(profile) for profile in profiles.values())
        why = "it has settings that are not known"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        valid, why, current, profiles = False, repr(error), None, {}
    if not valid:
        raise SettingError(f"{path} is no file of profiles", why=why, fix=f"mend it, or move it away: {path}")
    return Profiles(path, current, profiles)


def _is_profile(value: Any) -> bool:
    return isinstance(value, dict) and all(key in KEYS and isinstance(one, str) for key, one in value.items())
