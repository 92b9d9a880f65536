"""Rules: tests on one activity, in a registry that other distributions extend. A rule looks at nothing but its activity.

A rule type is one class; its own distribution names it in the entry point group `waypost.rules`, and that is all:

    class ViewedProduct(Rule):
        name = "viewed_product"
        category = "Shop"
        sentence = "viewed a product with title {title}[ in language {language}]"
        types = frozenset({"productview"})
        title: Contains
        language: Equals | None = None
"""

import json
import re
from functools import cache
from hashlib import blake2b
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from .activity import FIELDS
from .text import OPERATORS, Contains, Equals, Operand, TextTest
from .wire import MAX_TYPE

GROUP = "waypost.rules"  # of entry points

__all__ = ["Contains", "Equals", "FieldTest", "Rule", "TextTest", "catalogue", "catalogue_data", "rule_key"]


class FieldTest(NamedTuple):
    """`field` of the activity, tested by `operator` (schemas.text.OPERATORS) with `operand`: a text, for `one_of` a tuple of texts."""

    field: str
    operator: str
    operand: Operand

    def passes(self, value: str | None) -> bool:
        return TextTest(self.operator, self.operand).passes(value)


class Rule(BaseModel):
    """A test on one activity: its type is one of `activity_types()`, it passes all `tests()`, and `accepts()` it.

    `name`: as journeys write it. `category`, `sentence`: for people; in the sentence, `{parameter}` stands for what it says and
    `[...]` for a part that goes when its parameter is not given. `types`: the activity types, in small letters; None = all.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: ClassVar[str]
    category: ClassVar[str] = "Other"
    sentence: ClassVar[str]
    types: ClassVar[frozenset[str] | None] = None

    def activity_types(self) -> frozenset[str] | None:
        """The types of the activities that can meet it, in small letters; None = all."""
        return self.types

    def tests(self) -> tuple[FieldTest, ...]:
        """What must hold of the activity's fields, all of it. As given: each text parameter tests the field of its name."""
        tests = []
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, TextTest):
                tests.append(FieldTest(field, value.operator, value.operand))
        return tuple(tests)

    def possible(self) -> list[FieldTest] | None:
        """Its tests without those of fields that activities do not have, which are missing always; None when one of these fails."""
        tests = self.tests()
        if any(test.field not in FIELDS and not OPERATORS[test.operator].negative for test in tests):
            return None
        return [test for test in tests if test.field in FIELDS]

    def accepts(self, activity: Any) -> bool:
        """What tests cannot say. *activity* passed the tests; its fields are those of `schemas.activity.Activity`, `at` in milliseconds.

        Must be pure: the same answer for the same activity, always, or a replay would contradict what was counted.
        """
        return True

    def describe(self) -> str:
        """The sentence, filled in."""

        def filled(part: str) -> str | None:
            names = re.findall(r"{(\w+)}", part)
            if any(getattr(self, name) is None for name in names):
                return None
            return re.sub(r"{(\w+)}", lambda m: _said(getattr(self, m[1])), part)

        parts = re.split(r"\[([^\]]*)\]", self.sentence)  # odd ones stood in brackets
        return "".join(filled(part) or "" for part in parts).strip()


def _said(value: object) -> str:
    return value.describe() if isinstance(value, TextTest) else f'"{value}"' if isinstance(value, str) else str(value)


def _given(parameter: str) -> JsonDict:
    """JSON Schema: *parameter* is there and not null."""
    return {"required": [parameter], "properties": {parameter: {"not": {"type": "null"}}}}


# -- built in (contract, section 2) -----------------------------------------------------------------------------------------


class VisitedPage(Rule):
    name = "visited_page"
    category = "Pages"
    sentence = "visited page {page}[ in channel {channel}]"
    types = frozenset({"pagevisit"})
    page: Equals
    channel: Equals | None = None


class VisitedUrl(Rule):
    name = "visited_url"
    category = "Pages"
    sentence = "visited a URL {url}[ in channel {channel}]"
    types = frozenset({"pagevisit"})
    url: Contains
    channel: Equals | None = None


class LandedOnPage(Rule):
    name = "landed_on_page"
    category = "Pages"
    sentence = "landed on a page[ {page}][ with a URL {url}]"
    types = frozenset({"landingpage"})
    model_config = ConfigDict(json_schema_extra={"anyOf": [_given("page"), _given("url")]})
    page: Equals | None = None
    url: Contains | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.page is None and self.url is None:
            raise ValueError("landed_on_page needs page or url; add one")
        return self


