"""From what a deployment file names to the objects themselves: import paths to services, names to orchestrators.

Runs the user's modules, so whatever they raise is caught here and told with the line of the user's code. It changes
`sys.path` for the process, which is why each service of a deployment gets a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llama_deploy.apiserver.wording import did_you_mean, listed
from llama_deploy.errors import ImportPathError, LlamaDeployError, SourceError

if TYPE_CHECKING:
    from llama_deploy.apiserver.specs import DeploymentFile, OrchestratorSpec, ServiceSpec
    from llama_deploy.orchestrators.base import BaseOrchestrator
    from llama_deploy.services.base import Service

SIMPLE = "simple"
DESCRIBED = (
    *("sequence", "parallel", "map", "graph", "router", "handoff", "group-chat", "planner", "gate"),
    *("retry", "fallback", "timeout", "budget", "cache", "vote", "saga"),
)
"""The orchestrators of the catalogue, which are described by data (`llama_deploy.orchestrators.described`)."""
ENTRY_POINTS = "llama_deploy.orchestrators"
"""The group of entry points under which an installed package offers orchestrators by name."""


def orchestrator_names() -> list[str]:
    """The names that a deployment file may use: what is built in, and what installed packages offer."""
    installed = (point.name for point in entry_points(group=ENTRY_POINTS))
    return list(dict.fromkeys([SIMPLE, *DESCRIBED, *installed]))


_LISTED_NAMES_MAX = 12


def load_service(definition: ServiceSpec, base_folder: Path) -> Service:
    """Import the object that a service of the deployment file names, and make a service of it.

    Any object that `llama_deploy.services.as_service` knows will do: a `Service`, a function, a workflow. The file's
    name and settings override the object's own, on a copy: other services may be made from the same object. Raises
    `ImportPathError` when there is no such object, when its module raises, or when it is nothing that can serve.
    """
    from llama_deploy.services import as_service
    from llama_deploy.types import RetryPolicy, ServiceLimits

    if definition.source is not None and definition.source_folder is None and definition.image is None:
        raise _unusable(
            definition.import_path,
            f"The source of {definition.name} is of the type {definition.source.type}, and has not been fetched.",
            "llamactl apiserver FILE   an API server fetches it",
        )
    code_folder = definition.code_folder(base_folder)
    found = load_object(definition.import_path, code_folder, extra_path=definition.path)
    try:
        service = as_service(
            found,
            name=definition.name,
            description=definition.description,
            concurrency=definition.concurrency,
            run_timeout_s=definition.run_timeout_s,
            limits=ServiceLimits.model_validate(definition.limits) if definition.limits else None,
            memory=definition.memory,
        )
    except LlamaDeployError as error:
        raise _unusable(definition.import_path, str(error), error.fix) from error
    if not definition.retry:
        return service
    retry = (service.definition.retry or RetryPolicy()).model_copy(update=dict(definition.retry))
    return as_service(service, retry=retry)


def load_orchestrator(spec: OrchestratorSpec, base_folder: Path) -> BaseOrchestrator:
    """The orchestrator that a deployment file names: a built-in one, or a class or object of the user's.

    Parameters go to the constructor; a name may be spelled with `-` for `_`. Raises `ImportPathError` when it does
    not load, when the parameters do not fit, or when it is no orchestrator.
    """
    from llama_deploy.orchestrators.base import BaseOrchestrator

    word = spec.import_path or spec.name or SIMPLE
    if spec.import_path is not None:
        found = load_object(spec.import_path, base_folder)
    elif word in DESCRIBED:
        return _described(word, spec.parameters)
    else:
        found = _named(word)
    parameters = {key.replace("-", "_"): value for key, value in spec.parameters.items()}
    if isinstance(found, type):
        found = _construct(found, parameters, word)
    elif parameters:
        named = ", ".join(f"`{name}`" for name in parameters)
        fix = f"name its class in the deployment file, or leave out {named}"
        raise _unusable(word, "It is an object already, so parameters have nowhere to go.", fix)
    if not isinstance(found, BaseOrchestrator):
        why = f"It is a {type(found).__name__}, which is no BaseOrchestrator."
        raise _unusable(word, why, "name a subclass of llama_deploy.BaseOrchestrator, or an object of one")
    return found


def _described(name: str, parameters: Mapping[str, Any]) -> BaseOrchestrator:
    from llama_deploy.orchestrators.described import build
    from llama_deploy.orchestrators.described_errors import DescriptionError

    try:
        return build(name, parameters)
    except DescriptionError as error:
        raise _unusable(name, str(error), "correct its `parameters`") from error


def _named(word: str) -> Any:
    """The class or object behind a name that is not of the catalogue."""
    if word == SIMPLE:
        from llama_deploy.orchestrators.simple import SimpleOrchestrator

        return SimpleOrchestrator
    for point in entry_points(group=ENTRY_POINTS, name=word):
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise _unusable(word, _told(error), f"reinstall the package that offers it ({point.value})") from error
    names = orchestrator_names()
    raise ImportPathError(
        f"there is no orchestrator `{word}`{did_you_mean(word, names)}", why=f"There are: {listed(names)}."
    )


def check_deployment(file: DeploymentFile) -> None:
    """Import the orchestrators and every service of the file, except those whose code is in images of their own.

    Raises `ImportPathError` for the first that fails.
    """
    for spec in (file.orchestrator, *file.orchestrators.values()):
        load_orchestrator(spec, file.folder)
    for service in file.services:
        if service.image is None:
            load_service(service, file.folder)


def check_no_images(file: DeploymentFile) -> None:
    """Raise `SourceError` for a file with services that only run in their images: there is nothing that runs those."""
    images = {service.name: service.image for service in file.services if service.image is not None}
    if images:
        name, image = next(iter(images.items()))
        raise SourceError(
            f"the code of {listed(images)} is in container images, which are not run here",
            why=f"{name} is {image}",
            fix="llamactl deployments render FILE --kubernetes   values for the Helm chart, whose pods run them\n"
            f"llamactl serve FILE --only {name}               within the image, where something else runs it\n"
            "or name a source of the type `local`, `git` or `package`",
            services=list(images),
        )


def load_object(import_path: str, folder: Path, *, extra_path: Path | None = None) -> Any:
    """The object at `module:variable`, `sub/folder/module:variable` or `sub/folder/file.py:variable`.

    Paths start in `folder`; the module's own folder (and `extra_path`) come first on `sys.path` from then on, so that
    it can import its neighbours. A module that is imported already is not run again. Raises `ImportPathError`.
    """
    where, _, variable = import_path.rpartition(":")
    if not where or not variable:
        raise ImportPathError(f"`{import_path}` is no import path", fix="write it as `module:variable`")
    folder = folder.resolve()
    if extra_path is not None:
        if not (folder / extra_path).is_dir():
            raise _no_such(import_path, f"There is no folder {folder / extra_path}.", folder)
        _put_on_path(folder / extra_path)
    place = Path(where)
    if place.suffix == ".py" or len(place.parts) > 1:
        module = _import_place(import_path, folder / place)
    else:
        _put_on_path(folder)
        module = _import_name(import_path, where, folder, extra_path)
    return _variable(module, variable, import_path)


def _import_place(import_path: str, place: Path) -> ModuleType:
    """Import the module at a path, with or without its `.py`."""
    if place.suffix == ".py":
        file = place
    elif (place / "__init__.py").is_file():
        file = place / "__init__.py"
    else:
        file = place.with_name(place.name + ".py")
    if not file.is_file():
        raise _no_such(import_path, f"There is no file {file}.", file.parent)
    name = place.name if file.name == "__init__.py" else file.stem
    _put_on_path(place.parent)
    return _import_file(import_path, name, file)


def _import_name(import_path: str, name: str, folder: Path, extra_path: Path | None) -> ModuleType:
    """Import a module by its (dotted) name, the user's own before anything that is installed."""
    if "." not in name:
        for root in (folder, folder / extra_path if extra_path is not None else folder):
            for file in (root / f"{name}.py", root / name / "__init__.py"):
                if file.is_file():
                    return _import_file(import_path, name, file)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            why = f"There is no module `{error.name}` in {folder} or installed."
            raise _no_such(import_path, why, folder) from None
        raise _module_raised(import_path, error) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise _module_raised(import_path, error) from error


