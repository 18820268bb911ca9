"""Rules as JSON, so that the configuration of a run can be stored beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from gradprune_jax._checks import as_number, is_traced
from gradprune_jax._rules.rule import Rule, ScheduleOrRules, as_rules
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._scores import Fisher, Movement, Random, Saliency, Score
from gradprune_jax._structures import (
    NM,
    Block,
    Channel,
    CoupledChannels,
    Structure,
    Unstructured,
)

_SCORES: dict[str, type[Score]] = {
    score.__name__: score for score in (Random, Saliency, Fisher, Movement)
}
_STRUCTURES: dict[str, type] = {
    structure.__name__: structure for structure in (Unstructured, NM, Block, Channel)
}
# A schedule is written by its numbers; a function of the step cannot be.
_SCHEDULE_FIELDS = [
    field.name for field in dataclasses.fields(SparsitySchedule) if field.name != "fn"
]
_RULE_FIELDS = [field.name for field in dataclasses.fields(Rule)]


def rules_to_json(schedule_or_rules: ScheduleOrRules) -> str:
    """Writes rules as JSON.

    Args:
      schedule_or_rules: a schedule, a rule, or a list of rules.

    Returns:
      A JSON object with a list of the rules, for `rules_from_json`.

    Raises:
      ValueError: if a rule has what no file can hold: a callable (`where`,
        `custom_schedule`), or a tracer.

    Examples:
      >>> from gradprune_jax import polynomial_schedule
      >>> rules = [Rule(None, where="head/.*"), Rule(polynomial_schedule(0.9, 0, 100))]
      >>> rules_from_json(rules_to_json(rules)) == rules
      True
    """
    rules = as_rules(schedule_or_rules)
    written = [_write_rule(position, rule) for position, rule in enumerate(rules)]
    return json.dumps({"rules": written}, indent=2)


def rules_from_json(text: str | bytes) -> list[Rule]:
    """Reads rules that `rules_to_json` wrote.

    Args:
      text: the JSON.

    Returns:
      Rules equal to those that were written.

    Raises:
      ValueError: if the text is no JSON, has fields that rules do not have, or a field
        has a value that is not valid; the error names the rule and the field.

    Examples:
      >>> text = '{"rules": [{"schedule": null, "where": "head/.*"}]}'
      >>> rules_from_json(text)[0].where
      'head/.*'
    """
    try:
        return _read_rules(text)
    except RecursionError:
        raise ValueError("the rules are nested too deeply.") from None


def _read_rules(text: str | bytes) -> list[Rule]:
    if not isinstance(text, str | bytes):
        raise ValueError(
            f"the rules are {text!r}; they must be JSON text, as rules_to_json writes."
        )
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the rules are no JSON text: {error}.") from None
    except UnicodeDecodeError:
        raise ValueError("the rules are no JSON text: not UTF-8.") from None
    except ValueError:  # the only other one is that of int
        raise ValueError(
            "a number in the rules has more digits than Python reads."
        ) from None
    fields = _object("the document", document, ["rules"], required=["rules"])
    if not isinstance(fields["rules"], list):
        raise ValueError(f"rules is {fields['rules']!r}; it must be a list.")
    return [_read_rule(*pair) for pair in enumerate(fields["rules"])]


def _write_rule(position: int, rule: Rule) -> dict[str, Any]:
    """A rule as what JSON can hold."""
    where = rule.where
    if callable(where):
        raise ValueError(
            f"where of rule {position} is a callable ({rule}), which JSON cannot hold; "
            "use a regular expression, or None for is_weight."
        )
    return {
        "schedule": _write_schedule(position, rule.schedule),
        "where": where,
        "structure": _write_structure(position, rule.structure),
        "allocation": rule.allocation,
        "stack_axis": None if rule.stack_axis is None else int(rule.stack_axis),
        "min_density": _write_number(position, "min_density", rule.min_density),
        "min_per_channel": _write_number(
            position, "min_per_channel", rule.min_per_channel
        ),
        "score": _write_score(position, rule.score),
        "output_axis": None if rule.output_axis is None else int(rule.output_axis),
    }


def _write_schedule(
    position: int, schedule: SparsitySchedule | None
) -> dict[str, Any] | None:
    if schedule is None:
        return None
    if schedule.fn is not None:
        raise ValueError(
            f"the schedule of rule {position} is a custom_schedule, whose function "
            "JSON cannot hold; use polynomial_schedule or one_shot_schedule."
        )
    return {
        name: _write_number(position, name, getattr(schedule, name))
        for name in _SCHEDULE_FIELDS
    }


def _write_structure(
    position: int, structure: Structure | None
) -> dict[str, Any] | None:
    if structure is None:
        return None
    if isinstance(structure, CoupledChannels):
        raise ValueError(
            f"the structure of rule {position} is CoupledChannels, whose groups come "
            "from a function, which JSON cannot hold; call channel_groups again where "
            "the rules are read."
        )
    return {"type": type(structure).__name__} | dataclasses.asdict(structure)


def _write_score(position: int, score: Any) -> dict[str, Any] | None:
    if score is None:
        return None
    if type(score).__name__ not in _SCORES:
        raise ValueError(
            f"the score of rule {position} is a callable, which JSON cannot hold; use "
            "one of the scores of this library."
        )
    return {"type": type(score).__name__} | dataclasses.asdict(score)


def _write_number(position: int, name: str, value: Any) -> int | float:
    if is_traced(value):
        raise ValueError(f"{name} of rule {position} is traced; JSON holds numbers.")
    number = value if isinstance(value, int) else as_number(value)
    if number is None:
        raise ValueError(f"{name} of rule {position} is {value!r}, which is no number.")
    return number


def _read_rule(position: int, written: Any) -> Rule:
    """A rule from what JSON holds."""
    fields = _object(f"rule {position}", written, _RULE_FIELDS, required=["schedule"])
    try:
        made = {
            "schedule": _read_schedule(fields["schedule"]),
            "structure": _read_typed("structure", _STRUCTURES, fields.get("structure")),
            "score": _read_typed("score", _SCORES, fields.get("score")),
        }
        return Rule(**{**fields, **made})
    except OverflowError:
        raise ValueError(f"rule {position}: a number in it is too large.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"rule {position}: {error}") from None


def _read_schedule(written: Any) -> SparsitySchedule | None:
    if written is None:
        return None
    fields = _object(
        "its schedule",
        written,
        _SCHEDULE_FIELDS,
        required=[name for name in _SCHEDULE_FIELDS if name != "power"],
    )
    return SparsitySchedule(**fields)


def _read_typed(what: str, types: dict[str, type], written: Any) -> Any:
    """A structure or a score from its type and fields."""
    if written is None:
        return None
    name = written.get("type") if isinstance(written, dict) else written
    if not isinstance(name, str) or name not in types:
        raise ValueError(
            f"the type of its {what} is {name!r}; it must be one of {sorted(types)}."
        )
    known = [field.name for field in dataclasses.fields(types[name])]
    fields = _object(f"its {what}", written, ["type", *known], required=["type"])
    return types[name](**{n: v for n, v in fields.items() if n != "type"})


def _object(
    what: str, written: Any, known: list[str], required: list[str]
) -> Mapping[str, Any]:
    """A JSON object with known fields alone, and all that are required."""
    if not isinstance(written, dict):
        raise ValueError(f"{what} is {written!r}; it must be a JSON object.")
    unknown = sorted(set(written) - set(known))
    missing = sorted(set(required) - set(written))
    if unknown or missing:
        problem = f"has unknown fields {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(f"{what} {problem}; it can have {sorted(known)}.")
    return written