class SubmittedForm(Rule):
    name = "submitted_form"
    category = "Forms"
    sentence = "submitted form {form}"
    types = frozenset({"bizformsubmit"})
    form: Equals


class ClickedEmailLink(Rule):
    name = "clicked_email_link"
    category = "Email"
    sentence = "clicked a link {url}[ in email {email}]"
    types = frozenset({"emailclick"})
    url: Contains
    email: Equals | None = None


class PerformedActivity(Rule):
    name = "performed_activity"
    category = "Activities"
    sentence = "performed activity {activity}[ with a value {value}]"
    activity: Annotated[str, Field(min_length=1, max_length=MAX_TYPE)]
    value: Contains | None = None

    def activity_types(self) -> frozenset[str]:
        return frozenset({self.activity.lower()})


class BecameMember(Rule):
    name = "became_member"
    category = "Membership"
    sentence = "became a member"
    types = frozenset({"memberregistration"})


BUILT_IN: tuple[type[Rule], ...] = (
    VisitedPage,
    VisitedUrl,
    LandedOnPage,
    SubmittedForm,
    ClickedEmailLink,
    PerformedActivity,
    BecameMember,
)


# -- the registry -----------------------------------------------------------------------------------------------------------


class BadRuleType(Exception):
    """A distribution offers a rule type that cannot be used; says which and why."""


@cache
def catalogue() -> dict[str, type[Rule]]:
    """All rule types by name: the built-in ones, then those of other distributions. Raises `BadRuleType`."""
    types: dict[str, type[Rule]] = {rule.name: rule for rule in BUILT_IN}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        whose = f"entry point {entry.name} = {entry.value}" + (f" of {entry.dist.name}" if entry.dist else "")
        try:
            rule = entry.load()
        except Exception as error:
            raise BadRuleType(f"{whose} cannot be loaded: {error!r}") from error
        check(rule, whose)
        if types.setdefault(rule.name, rule) is not rule:
            raise BadRuleType(f"{whose}: the name {rule.name} is taken already; choose another")
    return types


def check(rule: Any, whose: str) -> None:
    """Raises `BadRuleType` unless *rule* is a class that can stand in the catalogue."""
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise BadRuleType(f"{whose} is not a subclass of schemas.rules.Rule")
    for attribute in ("name", "category", "sentence"):
        if not isinstance(getattr(rule, attribute, None), str):
            raise BadRuleType(f"{whose} has no {attribute}; add a class attribute of that name")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", rule.name):
        raise BadRuleType(f"{whose}: the name {rule.name!r} is not of small letters, digits and _")
    if "rule" in rule.model_fields:
        raise BadRuleType(f"{whose}: a parameter cannot be called rule, which is where journeys write the rule's name")
    if rule.types is not None and any(t != t.lower() for t in rule.types):
        raise BadRuleType(f"{whose}: types must be in small letters")
    unknown = set(re.findall(r"{(\w+)}", rule.sentence)) - set(rule.model_fields)
    if unknown:
        raise BadRuleType(f"{whose}: the sentence names {', '.join(sorted(unknown))}, which is no parameter")
    if rule.tests is Rule.tests:
        odd = [n for n, f in rule.model_fields.items() if "TextTest" in str(f.annotation) and n not in FIELDS]
        if odd:
            raise BadRuleType(f"{whose}: {', '.join(odd)} is no field of an activity; override tests()")


def catalogue_data() -> list[dict[str, Any]]:
    """The catalogue for the builder, the API and the docs: name, category, sentence, parameters (a JSON Schema)."""
    return [
        {
            "name": rule.name,
            "category": rule.category,
            "sentence": rule.sentence,
            "parameters": {k: v for k, v in rule.model_json_schema().items() if k not in ("title", "description")},
        }
        for rule in catalogue().values()
    ]


def parameters(rule: Rule) -> dict[str, Any]:
    """The parameters given to *rule*, as a journey file spells them, bare strings as `{operator: value}`."""
    return {name: value for name, value in rule.model_dump(mode="json").items() if value is not None}


def rule_key(rule: Rule) -> bytes:
    """8 bytes that are the same for rules that test the same, however they are spelled; evidence is kept under it."""
    canonical: dict[str, Any] = {"rule": rule.name, **parameters(rule)}
    for name in type(rule).model_fields:
        value = getattr(rule, name)
        if isinstance(value, TextTest):
            canonical[name] = value.canonical()
    if isinstance(rule, PerformedActivity):
        canonical["activity"] = rule.activity.lower()
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).digest()
