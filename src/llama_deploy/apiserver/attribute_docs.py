"""The sentences that stand as docstrings below the fields of a class or the constants of a module.

Python keeps them in the source alone, so they are read from there: once, for a schema or a page of the docs. What they
mean is not known here.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from types import ModuleType
from typing import Any


def attribute_docs(owner: ModuleType | type[Any]) -> dict[str, str]:
    """What each name that `owner` assigns is said to mean, on one line; names without a docstring are left out.

    `owner` is a module or a class that a module defines. Where only bytecode is installed there is nothing to read.
    """
    try:
        body = ast.parse(inspect.getsource(owner)).body
    except OSError:
        return {}
    if isinstance(owner, type):
        body = next(node for node in body if isinstance(node, ast.ClassDef)).body
    found: dict[str, str] = {}
    for assignment, text in pairwise(body):
        if isinstance(assignment, ast.Assign):
            target: ast.expr = assignment.targets[0]
        elif isinstance(assignment, ast.AnnAssign):
            target = assignment.target
        else:
            continue
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[target.id] = " ".join(inspect.cleandoc(str(text.value.value)).split())
    return found
