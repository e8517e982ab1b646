"""Words of a shell script: quotes, continued lines, variables and their defaults, by the rules of POSIX and bash."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

UNKNOWN = "\0"
"""In a word: unknown text or, at its beginning, an unknown number of words."""

_PARAMETER = re.compile(r"([A-Za-z_]\w*|[0-9]+|[@*])(\[[@*]\])?(.*)", re.DOTALL)
_DEFAULT = re.compile(r"(:?)([-=+?])(.*)", re.DOTALL)

_ANSI = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)


class ShellError(Exception):
    """The script is incomplete: a quote or bracket does not end."""


@dataclass
class Variables:
    """The variables of a running script. `opened`: others may be set that the text does not show."""

    values: dict[str, str | list[str]]
    exported: set[str]
    positional: list[str]
    zero: str = UNKNOWN
    """`$0`."""
    opened: bool = False
    functions: dict[str, str] = field(default_factory=dict)
    """The script's own functions, by their text."""

    def copy(self) -> Variables:
        """A copy for a subshell."""
        functions = dict(self.functions)
        return Variables(
            dict(self.values), set(self.exported), list(self.positional), self.zero, self.opened, functions
        )

    def get(self, name: str) -> str | list[str] | None:
        """A variable's value; None if it is not set."""
        if name in ("@", "*"):
            return list(self.positional)
        if name == "0":
            return self.zero
        if name.isdigit():
            index = int(name) - 1
            if any(UNKNOWN in each for each in self.positional[: index + 1]):
                return UNKNOWN
            return self.positional[index] if index < len(self.positional) else ""
        return self.values.get(name)

    def environment(self) -> dict[str, str]:
        """The environment of a command."""
        return {name: joined(value) for name, value in self.values.items() if name in self.exported}


def joined(value: str | list[str] | None) -> str:
    """A value as one text."""
    return " ".join(value) if isinstance(value, list) else value or ""


@dataclass
class Fields:
    """The words to which one word of the script expands."""

    done: list[str] = field(default_factory=list)
    current: str | None = None
    plain: bool = True
    """Whether no part was quoted or expanded, so that it may be a reserved word."""

    def add(self, text: str) -> None:
        self.current = (self.current or "") + text

    def split(self, text: str) -> None:
        """Add the result of an unquoted expansion."""
        parts = re.split(r"[ \t\n]+", text)
        for index, part in enumerate(parts):
            if index:
                self.end()
            if part:
                self.add(part)

    def list(self, values: list[str], *, quoted: bool) -> None:
        """Add the words of `"$@"`."""
        for index, value in enumerate(values):
            if index:
                self.end()
            if quoted:
                self.add(value)
            else:
                self.split(value)

    def end(self) -> None:
        if self.current is not None:
            self.done.append(self.current)
        self.current = None


