"""The optional packages of exports: imported where they are needed, and missing ones reported in one sentence."""

from importlib import import_module
from typing import Any

from pul_core.errors import UserError


def require(package: str) -> Any:
    """Import a package of the extra ``export``.

    Raises:
        UserError: it is not installed.

    Example:
        >>> require("json").__name__
        'json'
        >>> require("no_such_runtime")
        Traceback (most recent call last):
        pul_core.errors.UserError: this format requires the package no_such_runtime: pip install 'pul-reid[export]'
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        extra = "openvino" if name == "openvino" else "export"
        raise UserError(f"this format requires the package {name}: pip install 'pul-reid[{extra}]'") from error
