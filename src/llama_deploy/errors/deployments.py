"""Errors of deployments on a server that runs many of them (LD24x)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError


class DeploymentNotFoundError(LlamaDeployError):
    """The server runs no deployment of this name."""

    code, title, category = "LD240", "deployment not found", Category.NOT_FOUND


class DeploymentExistsError(LlamaDeployError):
    """A deployment of this name runs already, and the request does not say that it is to be replaced."""

    code, title, category = "LD242", "deployment exists", Category.CONFLICT


class DeploymentFailedError(LlamaDeployError):
    """A version of a deployment did not start; its last lines say why. The version before it, if any, goes on."""

    code, title, category = "LD243", "deployment does not start", Category.FAILED


class DeploymentUnavailableError(LlamaDeployError):
    """The deployment is stopped, failed, or about to start; what it has recorded is kept."""

    code, title, category = "LD244", "deployment not running", Category.UNAVAILABLE


class VersionNotFoundError(LlamaDeployError):
    """The deployment has no such version, or does not keep it any more."""

    code, title, category = "LD245", "version not found", Category.NOT_FOUND


class ReleaseNotFoundError(LlamaDeployError):
    """No task is bound to a release of this name: it has finished, was retired, or was never current."""

    code, title, category = "LD248", "release not found", Category.NOT_FOUND


class SourceError(LlamaDeployError):
    """The source of a service cannot be fetched, or has something in it that is not taken. Nothing was changed."""

    code, title, category = "LD246", "source not usable", Category.INVALID


class EnvironmentBuildError(LlamaDeployError):
    """The Python environment of a service cannot be made from its `python-dependencies`. Nothing was changed."""

    code, title, category = "LD247", "environment not built", Category.INVALID