class WordReader:
    """Reads a script word by word."""

    def __init__(self, script: str, variables: Variables) -> None:
        self._text = script.replace("\r\n", "\n")
        self._at = 0
        self._variables = variables

    def _word(self, *, split: bool = True) -> Fields:
        fields = Fields()
        while self._at < len(self._text):
            mark = self._text[self._at]
            if mark in " \t\n;|&()<>":
                break
            if mark == "\\":
                fields.plain = False
                if not self._text.startswith("\\\n", self._at):
                    fields.add(self._text[self._at + 1 : self._at + 2])
                self._at += 2
            elif mark == "'":
                fields.plain = False
                fields.add(self._until("'", self._at + 1))
            elif mark == '"':
                fields.plain = False
                self._at += 1
                self._double_quoted(fields)
            elif mark in "$`":
                fields.plain = False
                self._expansion(fields, quoted=not split, bare=True)
            else:
                fields.add(mark)
                self._at += 1
        fields.end()
        return fields

    def _until(self, mark: str, start: int) -> str:
        """The text from `start` to a mark, which is skipped."""
        end = self._text.find(mark, start)
        if end < 0:
            raise ShellError(f"{mark} does not end")
        self._at = end + 1
        return self._text[start:end]

    def _ansi(self) -> str:
        """The text of `$'...'`, which may have escaped letters and quotes."""
        match = _ANSI.match(self._text, self._at)
        if match is None:
            raise ShellError("$' does not end")
        self._at = match.end()
        try:
            return match[1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        except UnicodeDecodeError:
            return UNKNOWN

    def _double_quoted(self, fields: Fields) -> None:
        if self._text.startswith('"', self._at):
            fields.add("")
        while True:
            if self._at >= len(self._text):
                raise ShellError('" does not end')
            mark = self._text[self._at]
            if mark == '"':
                self._at += 1
                return
            if mark == "\\" and self._text[self._at + 1 : self._at + 2] in ("$", "`", '"', "\\", "\n"):
                escaped = self._text[self._at + 1]
                fields.add("" if escaped == "\n" else escaped)
                self._at += 2
            elif mark in "$`":
                self._expansion(fields, quoted=True, bare=False)
            else:
                fields.add(mark)
                self._at += 1

    def _expansion(self, fields: Fields, *, quoted: bool, bare: bool) -> None:
        """The expansion of a dollar sign or backquote. `quoted`: as one word; `bare`: outside double quotes."""
        if self._text[self._at] == "`":
            self._until("`", self._at + 1)
            fields.add(UNKNOWN)
            return
        self._at += 1
        following = self._text[self._at : self._at + 1]
        if following == "(":
            self._bracketed("(", ")")
            fields.add(UNKNOWN)
        elif following == "{":
            self._parameter(self._bracketed("{", "}"), fields, quoted=quoted)
        elif following == "'" and bare:
            fields.add(self._ansi())
        elif following == '"' and bare:
            return
        elif match := re.compile(r"[A-Za-z_]\w*|[0-9@*]").match(self._text, self._at):
            self._at = match.end()
            self._parameter(match[0], fields, quoted=quoted)
        elif following and following in "#?$!-":
            self._at += 1
            fields.add(UNKNOWN)
        else:
            fields.add("$")

    def _bracketed(self, opening: str, closing: str) -> str:
        """The text in brackets, which may contain brackets and quotes; skips them."""
        start, level = self._at + 1, 0
        while self._at < len(self._text):
            mark = self._text[self._at]
            if mark == "\\":
                self._at += 1
            elif mark == "'":
                self._until("'", self._at + 1)
                continue
            elif mark == opening:
                level += 1
            elif mark == closing:
                level -= 1
                if level == 0:
                    self._at += 1
                    return self._text[start : self._at - 1]
            self._at += 1
        raise ShellError(f"{opening} does not end")

    def _parameter(self, inside: str, fields: Fields, *, quoted: bool) -> None:
        match = _PARAMETER.fullmatch(inside)
        if match is None:
            fields.add(UNKNOWN)
            return
        value = self._variables.get(match[1])
        rest = match[3]
        if rest and not (isinstance(value, list) and inside.endswith(f'+"${{{match[1]}[@]}}"')):
            value = self._otherwise(value, rest)
        if value is None:
            value = UNKNOWN
        if isinstance(value, list):
            whole = match[1] in ("@", "*") or bool(match[2])
            values = value if whole else value[:1]
            fields.list(values, quoted=quoted and "*" not in inside)
        elif quoted:
            fields.add(value)
        elif self._splits_otherwise(value):
            fields.add(UNKNOWN)
        else:
            fields.split(value)

    def _splits_otherwise(self, value: str) -> bool:
        """Whether the script's IFS may split a text differently."""
        marks = self._variables.values.get("IFS")
        return marks is not None and any(mark in value for mark in {*" \t\n", *joined(marks)})

    def _otherwise(self, value: str | list[str] | None, rest: str) -> str | list[str]:
        """`${NAME:-default}` and the like; other operations make the value unknown."""
        match = _DEFAULT.fullmatch(rest)
        if match is None or (value is None and self._variables.opened) or UNKNOWN in joined(value):
            return UNKNOWN
        there = bool(value) if match[1] else value is not None
        if match[2] == "+":
            return self._text_of(match[3]) if there else ""
        if there and value is not None:
            return value
        return UNKNOWN if match[2] == "?" else self._text_of(match[3])

    def _text_of(self, text: str) -> str:
        """A default's own text, expanded."""
        inner = WordReader(text, self._variables)
        fields = Fields()
        while inner._at < len(text):
            fields.add("".join(inner._word(split=False).done))
            if inner._at < len(text):
                fields.add(text[inner._at])
                inner._at += 1
        fields.end()
        return "".join(fields.done)
