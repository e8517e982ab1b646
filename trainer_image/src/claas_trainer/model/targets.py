"""The layers that an adapter is on: resolves `targetModules` for a base model.

As in PEFT, a list has names or endings of dotted names, and a text is a regular expression that matches full names,
or `all-linear`. Unlike in PEFT, only linear layers of the language model are allowed: vLLM would refuse anything
else, or it would get no gradient from text, or it would not be a LoRA of two matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from claas_trainer.sdpo.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def target_layers(base: PreTrainedModel, wanted: Sequence[str] | str) -> dict[str, nn.Linear]:
    """The layers, by full name. An empty list and `all-linear` mean every linear layer between embeddings and head,
    except gates with one output.

    Raises:
        AdapterError: a wanted layer does not exist or is not such a layer; the message lists those that are.
    """
    modules = dict(base.named_modules())
    layers = _candidates(base, modules)
    if not layers:
        raise AdapterError(f"{type(base).__name__} has no linear layers that an adapter could be trained on")
    if not wanted or (isinstance(wanted, str) and wanted.lower() == ALL_LINEAR):
        return {name: layer for name, layer in layers.items() if layer.out_features > 1} or layers
    names = _by_pattern(base, wanted, modules, layers) if isinstance(wanted, str) else set()
    for ending in () if isinstance(wanted, str) else wanted:
        found = {name for name in layers if name == ending or name.endswith(f".{ending}")}
        if not found:
            raise AdapterError(f"{_why_not(base, ending, modules)}; {_what_there_is(layers)}")
        names |= found
    return {name: layer for name, layer in layers.items() if name in names}


def _candidates(base: PreTrainedModel, modules: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    inside = {id(module) for module in decoder.modules()}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and id(module) in inside and module is not head
    }


def _by_pattern(
    base: PreTrainedModel, pattern: str, modules: Mapping[str, nn.Module], layers: Mapping[str, nn.Linear]
) -> set[str]:
    try:
        matched = [name for name in modules if re.fullmatch(pattern, name)]
    except re.error as error:
        why = f"{pattern!r} is neither {ALL_LINEAR} nor a regular expression: {error}"
        raise AdapterError(f"{why}; {_what_there_is(layers)}") from error
    if not any(name in layers for name in matched):
        if matched:
            raise AdapterError(f"{_why_not(base, matched[0], modules)}; {_what_there_is(layers)}")
        raise AdapterError(
            f"the regular expression {pattern!r} matches no layer's whole name, such as {next(iter(layers))};"
            f" {_what_there_is(layers)}"
        )
    inside = {id(module) for module in base.get_decoder().modules()} | {id(base.get_output_embeddings())}
    for name in matched:
        # Layers of a vision tower with the same names are skipped, as they are for a list of names.
        if name not in layers and id(modules[name]) in inside:
            raise AdapterError(f"{_why_not(base, name, modules)}; {_what_there_is(layers)}")
    return {name for name in matched if name in layers}


def _why_not(base: PreTrainedModel, ending: str, modules: Mapping[str, nn.Module]) -> str:
    if ending.lower() == ALL_LINEAR:
        return f"{ALL_LINEAR} is not a name: write it as text, not in a list"
    found = [module for name, module in modules.items() if name == ending or name.endswith(f".{ending}")]
    if any(module is base.get_output_embeddings() for module in found):
        return f"{ending} is the head, which can't be trained: vLLM and the loss take the base model's"
    if any(isinstance(module, nn.Linear) for module in found):
        return f"{ending} is outside the language model, where text gives it no gradient"
    if found:
        return f"{ending} is no linear layer but {type(found[0]).__name__}, which can't be trained"
    if any(name.endswith(f".{ending}") for name, _ in base.named_parameters()):
        return f"{ending} is no linear layer here: the experts' weights are one tensor, which can't be trained"
    return f"the base model has no layer named {ending}"


def _what_there_is(layers: Iterable[str]) -> str:
    names = sorted({name.rpartition(".")[2] for name in layers})
    return f"there are {', '.join(names)}; leave targetModules out for all of them"


def short_names(modules: Iterable[str], targets: Iterable[str]) -> tuple[str, ...]:
    """The targets by the last parts of their names if these mean the same modules; by full name otherwise."""
    full = set(targets)
    short = {target.rpartition(".")[2] for target in full}
    meant = {name for name in modules if name.rpartition(".")[2] in short}
    return tuple(sorted(short if meant == full else full))
