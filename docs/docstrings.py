"""For the API pages: docstrings in reStructuredText's roles, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class):`(?:gradprune_jax\.)?([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_LINK = re.compile(r"`([^`<]+?)\s+<([^>]+)>`_")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_MATH_BLOCK = re.compile(r"^( *)\.\. math:: ?(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_TABLE = re.compile(
    r"^(?P<indent> *)(?P<rule>=+(?: +=+)+)\n(?P<head>.*)\n *=[= ]+\n"
    r"(?P<rows>(?:.*\n)*?) *=[= ]+$",
    re.MULTILINE,
)


class Markdown(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    r"""One docstring.

    Example:
      >>> as_markdown("Like :func:`prune`, with ``k`` weights, :math:`k < n`.")
      'Like `prune`, with `k` weights, \\(k < n\\).'
    """
    text = _EXAMPLE.sub(r"\1Examples:", text)  # the section that griffe knows
    text = _MATH_BLOCK.sub(_display, text)
    text = _ROLE.sub(r"`\1`", text)
    text = _MATH.sub(r"\\(\1\\)", text)
    text = _LINK.sub(r"[\1](\2)", text)
    text = _TABLE.sub(_table, text)
    return text.replace("``", "`")


def _display(match: re.Match[str]) -> str:
    indent, formula = match.groups()
    lines = "\n".join(f"{indent}{line.strip()}" for line in formula.splitlines())
    return f"{indent}$$\n{lines}\n{indent}$$"


def _table(match: re.Match[str]) -> str:
    indent = match["indent"]
    columns = len(match["rule"].split())

    def row(line: str) -> str:
        # By the gaps between cells, for markup in them has become shorter.
        cells = re.split(r" {2,}", line.strip(), maxsplit=columns - 1)
        return f"{indent}| {' | '.join(cells)} |"

    lines = [row(match["head"]), f"{indent}|{'-|' * columns}"]
    return "\n".join([*lines, *map(row, match["rows"].splitlines())])