def _import_file(import_path: str, name: str, file: Path) -> ModuleType:
    """Run a file as the module `name`, or under a name of its own when another module has that name already."""
    known = sys.modules.get(name)
    if known is not None and not _is_from(known, file):
        digest = hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()
        name = f"{name}_{digest}"
        known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a file that ends in .py always has a loader"
    assert spec.loader is not None, "a file that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        sys.modules.pop(name, None)
        raise _module_raised(import_path, error) from error
    return module


def _is_from(module: ModuleType, file: Path) -> bool:
    origin = getattr(module, "__file__", None)
    return origin is not None and Path(origin).resolve() == file.resolve()


def _put_on_path(folder: Path) -> None:
    entry = str(folder.resolve())
    if entry not in sys.path:
        sys.path.insert(0, entry)


def _variable(module: ModuleType, variable: str, import_path: str) -> Any:
    found: Any = module
    for name in variable.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = _public_names(found)
            shown = ", ".join(names[:_LISTED_NAMES_MAX]) or "nothing"
            rest = f" and {len(names) - _LISTED_NAMES_MAX} more" if len(names) > _LISTED_NAMES_MAX else ""
            raise ImportPathError(
                f"`{import_path}` does not load: there is no `{name}`{did_you_mean(name, names)}",
                why=f"{getattr(module, '__file__', None) or module.__name__} defines {shown}{rest}.",
                fix="correct the name after the colon",
                import_path=import_path,
                names=names,
            ) from None
    return found


