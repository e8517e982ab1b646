"""Interprets a shell script as a POSIX shell (and, for common extensions, bash) would, to find the commands that it
runs.

Nothing is executed. Values that the text does not show, such as a command's output or an unknown variable, become the
character `UNKNOWN` in a word; commands under an `if`, in a loop or after `||` are not certain to run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from claas_operator.plan.server.shell_words import UNKNOWN, ShellError, Variables, WordReader, joined

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_DECLARING = frozenset({"export", "declare", "local", "readonly", "typeset"})
_OPENING = frozenset({"if", "while", "until", "for", "case", "select"})
_CLOSING = frozenset({"fi", "done", "esac"})
_FOLLOWING = frozenset({"then", "else", "elif", "do", "{", "}", "!", "time", "in"})
_TESTS = frozenset({"[", "[[", "test"})
_SUCCEEDING = frozenset(
    {".", ":", "cd", "echo", "export", "mkdir", "printf", "set", "shift", "source", "true", "unset"}
)
"""Commands that are assumed to succeed."""
_CASE, _OTHER = "case", "other"
_FUNCTION = re.compile(r"\s*\)\s*(?=[{(])")
_DEEPEST = 8
"""Largest nesting of scripts; deeper ones are not followed."""


@dataclass(frozen=True)
class Command:
    """One command that is run. `certain`: it runs unconditionally. `environment`: its variables."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    certain: bool


def run(script: str, variables: Variables, depth: int = 0) -> list[Command]:
    """The commands of a script in order, including those of `eval`. Raises ShellError if the script is incomplete."""
    return _Reader(script, variables, depth).commands()


