"""The configuration of a run: the user's parameters, completed by a recipe, and the config.json from which the run can be repeated.

The forms of Prefect and the options of the command are derived from the settings classes of the core; nothing is defined a second time.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Unit, doc
from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import Doc

from pul_core.errors import UserError
from pul_core.recipes import RECIPES, RecipeName
from pul_core.settings import Data, FewLabels, Machine, ReadIf, Recipe

S = TypeVar("S")
AUTO = "auto"  # the recipe that depends on the target: see `pul_core.recipes.choose_recipe`
RESOLVED = "resolved"  # key of config.json: the compute resources, one entry per start that differs from the one before


class Section(BaseModel):
    """Named parameters; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", title=None)


class Overrides(Section, Generic[S]):
    """``Overrides[S]`` is the form of a settings class S: a Pydantic model with the settings of S, each of which may be left empty.

    For a type checker this is an ordinary generic class. At run time ``Overrides[S]`` is a model that `_form` creates from the fields of S,
    with their types, bounds and descriptions, and that is named S in the JSON schema.
    """

    def __class_getitem__(cls, settings: Any) -> Any:
        return _form(settings)


@functools.cache
def _form(settings: Any) -> Any:
    hints = get_type_hints(settings, include_extras=True)
    inputs: Any = {setting.name: _form_field(hints[setting.name]) for setting in fields(settings)}
    return create_model(settings.__name__, __base__=Section, __doc__=settings.__doc__, **inputs)


def _form_field(hint: Any) -> tuple[Any, Any]:
    """Return type and default of an input of a form: a form for a settings class, else an optional value with its bounds."""
    if is_dataclass(hint):
        form = _form(hint)  # type: ignore[arg-type]
        return form, form()
    value, *marks = get_args(hint)
    bounds = [mark for mark in marks if not isinstance(mark, Doc | Unit | ReadIf)]
    bounded = Annotated[(value, *bounds)] if bounds else value
    return bounded | None, Field(None, description=describe(hint))


def describe(hint: Any) -> str:
    """Return a setting's description with its unit and the condition under which it is read.

    Args:
        hint: the setting's annotated type.

    Example:
        >>> from pul_core.settings import Clustering
        >>> hints = get_type_hints(Clustering, include_extras=True)
        >>> describe(hints["shrinkage"]).partition(". ")[2]
        'Read with whitening.'
    """
    description = "".join(mark.documentation for mark in hint.__metadata__ if isinstance(mark, Doc))
    for mark in hint.__metadata__:
        if isinstance(mark, Unit):
            description += f" Unit: {mark.unit}."
        if isinstance(mark, ReadIf):
            description += f" Read with {mark.name}{' ' if mark.values else ''}{' or '.join(map(str, mark.values))}."
    return description


@dataclass(frozen=True, kw_only=True)
class Plan(Recipe):
    """Everything a run does: a recipe with the user's changes, the data and the machine."""

    recipe: Annotated[
        RecipeName,
        doc("Values for all that is left empty. In flow pul, auto is modern where that can be used, and paper otherwise (docs/method.md)."),
    ] = "paper"
    source: Annotated[
        tuple[str, ...],
        doc("The labelled images: the folder of a published set, a manifest, or synthetic:SEED/source; several are joined."),
    ] = ()
    target: Annotated[
        str, doc("The unlabelled images: a folder (crops at any depth, or a published set), a manifest, or synthetic:SEED/target.")
    ] = ""
    original_model: Annotated[str | None, doc("Instead of a source: the file of a trained model, or an earlier run.")] = None
    seed: Annotated[int, Ge(0), doc("All random numbers of the run are derived from it.")] = 0
    source_data: Data = Data()
    target_data: Data = Data()
    few_labels: FewLabels = FewLabels()
    machine: Machine = Machine()