def _public_names(found: Any) -> list[str]:
    """What a module defines itself, in its order; what it imported comes from elsewhere and is left out."""
    values = {name: value for name, value in getattr(found, "__dict__", {}).items() if not name.startswith("_")}
    if not isinstance(found, ModuleType):
        return list(values)
    own = []
    for name, value in values.items():
        if not isinstance(value, ModuleType) and getattr(value, "__module__", found.__name__) == found.__name__:
            own.append(name)
    return own or list(values)


def _construct(cls: type, parameters: Mapping[str, Any], word: str) -> Any:
    accepted: Mapping[str, inspect.Parameter]
    try:
        accepted = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        accepted = {}
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [] if anything else [name for name in parameters if name not in accepted]
    if unknown:
        wrong = ", ".join(f"`{name}`{did_you_mean(name, accepted)}" for name in unknown)
        raise _unusable(word, f"It has no parameter {wrong}.", f"its parameters are {listed(accepted)}")
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        and name not in parameters
    ]
    if missing:
        raise _unusable(word, f"It needs {listed(missing)}.", "give them under `parameters` of `orchestrator`")
    try:
        return cls(**parameters)
    except (Exception, SystemExit) as error:  # and so may a constructor of theirs
        raise _unusable(word, _told(error), "correct its `parameters`, or its code") from error


def _unusable(import_path: str, why: str, fix: str) -> ImportPathError:
    return ImportPathError(f"`{import_path}` cannot be used", why=why, fix=fix, import_path=import_path)


def _no_such(import_path: str, why: str, folder: Path) -> ImportPathError:
    names = sorted(path.stem for path in folder.glob("*.py")) if folder.is_dir() else []
    word = Path(import_path.rpartition(":")[0]).name.removesuffix(".py")
    return ImportPathError(
        f"`{import_path}` does not load: no such file or module{did_you_mean(word, names)}",
        why=why,
        fix="paths start in the folder of the deployment file, or in that of the service's `source`",
        import_path=import_path,
        names=names,
    )


def _module_raised(import_path: str, error: BaseException) -> ImportPathError:
    fix = "correct the code"
    if isinstance(error, ModuleNotFoundError) and error.name:
        fix = f"install what provides `{error.name}` into {sys.prefix}, or correct the import"
    return ImportPathError(
        f"`{import_path}` does not load: its module raised {type(error).__name__}",
        why=_told(error),
        fix=fix,
        import_path=import_path,
    )


def _told(error: BaseException) -> str:
    """What an exception of the user's code says, and the place in that code, innermost last."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}:{error.offset}: {error.msg}\n    {(error.text or '').strip()}"
    lines = [f"{type(error).__name__}: {error}"]
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename != __file__ and not frame.filename.startswith("<frozen importlib"):
            if Path(frame.filename).name == "__init__.py" and Path(frame.filename).parent.name == "importlib":
                continue
            lines.append(f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}")
    return "\n".join(lines)
