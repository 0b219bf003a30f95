"""Errors of what a system is made from: files, settings, installation (LD10x)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError


class DeploymentFileError(LlamaDeployError):
    """The deployment file is not valid; `details["problems"]` lists every problem with line and column."""

    code, title, category = "LD101", "invalid deployment file", Category.INVALID


class ImportPathError(LlamaDeployError):
    """An import path of a service or an orchestrator does not lead to a usable object."""

    code, title, category = "LD102", "import path does not load", Category.INVALID


class PortInUseError(LlamaDeployError):
    """Another program listens on the port."""

    code, title, category = "LD103", "port in use", Category.UNAVAILABLE


class SettingError(LlamaDeployError):
    """A setting (flag, environment variable, argument of a constructor) has a value that cannot be used."""

    code, title, category = "LD104", "invalid setting", Category.INVALID


class MissingExtraError(LlamaDeployError):
    """The feature needs an optional dependency that is not installed."""

    code, title, category = "LD105", "optional dependency missing", Category.INVALID


class UnsafeListenError(LlamaDeployError):
    """A server was asked to listen beyond loopback without protection."""

    code, title, category = "LD106", "refusing to listen beyond loopback", Category.INVALID


class ProjectExistsError(LlamaDeployError):
    """`llamactl init` was asked to write over files that exist."""

    code, title, category = "LD107", "files exist already", Category.CONFLICT


class TwoDistributionsError(LlamaDeployError):
    """The published `llama-deploy` is installed in the same environment, with files under the same import name."""

    code, title, category = "LD109", "two distributions of llama_deploy", Category.CONFLICT


class WrongUsageError(LlamaDeployError):
    """A command line that `llamactl` cannot read: a command, an option or a value that there is none of."""

    code, title, category = "LD110", "wrong usage", Category.INVALID


class OutputError(LlamaDeployError):
    """Standard output cannot be written: the disk behind it is full, or broken."""

    code, title, category = "LD111", "output cannot be written", Category.INVALID


class ServiceStartError(LlamaDeployError):
    """A service of the deployment cannot be started, so nothing of the deployment is; its last lines say why."""

    code, title, category = "LD108", "service does not start", Category.INVALID
