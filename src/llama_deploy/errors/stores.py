"""Errors of what a control plane stands on: its store, and its message queue (LD4xx)."""

from __future__ import annotations

from llama_deploy.errors.base import Category, LlamaDeployError


class StoreUnavailableError(LlamaDeployError):
    """The store cannot be written or read now. What was acknowledged is safe; new work is refused meanwhile."""

    code, title, category = "LD401", "store unavailable", Category.UNAVAILABLE


class StoreLockedError(LlamaDeployError):
    """Another process has this store open; one writer at a time keeps it whole."""

    code, title, category = "LD402", "store in use", Category.CONFLICT


class StoreReadOnlyError(LlamaDeployError):
    """The store's file or folder cannot be written."""

    code, title, category = "LD403", "store not writable", Category.UNAVAILABLE


class StoreVersionError(LlamaDeployError):
    """The store was written by a later version of this program, or is not a store of this program."""

    code, title, category = "LD404", "store not readable by this version", Category.INVALID


class CommitConflictError(LlamaDeployError):
    """A guard of a commit failed: somebody else changed what it was based on. Nothing of it was recorded."""

    code, title, category = "LD405", "commit conflict", Category.CONFLICT


class StoreExistsError(LlamaDeployError):
    """A store was to be restored where there is one already; it is untouched."""

    code, title, category = "LD406", "store exists already", Category.CONFLICT


class BackupError(LlamaDeployError):
    """The file is not there, is damaged, or is no backup that this version can read. Nothing was changed."""

    code, title, category = "LD407", "backup not usable", Category.INVALID


class StoreKeyError(LlamaDeployError):
    """The store is encrypted and its key was not given, or another one was; or it is not encrypted and one was given.

    Nothing was changed.
    """

    code, title, category = "LD408", "store key missing or wrong", Category.INVALID


class ShardLostError(CommitConflictError):
    """Another control plane leads the sessions that a commit was about. Nothing of it was recorded, nor will be.

    The task goes on there; asking again is of no use here.
    """

    code, title, category = "LD409", "led by another control plane", Category.CONFLICT


class SharedStoreError(LlamaDeployError):
    """A control plane was told to share its store with others, and that store has room for one control plane only.

    Nothing was changed.
    """

    code, title, category = "LD410", "store cannot be shared", Category.INVALID


class CarrierRefusedError(LlamaDeployError):
    """The broker was reached and does not let the control plane in, or does not allow what a carrier needs.

    Nothing was published.
    """

    code, title, category = "LD421", "message queue refuses", Category.INVALID
