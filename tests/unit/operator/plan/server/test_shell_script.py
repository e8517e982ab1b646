"""How a container starts vLLM is read as its shell reads it: scripts are held against the real one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_kube.objects.pods import Container
from claas_operator.plan.server.command import Invocation, invocations
from claas_operator.plan.server.environment import environment_of
from claas_operator.plan.server.shell_words import UNKNOWN

SLEEP = "--enable-sleep-mode"
VARIABLES = {"MODEL": "/models/m", "EXTRA": f"--enable-lora  {SLEEP}", "EMPTY": "", "ON": "1"}

SCRIPTS = {
    "continued lines without indent": "vllm serve /m \\\n--port 1 \\\n--enable-sleep-mode \\\n--x 2\n",
    "continued lines with indent": "exec vllm serve /m \\\n    --port 1 \\\n    --enable-sleep-mode",
    "a continuation within a word": "vllm serve /m --enable-\\\nsleep-mode",
    "a blank after the backslash ends the line": "vllm serve /m \\ \n--enable-sleep-mode || true",
    "a hash within a word": "vllm serve /m --api-key s3cr#t --enable-sleep-mode",
    "a comment": "vllm serve /m # --enable-sleep-mode",
    "a comment line between": "# vllm serve x --enable-sleep-mode\nvllm serve /m",
    "a comment ends a continued line": "vllm serve /m \\\n# --enable-sleep-mode\n--port 1 || true",
    "quotes of both kinds": "vllm serve '/m n' \"--enable-sleep-mode\" --x \"a 'b' c\" 'd \"e\" $MODEL'",
    "quotes within a word": "vllm serve /m --enable'-sleep'\"-mode\"",
    "JSON in quotes": 'vllm serve /m --hf-overrides \'{"a": {"b": 1}}\' --enable-sleep-mode',
    "eval of one word": 'eval "vllm serve /m --enable-sleep-mode"',
    "eval of several": "CMD='vllm serve /m'; eval $CMD --enable-sleep-mode",
    "eval of a built command": 'CMD="vllm serve $MODEL"; CMD="$CMD --enable-sleep-mode"; echo "+ $CMD"; eval "$CMD"',
    "variables of the environment": 'vllm serve "$MODEL" ${EXTRA} --x ${EMPTY}',
    "a quoted variable is one word": 'vllm serve $MODEL "$EXTRA"',
    "defaults": 'vllm serve ${MODEL:-/other} ${NONE:---enable-sleep-mode} --x "${EMPTY:-a b}" ${EMPTY-c}',
    "alternatives": "vllm serve /m ${ON:+--enable-sleep-mode} ${NONE:+--x}",
    "variables of the script": 'A=/m\nB=\'--enable-sleep-mode --x\'\nexport C="y z"\nvllm serve $A $B "$C"',
    "a list": 'args=(serve /m --port 1)\nargs+=(--enable-sleep-mode)\nexec vllm "${args[@]}"',
    "a list over lines": 'args=(\n  --port 1  # a port\n  --enable-sleep-mode\n)\nvllm serve /m "${args[@]}" --x',
    "an empty list": 'args=()\nvllm serve /m "${args[@]}" --x',
    "appended text": 'A="--x"\nA+=" --enable-sleep-mode"\nvllm serve /m $A',
    "positional parameters": 'set -- /m --enable-sleep-mode; vllm serve "$@" --x',
    "a pipe": "vllm serve /m --enable-sleep-mode 2>&1 | cat",
    "redirections": "vllm serve /m > /dev/stdout 2>/dev/null --enable-sleep-mode < /dev/null",
    "in the background": "vllm serve /m --enable-sleep-mode &\nwait",
    "after another command": "set -euo pipefail\ncd / && exec vllm serve /m --enable-sleep-mode",
    "said and not run": "echo vllm serve /x --enable-sleep-mode >&2; vllm serve /m",
    "in a function": "start() {\n  vllm serve /m --enable-sleep-mode\n}\nstart",
    "in a function with parameters": 'start() { vllm serve "$@"; }\nstart /m --enable-sleep-mode',
    "in a function that another one calls": (
        'run() {\n  echo "+ $*"\n  exec "$@"\n}\nfunction main {\n  local model=$1; shift\n'
        '  run vllm serve "$model" "$@"\n}\nmain /m --enable-sleep-mode'
    ),
    "after a function that sets a variable": "A=--x\nf() { A=--enable-sleep-mode; }\nf\nvllm serve /m $A",
    "beside a function that nobody calls": "f() { A=--x; exit 1; }\nA=--enable-sleep-mode\nvllm serve /m $A",
    "beside a function for a signal": (
        "bye() {\n  kill $PID\n  exit 0\n}\ntrap bye TERM\nvllm serve /m --enable-sleep-mode & PID=$!\nwait $PID"
    ),
    "after a function that returns": "f() { return 0; }; f; vllm serve /m --enable-sleep-mode",
    "after a subshell's variables": "A=--enable-sleep-mode; (A=; exit 0); vllm serve /m $A",
    "after a subshell within a case": "case x in x) (A=1; exit 0) ;; esac; vllm serve /m --enable-sleep-mode",
    "new parameters without dashes": "set -e -o pipefail /m --enable-sleep-mode; vllm serve $1 $2",
    "several parameters dropped": 'set -- a b /m --enable-sleep-mode; shift 2; vllm serve "$@"',
    "ANSI quotes with an escaped quote": "vllm serve /m --x $'it\\'s é' --enable-sleep-mode",
    "ANSI quotes in a variable": "A=$'--x\\n--enable-sleep-mode'; vllm serve /m $A",
    "in brackets": "(cd /; vllm serve /m --enable-sleep-mode)",
    "in a shell of its own": "bash -c 'vllm serve /m --enable-sleep-mode'",
    "by env": "env A=b vllm serve /m --enable-sleep-mode",
    "with variables before it": "A=b C='d e' vllm serve /m --enable-sleep-mode",
    "after a here-document": "cat > /dev/null <<EOF\nvllm serve /x --enable-sleep-mode\nEOF\nvllm serve /m",
    "a doubled backslash": 'vllm serve /m --x a\\\\b "c\\\\d\\$e" f\\ g',
    "carriage returns are not asked for": "vllm serve /m;",
    "ANSI quotes": "vllm serve /m --x $'a\\tb'",
    "nothing after the end": "vllm serve /m; exit 0; vllm serve /n --enable-sleep-mode",
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `vllm` that writes its words to a file and does nothing else."""
    folder = tmp_path_factory.mktemp("bin")
    vllm = folder / "vllm"
    vllm.write_text(f"#!/bin/sh\n{{ printf '%s\\0' \"$@\"; printf '\\1'; }} >> {folder}/out\n")
    vllm.chmod(0o755)
    return folder


