"""A griffe extension: a section `Example:` of a docstring is a doctest, shown as code, and not a paragraph of text."""

import re
from typing import Any

from griffe import Extension, Object


class ExampleSections(Extension):
    """Rename the section, because griffe knows it as `Examples:` only."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
