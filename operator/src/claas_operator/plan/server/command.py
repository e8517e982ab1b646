"""The arguments that a container passes to vLLM, as Kubernetes and a shell interpret its command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from posixpath import basename

from claas_kube.objects.pods import Container
from claas_operator.plan.server.environment import Environment, expanded
from claas_operator.plan.server.shell_script import run
from claas_operator.plan.server.shell_words import UNKNOWN, ShellError, Variables

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_OTHER_USERS = frozenset({"su", "runuser"})
"""Programs that take `-c SCRIPT` besides a user's name."""
_SAYING = frozenset({"echo", "printf", "[", "[[", "test", "cat", "grep", "which", "pgrep", "pkill", "true", ":"})
"""Programs that take a command as arguments but do not run it."""
_SCRIPT_OPTION = re.compile(r"-[A-Za-z]*c[A-Za-z]*")
_SERVER_MODULE = re.compile(r"vllm\.entrypoints\.\S*|\S*/api_server\.py")
_SWITCH = re.compile(r"--(no|enable|disable|trust|enforce|allow|use|return)[-_].*")
"""Options that take no value, judged by their names."""
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_DEEPEST = 6


@dataclass(frozen=True)
class Invocation:
    """One start of vLLM: its arguments and environment. `whole`: these are all its arguments. `seen`: the command
    itself is vLLM's; otherwise an image's entry point or an unknown program passes them on.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    whole: bool
    seen: bool
    certain: bool = True

    def options(self) -> Iterator[tuple[str, str | None]]:
        """Each option in vLLM's spelling (dashes for underscores), and the argument that may be its value."""
        for index, word in enumerate(self.words):
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                following = self.words[index + 1] if index + 1 < len(self.words) else None
                yield name.replace("_", "-"), value if equals else following

    def switched_on(self, flag: str) -> bool | None:
        """Whether a flag without a value is set; the last one counts, including `--no-...`. None: unknown."""
        off = f"--no-{flag.removeprefix('--')}"
        given = [name for name, _ in self.options() if name in (flag, off)]
        return given[-1] == flag if given else False if self.whole else None

    def value_of(self, option: str) -> str | None:
        """The value of an option; the last one counts. None: not set, or unknown."""
        found = [value for name, value in self.options() if name == option]
        return found[-1] if found and found[-1] is not None and UNKNOWN not in found[-1] else None

    def values_of(self, option: str) -> tuple[str, ...]:
        """The values of an option that takes several, up to the next option."""
        found: tuple[str, ...] = ()
        for index, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") == option:
                rest = self.words[index + 1 :]
                end = next((at for at, each in enumerate(rest) if each.startswith("-")), len(rest))
                found = (value,) if equals else rest[:end]
        return found


def invocations(container: Container, environment: Environment) -> tuple[Invocation, ...]:
    """How the container starts vLLM; several if that depends on unknown values. Empty: unknown."""
    words = [expanded(word, environment) for word in (*container.command, *container.args)]
    if not words:
        return ()
    if not container.command and _SCRIPT_OPTION.fullmatch(words[0]) and len(words) > 1:
        words = ["sh", *words]  # An image whose entry point is a shell.
    elif not container.command and re.search(r"\bvllm\b.*\s", words[0], re.DOTALL):
        words = ["sh", "-c", *words]
    if not container.command and _script(words) is None and _server_start(words) is None:
        # The image's entry point gets them; assume that it is vLLM's.
        return (_invocation(words, environment.values, seen=False, whole=True),)
    started = list(_started(words, environment, environment.values, 0))
    certain = [each for each in started if each.certain and each.seen]
    if certain:
        return tuple(certain[:1])
    return tuple(started) or (_invocation(words, environment.values, seen=False, whole=False),)


def _started(
    words: list[str], environment: Environment, variables: Mapping[str, str], depth: int, certain: bool = True
) -> Iterator[Invocation]:
    """The starts of vLLM by one command."""
    given = {**variables, **dict(_leading_variables(words))}
    if not words or basename(words[0]) in _SAYING or depth > _DEEPEST:
        return
    inner = _script(words)
    if inner is not None:
        script, *parameters = inner
        zero = parameters[0] if parameters else UNKNOWN
        known = Variables(dict(given), set(given), parameters[1:], zero, opened=environment.opened)
        try:
            commands = run(script, known)
        except ShellError:
            return
        for command in commands:
            yield from _started(
                list(command.words), environment, command.environment, depth + 1, certain and command.certain
            )
        return
    start = _server_start(words)
    if start is not None:
        yield _invocation(words[start:], given, seen=True, whole=True, certain=certain)
    elif any(word.startswith("--") for word in words):
        # An unknown program, whose arguments may be for vLLM.
        yield _invocation(words, given, seen=False, whole=False, certain=certain)


def _invocation(
    words: list[str], environment: Mapping[str, str], *, seen: bool, whole: bool, certain: bool = True
) -> Invocation:
    hides = any(_may_hide(words, index) for index in range(len(words)))
    from_file = any(word.partition("=")[0] == "--config" for word in words)
    return Invocation(tuple(words), environment, whole and not hides and not from_file, seen, certain)


def _may_hide(words: list[str], index: int) -> bool:
    """Whether an unknown argument may be an option: not in the place of a value or of the model's name."""
    if not words[index].startswith((UNKNOWN, f"--{UNKNOWN}")):
        return False
    if index == 0:
        return not (len(words) > 1 and words[1].startswith("--"))
    before = words[index - 1]
    return not before.startswith("--") or "=" in before or _SWITCH.fullmatch(before) is not None


def _leading_variables(words: list[str]) -> Iterator[tuple[str, str]]:
    """Variables set by `env NAME=value ...`."""
    for word in words:
        match = _VARIABLE.fullmatch(word)
        if match:
            yield match[1], match[2]
        elif basename(word) != "env" and not word.startswith("-"):
            return


def _script(words: list[str]) -> list[str] | None:
    """The script passed to a shell in the command, and its parameters from `$0` on."""
    for start, word in enumerate(words):
        name = basename(word)
        if name not in _SHELLS and name not in _OTHER_USERS:
            continue
        for index in range(start + 1, len(words) - 1):
            if _SCRIPT_OPTION.fullmatch(words[index]):
                return words[index + 1 :]
            takes_value = words[index - 1] in ("-o", "+o", "-O")
            if not words[index].startswith(("-", "+")) and not takes_value and name in _SHELLS:
                return None
    return None


def _server_start(words: list[str]) -> int | None:
    """Index of vLLM's first argument: after `vllm serve`, or after its module."""
    for index, word in enumerate(words):
        if basename(word) == "vllm" and "serve" in words[index + 1 : index + 2]:
            return index + 2
        if _SERVER_MODULE.fullmatch(word):
            return index + 2 if words[index + 1 : index + 2] == ["serve"] else index + 1
    return None