class _Reader(WordReader):
    """Reads and interprets one script from its beginning to its end."""

    def __init__(self, script: str, variables: Variables, depth: int) -> None:
        super().__init__(script, variables)
        self._depth = depth
        self._conditions = 0
        self._guarded = False
        """Whether the next command depends on the outcome of the previous one."""
        self._here_documents: list[str] = []
        self._found: list[Command] = []
        self._doubtful = False
        """Whether the next command's changes happen only if the previous one succeeds."""
        self._brackets: list[Variables | str] = []
        """Open `(` and `case`; for a subshell with the variables outside."""
        self._left: int | None = None
        """Nesting depth of the subshell that an `exit` ended."""
        self._uncalled: dict[str, list[Command]] = {}
        self._ended = False
        self._exited = False

    def commands(self) -> list[Command]:
        self._read()
        for inside in self._uncalled.values():
            # Functions may be called in ways that the text does not show.
            self._found += [Command(each.words, each.environment, certain=False) for each in inside]
        return self._found

    def _read(self) -> None:
        while self._at < len(self._text) and not self._ended:
            self._command()

    # One command, up to the next separator.

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
        if separator == "(" and len(words) == 1 and not assigned and self._function(words[0]):
            return
        if self._left is None:
            self._finish(words, assigned)
        self._bracket(separator, begins=not (words or assigned))
        after_test = bool(words) and words[0] in _TESTS
        may_fail = bool(words) and words[0] not in _SUCCEEDING
        self._doubtful = separator == "&&" and (may_fail or self._doubtful)
        self._guarded = separator == "||" or (separator == "&&" and (after_test or self._guarded))

    def _keyword(self, word: str) -> bool:
        """Whether the word is a reserved word rather than the beginning of a command."""
        if word in ("for", "select"):
            self._conditions += 1
            self._skip_blanks()
            name = self._word().done
            if name:
                self._variables.values[name[0]] = UNKNOWN
            return True
        if word == "function":
            self._skip_blanks()
            function = "".join(self._word().done)
            self._skip_blanks()
            if not self._text.startswith("(", self._at):
                self._body(function)
            else:
                self._at += 1
                self._function(function)
            return True
        if word == _CASE:
            self._brackets.append(_CASE)
        elif word == "esac" and self._brackets[-1:] == [_CASE]:
            self._brackets.pop()
        if word in _OPENING:
            self._conditions += 1
        elif word in _CLOSING:
            self._conditions = max(0, self._conditions - 1)
        return word in _OPENING or word in _CLOSING or word in _FOLLOWING

    @property
    def _certain(self) -> bool:
        return self._conditions == 0 and not self._guarded

    @property
    def _sure(self) -> bool:
        """Whether a command's changes certainly happen."""
        return self._certain and not self._doubtful

    def _bracket(self, separator: str, *, begins: bool) -> None:
        """An opening or closing bracket; variables set in a subshell stay there."""
        if separator == "(":
            self._brackets.append(self._variables.copy() if begins else _OTHER)
        elif separator == ")" and self._brackets and self._brackets[-1] != _CASE:
            outside = self._brackets.pop()
            if isinstance(outside, Variables):
                self._variables = outside
            if self._left is not None and len(self._brackets) <= self._left:
                self._left = None

    def _function(self, name: str) -> bool:
        """Read `NAME() { ... }` after its first bracket; False if it is something else."""
        match = _FUNCTION.match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        self._body(name)
        return True

    def _body(self, name: str) -> None:
        """Read a function's body, which runs when it is called."""
        inside = _Body(self._text[self._at :], self._variables.copy(), self._depth + 1)
        inside._read()
        self._uncalled[name] = inside._found
        self._variables.functions[name] = inside._text[: inside._at]
        self._at += inside._at

    def _call(self, words: list[str]) -> None:
        variables = self._variables
        outside, variables.positional = variables.positional, words[1:]
        self._inside(variables.functions[words[0]])
        variables.positional = outside
        self._uncalled.pop(words[0], None)

    def _inside(self, script: str) -> None:
        """Run a text in the script's own shell."""
        inner = _Reader(script, self._variables, self._depth + 1)
        inner._conditions = 0 if self._sure else 1
        found = inner.commands()
        self._found += [Command(each.words, each.environment, each.certain and self._certain) for each in found]
        if inner._exited:
            self._end("exit")

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
                self._inside(" ".join(words[1:]))
            case "set":
                self._set(words[1:])
            case "shift":
                self._shift("".join(words[1:2]) or "1")
            case "unset":
                for name in words[1:]:
                    self._assign(name, "", False)
            case "source" | ".":
                self._variables.opened = True
            case "read" | "mapfile" | "readarray":
                for name in words[1:]:
                    self._variables.values[name] = UNKNOWN
            case "exit" | "return":
                self._end(words[0])
            case name if name in self._variables.functions and self._depth < _DEEPEST:
                for variable, value, appends in assigned:
                    self._assign(variable, value, appends)
                self._call(words)
            case _:
                given_here = {name: joined(value) for name, value, _ in assigned}
                environment = {**self._variables.environment(), **given_here}
                self._found.append(Command(tuple(words), environment, self._certain))

    def _set(self, words: list[str]) -> None:
        """`set`: options alone, or new positional parameters."""
        options = list(itertools.takewhile(lambda word: word.startswith(("-", "+")) and word != "--", words))
        rest = words[len(options) :]
        if rest[:1] != ["--"] and any(option.endswith("o") for option in options):
            del rest[:1]
        if rest:
            given = rest[1:] if rest[0] == "--" else rest
            self._variables.positional = given if self._sure else [*self._variables.positional, UNKNOWN]

    def _shift(self, count: str) -> None:
        before = self._variables.positional
        known = self._sure and count.isdecimal() and not any(UNKNOWN in each for each in before)
        self._variables.positional = before[int(count) :] if known else [UNKNOWN] if before else before

    def _end(self, word: str) -> None:
        """The end of the script, of a function, or of a subshell."""
        if not self._sure:
            return
        subshells = [place for place, each in enumerate(self._brackets) if isinstance(each, Variables)]
        if subshells:
            self._left = subshells[-1]
        else:
            self._ended, self._exited = True, word == "exit"

    def _assign(self, name: str, value: str | list[str], appends: bool) -> None:
        before = self._variables.values.get(name)
        if appends and (isinstance(before, list) or isinstance(value, list)):
            before_list = before if isinstance(before, list) else [before] if before else []
            value = [*before_list, *(value if isinstance(value, list) else [value])]
        elif appends:
            value = joined(before) + joined(value)
        if not self._sure:
            # It may have this value or the previous one.
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
        """Skip blanks, continued lines and comments; a comment begins only where a word may begin."""
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


class _Body(_Reader):
    """Reads a function's body to its end, without running it."""

    def __init__(self, text: str, variables: Variables, depth: int) -> None:
        super().__init__(text, variables, depth)
        self._level = 0

    def _keyword(self, word: str) -> bool:
        self._level += {"{": 1, "}": -1}.get(word, 0)
        return super()._keyword(word)

    def _command(self) -> None:
        super()._command()
        self._ended = not self._level and not self._brackets

    def _end(self, word: str) -> None:
        """Does nothing, because later commands belong to the body too."""
