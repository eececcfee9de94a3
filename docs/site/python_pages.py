"""A griffe extension: how docstrings of `pul_core` become pages.

A section `Example:` is a doctest, shown as code and not as a paragraph of text. The fields of a named tuple or a dataclass are listed with
their types, defaults and the comments beside them.
"""

import ast
import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Object

COMMENT = re.compile(r"(?:^|\s)#\s+(.+)$", re.MULTILINE)


class PythonPages(Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section of examples, because griffe knows it as `Examples:` only."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Append the fields of a named tuple or a dataclass to the docstring of the class."""
        is_tuple = any(str(base).endswith("NamedTuple") for base in cls.bases)
        if cls.docstring is None or not (is_tuple or any("dataclass" in str(decorator.value) for decorator in cls.decorators)):
            return
        fields = [field for field in cls.attributes.values() if "property" not in field.labels and not field.name.startswith("_")]
        if fields and "Attributes:" not in cls.docstring.value:
            lines = [f"    {field.name} ({_type(field)}): {_description(field)}" for field in fields]
            value = "\n".join([cls.docstring.value, "", "Attributes:", *lines])
            cls.docstring = Docstring(value, lineno=cls.docstring.lineno, endlineno=cls.docstring.endlineno, parent=cls)


def _type(field: Attribute) -> str:
    """Return the type of a field: of `Annotated[type, ...]`, the type alone."""
    annotation = ast.parse(str(field.annotation), mode="eval").body
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated" and isinstance(annotation.slice, ast.Tuple):
        annotation = annotation.slice.elts[0]
    return ast.unparse(annotation)


def _description(field: Attribute) -> str:
    """Return the text of `doc("...")` in the annotation or of the comment beside the field, and the default."""
    annotation = ast.parse(str(field.annotation), mode="eval").body
    calls = [node for node in ast.walk(annotation) if isinstance(node, ast.Call) and ast.unparse(node.func) == "doc"]
    described = [ast.literal_eval(call.args[0]) for call in calls]
    comments = COMMENT.findall("\n".join(field.lines))
    text = (described or comments or [field.name.replace("_", " ")])[0].rstrip(".")
    return f"{text}. Default: `{field.value}`." if field.value is not None else f"{text}."