def really(script: str, shell: Path, *positional: str) -> tuple[str, ...]:
    """What the first `vllm serve` of a script is given when bash runs it."""
    bash = shutil.which("bash")
    assert bash is not None
    out = shell / "out"
    out.unlink(missing_ok=True)
    environment = {**VARIABLES, "PATH": f"{shell}:{os.environ['PATH']}"}
    subprocess.run([bash, "-c", script, *positional], env=environment, capture_output=True, timeout=20, check=False)
    words = out.read_text().split("\1")[0].split("\0")[:-1]
    assert words[:1] == ["serve"]
    return tuple(words[1:])


def read(command: list[str], args: list[str] | None = None, **env: str) -> tuple[Invocation, ...]:
    container = Container.model_validate(
        {
            "name": "vllm",
            "command": command,
            "args": args or [],
            "env": [{"name": name, "value": value} for name, value in {**VARIABLES, **env}.items()],
        }
    )
    return invocations(container, environment_of(container))


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_gives_vllm_the_words_that_bash_gives_it(script: str, shell: Path) -> None:
    (found,) = read(["bash", "-c"], [script])
    assert found.words == really(script, shell)
    assert found.whole


@pytest.mark.parametrize(
    ("script", "given"),
    [
        ('exec vllm serve "$@" --x "$1" $4', ("name", "/m", SLEEP)),
        ('exec vllm "$0" "$@"', ("serve", "/m", SLEEP)),
        ('shift; vllm serve "$@"', ("name", "dropped", "/m", SLEEP)),
        ("vllm serve $*", ("name", "/m x", SLEEP)),
    ],
)
def test_a_shells_own_arguments_are_its_scripts_parameters(shell: Path, script: str, given: tuple[str, ...]) -> None:
    (found,) = read(["/bin/bash", "-ec", script, *given])
    assert found.words == really(script, shell, *given)