def resolve_plan(parameters: Mapping[str, Any], auto: RecipeName = "paper") -> Plan:
    """Complete the requested parameters with the values of their recipe.

    Args:
        parameters: parameters of flow `pul` by name; sections are forms or plain dicts. What is missing or None has the recipe's value.
        auto: the recipe that auto stands for, which depends on the target: see `tasks.preflight.recipe_for`.

    Raises:
        UserError: a recipe or a parameter does not exist, or two settings contradict each other.
        pydantic.ValidationError: a value is out of bounds, or a setting does not exist.

    Example:
        >>> plan = resolve_plan({"target": "crops", "selection": {"min_similarity": 0.7}})
        >>> plan.selection.min_similarity, plan.selection.close_to, plan.model.height
        (0.7, 'own_centre', 256)
    """
    values = {name: value for name, value in parameters.items() if value is not None and name != RESOLVED}
    recipe, names = values.get("recipe", AUTO), sorted(field.name for field in fields(Plan))
    if recipe == AUTO:
        recipe = values["recipe"] = auto
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe {recipe!r}: choose {', '.join((AUTO, *RECIPES))}")
    if unknown := sorted(set(values) - set(names)):
        raise UserError(unknown_parameter(unknown[0]))
    if isinstance(values.get("source"), str):
        values["source"] = [values["source"]]
    return override(Plan(**vars(RECIPES[recipe])), Overrides[Plan].model_validate(values))


def requested(parameters: Mapping[str, Any], section: str) -> Any:
    """Return the form of a section of the parameters, with None for each setting that was not requested."""
    form = Overrides[Plan].model_validate({section: parameters[section]} if parameters.get(section) is not None else {})
    return getattr(form, section)


def override(settings: S, form: BaseModel) -> S:
    """Return settings with the values that a form fills in."""
    changes = {
        name: override(getattr(settings, name), value) if isinstance(value, Section) else value for name, value in form if value is not None
    }
    return replace(settings, **changes)  # type: ignore[type-var]


def parameters_of(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values: parameters of flow `pul` that repeat it."""
    return asdict(plan) | {"source": list(plan.source)}


def read_config(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a config.json.

    Returns:
        The parameters, and the compute resources: one record per start of the run that differs from the one before.

    Raises:
        UserError: the file is missing, or is not a config.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give a JSON file of parameters") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): give a JSON file of parameters") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} must contain a JSON object of parameters, got a {type(config).__name__}")
    return config, config.pop(RESOLVED, [])


def parameter_names() -> list[str]:
    """Return the dotted names of all parameters, e.g. ``fine_tuning.optimisation.momentum``."""
    return list(flatten(Overrides[Plan]().model_dump()))


def unknown_parameter(name: str) -> str:
    """Return the message for a parameter that does not exist, with the names that a user can mean by it.

    Example:
        >>> unknown_parameter("fine_tuning.epoch")
        "there is no parameter 'fine_tuning.epoch': did you mean fine_tuning.epochs? (docs/parameters.md)"
        >>> unknown_parameter("epoch")
        "there is no parameter 'epoch': did you mean pretraining.epochs or fine_tuning.epochs? (docs/parameters.md)"
    """
    names, sections = parameter_names(), [field.name for field in fields(Plan)]
    if "." in name:
        of_section = [known for known in names if known.rpartition(".")[0] == name.rpartition(".")[0]]
        similar = get_close_matches(name, names, cutoff=0.8) or of_section or get_close_matches(name, names, cutoff=0.4)
    elif name in sections:
        similar = [known for known in names if known.startswith(f"{name}.")][:3]
    else:
        ends = get_close_matches(name, {known.rpartition(".")[2] for known in names}, 1)
        similar = get_close_matches(name, sections, 1) or [known for known in names if known.rpartition(".")[2] in ends]
    advice = f"did you mean {' or '.join(similar)}? (docs/parameters.md)" if similar else "docs/parameters.md lists them all"
    return f"there is no parameter {name!r}: {advice}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested parameters by their dotted names.

    Example:
        >>> flatten({"seed": 0, "stopping": {"max_iterations": 4}})
        {'seed': 0, 'stopping.max_iterations': 4}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def set_parameter(parameters: dict[str, Any], name: str, value: Any) -> None:
    """Set a parameter by its dotted name in nested parameters, in place."""
    *sections, last = name.split(".")
    for section in sections:
        if not isinstance(parameters.get(section), dict):
            parameters[section] = {}
        parameters = parameters[section]
    parameters[last] = value
