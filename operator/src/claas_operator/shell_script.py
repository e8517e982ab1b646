"""A shell's script read as a POSIX shell (and, where scripts use it, bash) reads it: which commands it runs.

Nothing is run. What can't be known from the text, a command's output or a variable of somebody else, becomes the
character `UNKNOWN` in a word; what stands below an `if`, in a loop or after `||` is not certain to run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from claas_operator.shell_words import UNKNOWN, ShellError, Variables, WordReader, joined

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_DECLARING = frozenset({"export", "declare", "local", "readonly", "typeset"})
_OPENING = frozenset({"if", "while", "until", "for", "case", "select"})
_CLOSING = frozenset({"fi", "done", "esac"})
_FOLLOWING = frozenset({"then", "else", "elif", "do", "{", "}", "!", "time", "in"})
_TESTS = frozenset({"[", "[[", "test"})
_DEEPEST = 8
"""Scripts within scripts; deeper ones are not followed."""


@dataclass(frozen=True)
class Command:
    """One command as it is run. `certain`: no condition stands before it. `environment`: what it is given."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    certain: bool


def run(script: str, variables: Variables, depth: int = 0) -> list[Command]:
    """The commands of a script in order, `eval` followed. Raises ShellError when it is no whole script."""
    return _Reader(script, variables, depth).commands()


class _Reader(WordReader):
    """Reads and interprets one script from its beginning to its end."""

    def __init__(self, script: str, variables: Variables, depth: int) -> None:
        super().__init__(script, variables)
        self._depth = depth
        self._conditions = 0
        self._guarded = False
        """Whether the next command runs only by the outcome of the one before."""
        self._here_documents: list[str] = []
        self._found: list[Command] = []
        self._ended = False

    def commands(self) -> list[Command]:
        while self._at < len(self._text) and not self._ended:
            self._command()
        return self._found

    # One command, up to what separates it from the next.

    def _command(self) -> None:
        words: list[str] = []
        assigned: list[tuple[str, str | list[str], bool]] = []
        keywords = True
        separator = ""
        while True:
            self._skip_blanks()
            separator = self._separator()
            if separator or self._at >= len(self._text):
                break
            if self._redirection():
                continue
            match = _ASSIGNMENT.match(self._text, self._at)
            if match and (not words or words[0] in _DECLARING):
                assigned.append(self._assignment(match))
                continue
            fields = self._word()
            if keywords and fields.plain and len(fields.done) == 1 and not assigned:
                if self._keyword(fields.done[0]):
                    continue
                keywords = False
            words += fields.done
        self._finish(words, assigned)
        after_test = bool(words) and words[0] in _TESTS
        self._guarded = separator == "||" or (separator == "&&" and (after_test or self._guarded))

    def _keyword(self, word: str) -> bool:
        """Whether the word is the shell's own and not the beginning of a command."""
        if word in ("for", "select"):
            self._conditions += 1
            self._skip_blanks()
            name = self._word().done
            if name:
                self._variables.values[name[0]] = UNKNOWN
            return True
        if word in _OPENING:
            self._conditions += 1
        elif word in _CLOSING:
            self._conditions = max(0, self._conditions - 1)
        return word in _OPENING or word in _CLOSING or word in _FOLLOWING

    @property
    def _certain(self) -> bool:
        return self._conditions == 0 and not self._guarded

    def _finish(self, words: list[str], assigned: list[tuple[str, str | list[str], bool]]) -> None:
        declaring = bool(words) and words[0] in _DECLARING
        if not words or declaring:
            for name, value, appends in assigned:
                self._assign(name, value, appends)
                if declaring and words[0] == "export":
                    self._variables.exported.add(name)
            if declaring and words[0] == "export":
                self._variables.exported.update(words[1:])
            return
        match words[0]:
            case "eval" if self._depth < _DEEPEST:
                inner = run(" ".join(words[1:]), self._variables, self._depth + 1)
                self._found += [
                    Command(each.words, each.environment, each.certain and self._certain) for each in inner
                ]
            case "set" if "--" in words:
                given = words[words.index("--") + 1 :]
                self._variables.positional = given if self._certain else [*self._variables.positional, UNKNOWN]
            case "shift":
                del self._variables.positional[:1]
            case "unset":
                for name in words[1:]:
                    self._assign(name, "", False)
            case "source" | ".":
                self._variables.opened = True
            case "read" | "mapfile" | "readarray":
                for name in words[1:]:
                    self._variables.values[name] = UNKNOWN
            case "exit" | "return":
                self._ended = self._certain
            case _:
                given_here = {name: joined(value) for name, value, _ in assigned}
                environment = {**self._variables.environment(), **given_here}
                self._found.append(Command(tuple(words), environment, self._certain))

    def _assign(self, name: str, value: str | list[str], appends: bool) -> None:
        before = self._variables.values.get(name)
        if appends and (isinstance(before, list) or isinstance(value, list)):
            before_list = before if isinstance(before, list) else [before] if before else []
            value = [*before_list, *(value if isinstance(value, list) else [value])]
        elif appends:
            value = joined(before) + joined(value)
        if not self._certain:
            # It may have this value, or the one before.
            kept = before if isinstance(before, list) else []
            value = [*kept, UNKNOWN] if isinstance(value, list) else UNKNOWN
        self._variables.values[name] = value

    def _assignment(self, match: re.Match[str]) -> tuple[str, str | list[str], bool]:
        self._at = match.end()
        name, appends = match[1], bool(match[2])
        if not self._text.startswith("(", self._at):
            fields = self._word(split=False)
            return name, "".join(fields.done), appends
        self._at += 1
        values: list[str] = []
        while True:
            self._skip_blanks(newlines=True)
            if self._at >= len(self._text):
                raise ShellError("an array does not end")
            if self._text[self._at] == ")":
                self._at += 1
                return name, values, appends
            before = self._at
            values += self._word().done
            if self._at == before:
                raise ShellError("an array holds what is no word")

    # Between words.

    def _skip_blanks(self, *, newlines: bool = False) -> None:
        """Skip blanks, continued lines and comments; a comment begins where a word could."""
        while self._at < len(self._text):
            if self._text.startswith("\\\n", self._at):
                self._at += 2
            elif self._text[self._at] in (" \t\r\n" if newlines else " \t\r"):
                self._at += 1
            elif self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                return

    def _separator(self) -> str:
        for mark in ("&&", "||", "|&", "|", ";", "(", ")", "\n", "&"):
            if self._text.startswith(mark, self._at) and not self._text.startswith("&>", self._at):
                self._at += len(mark)
                if mark == "\n":
                    self._skip_here_documents()
                return mark
        return ""

    def _redirection(self) -> bool:
        match = re.compile(r"[0-9]*(&>>?|<<<|<<-?|[<>]&|>>|>\||<>|[<>])").match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        self._skip_blanks()
        target = "".join(self._word(split=False).done)
        if match[1] in ("<<", "<<-"):
            self._here_documents.append(target)
        return True

    def _skip_here_documents(self) -> None:
        for mark in self._here_documents:
            while self._at < len(self._text):
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line = self._text[self._at : end]
                self._at = min(len(self._text), end + 1)
                if line.lstrip("\t") == mark:
                    break
        self._here_documents.clear()