WORDS = st.text(st.sampled_from("ab-#'\"\\ $1{}=:;&|<>\n\t"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_words_that_are_quoted_for_a_shell_come_back_as_they_were(words: list[str]) -> None:
    (found,) = read(["sh", "-c"], [f"vllm serve {' '.join(map(shlex.quote, words))}".replace("$", "$$")])
    assert list(found.words) == words


@pytest.mark.parametrize(
    ("script", "sleep_mode"),
    [
        ("vllm serve /m $NOT_SET_HERE", None),
        ("vllm serve /m $NOT_SET_HERE --enable-sleep-mode", True),
        ('vllm serve "$NOT_SET_HERE" --port 1', False),
        ("vllm serve /m --port $NOT_SET_HERE", False),
        ("vllm serve /m --enable-lora $NOT_SET_HERE", None),
        ("vllm serve /m --port=$NOT_SET_HERE", False),
        ("vllm serve /m $(cat /etc/flags)", None),
        ("vllm serve /m `cat /etc/flags`", None),
        ('if [ "$ON" = 1 ]; then A=--enable-sleep-mode; fi; vllm serve /m $A', None),
        ('[ -n "$ON" ] && A=--enable-sleep-mode; vllm serve /m $A', None),
        ('if [ "$ON" = 1 ]; then set -- --enable-sleep-mode; fi; vllm serve /m "$@"', None),
        ("if test -e /x; then vllm serve /m --enable-sleep-mode; else vllm serve /m; fi", None),
        ("while true; do vllm serve /m --enable-sleep-mode; sleep 1; done", True),
        ('args=(--port 1); for a in $MORE; do args+=($a); done; vllm serve /m "${args[@]}"', None),
        ("A=--enable-sleep-mode; grep -q x /etc/x && A=; vllm serve /m $A", None),
        ("grep -q x /etc/x && exit 1; vllm serve /m --enable-sleep-mode", True),
        ("if $C; then eval A=--enable-sleep-mode; fi; vllm serve /m $A", None),
        ("f() { A=--enable-sleep-mode; }; $C && f; vllm serve /m $A", None),
        ("A=--enable-sleep-mode; if $C; then shift; fi; vllm serve /m $A", True),
        ("IFS=,; A=--port,1,--enable-sleep-mode; vllm serve /m $A", None),
        ("f() { vllm serve /m --enable-sleep-mode; }; $(echo f)", True),
        (". /etc/vllm.env; vllm serve /m ${FLAGS:-}", None),
        ("vllm serve /m ${FLAGS:-}", False),
        ("/app/start.sh", None),
        ("python /app/run.py --enable-sleep-mode", True),
        ("python -m vllm.entrypoints.openai.api_server --model /m --enable-sleep-mode", True),
        ("python3 -u -m vllm.entrypoints.cli.main serve /m", False),
        ("vllm serve /m 'not ended --enable-sleep-mode", None),
        ("timeout 9 nice -n 5 vllm serve /m --enable_sleep_mode", True),
    ],
)
def test_what_a_script_does_not_tell_is_not_known(script: str, sleep_mode: bool | None) -> None:
    found = {each.switched_on(SLEEP) for each in read(["sh", "-c"], [script])}
    assert found == {sleep_mode} or (sleep_mode is None and (found == {True, False} or not found))


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        (["vllm", "serve"], ["$(MODEL)", "$(EXTRA)"], ("/models/m", VARIABLES["EXTRA"])),
        (["vllm", "serve"], ["$$(MODEL)", "$(NOT_SET)"], ("$(MODEL)", "$(NOT_SET)")),
        (["sh", "-c", "vllm serve $(MODEL) $(EXTRA)"], [], ("/models/m", "--enable-lora", SLEEP)),
        (["tini", "--", "sh", "-lc"], ["vllm serve /m"], ("/m",)),
        ([], ["-c", f"vllm serve /m {SLEEP}"], ("/m", SLEEP)),
        ([], [f"vllm serve /m {SLEEP}"], ("/m", SLEEP)),
        ([], ["/m", SLEEP], ("/m", SLEEP)),
        (["vllm", "serve", "/m", "# not a comment", "it's"], [], ("/m", "# not a comment", "it's")),
    ],
)
def test_kubernetes_own_references_come_first_and_without_a_shell_words_stay_as_they_are(
    command: list[str], args: list[str], words: tuple[str, ...]
) -> None:
    (found,) = read(command, args)
    assert found.words == words


def test_a_variable_may_be_made_of_earlier_ones_and_one_from_elsewhere_is_not_known() -> None:
    container = Container.model_validate(
        {
            "name": "vllm",
            "command": ["vllm", "serve"],
            "args": ["/m", "$(ALL)", "$(SECRET)", "$(OTHER)"],
            "env": [
                {"name": "ONE", "value": "--enable"},
                {"name": "ALL", "value": "$(ONE)-sleep-mode"},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
            ],
            "envFrom": [{"configMapRef": {"name": "flags"}}],
        }
    )
    (found,) = invocations(container, environment_of(container))
    assert found.words == ("/m", SLEEP, UNKNOWN, UNKNOWN)
    assert found.switched_on("--enable-lora") is None
