"""Every mistake in a journey is told by a sentence that names the place and the way out."""

import json
import re

import jsonschema_rs
import pytest
import yaml

from console import api, cli_journeys
from console.options import Failed
from console.written import from_json, from_text
from schemas.errors import Refused
from schemas.journey import JourneyRefused, parse_journey
from schemas.journey_schema import document
from tests.support.example import EXAMPLE, GONE, MEMBER, deep, only, rules_, stages_, with_

IN_STAGE_3 = 'stage 3 "Clicked link in email"'
RULE = "stages[2].condition.any[1]"
SHAPE, BEYOND = True, False  # whether the JSON Schema of journeys refuses it too, or it takes the reader

# what is wrong, code, path, the whole sentence or its beginning
MISTAKES = [
    # -- the whole
    (SHAPE, None, "wrong_type", None, "journey: null is not an object; give one with id, name, scheduled_recalculation, stages"),
    (SHAPE, [EXAMPLE], "wrong_type", None, "journey: a list is not an object"),
    (SHAPE, "journey", "wrong_type", None, 'journey: "journey" is not an object'),
    (SHAPE, 7, "wrong_type", None, "journey: 7 is not an object"),
    (SHAPE, True, "wrong_type", None, "journey: true is not an object"),
    (SHAPE, with_("stage", []), "unknown_field", "stage", 'journey: unknown field "stage"; did you mean "stages"?'),
    (SHAPE, with_("owner", "me"), "unknown_field", "owner", 'journey: unknown field "owner"; the fields are id, name, scheduled_'),
    (SHAPE, with_("id", GONE), "missing_field", "id", "journey: id is missing; add it"),
    (SHAPE, with_("id", None), "wrong_type", "id", "journey: id: null is not a text; put it in quotes"),
    (SHAPE, with_("id", 7), "wrong_type", "id", "journey: id: 7 is not a text; put it in quotes"),
    (SHAPE, with_("id", ""), "empty_field", "id", "journey: id is empty; give 1 to 64 characters"),
    (SHAPE, with_("id", "x" * 65), "too_long", "id", "journey: id has 65 characters; give at most 64"),
    (SHAPE, with_("id", "Loan"), "bad_id", "id", 'journey: id "Loan" has other characters than a-z, 0-9 and -; choose another'),
    (SHAPE, with_("id", "a_b"), "bad_id", "id", 'journey: id "a_b"'),
    (SHAPE, with_("id", "a/b"), "bad_id", "id", 'journey: id "a/b"'),
    (SHAPE, with_("id", "é"), "bad_id", "id", 'journey: id "é"'),
    (SHAPE, with_("id", "a\n"), "bad_id", "id", 'journey: id "a\\n"'),
    (SHAPE, with_("name", GONE), "missing_field", "name", "journey: name is missing"),
    (SHAPE, with_("name", ["x"]), "wrong_type", "name", "journey: name: a list is not a text"),
    (SHAPE, with_("name", ""), "empty_field", "name", "journey: name is empty"),
    (SHAPE, with_("name", "x" * 201), "too_long", "name", "journey: name has 201 characters; give at most 200"),
    (BEYOND, with_("name", "\ud800"), "bad_text", "name", "journey: name is not valid Unicode"),
    (SHAPE, with_("scheduled_recalculation", "yes"), "wrong_type", "scheduled_recalculation", 'journey: scheduled_recalculation: "yes" is not true'),
    (SHAPE, with_("scheduled_recalculation", 1), "wrong_type", "scheduled_recalculation", "journey: scheduled_recalculation: 1 is not true"),
    (SHAPE, with_("scheduled_recalculation", None), "wrong_type", "scheduled_recalculation", "journey: scheduled_recalculation: null is not"),
    (SHAPE, with_("version", 0), "bad_version", "version", "journey: version: 0 is not a whole number from 1; leave it out"),
    (SHAPE, with_("version", True), "bad_version", "version", "journey: version: true"),
    (SHAPE, with_("version", "3"), "bad_version", "version", 'journey: version: "3"'),
    (BEYOND, with_("saved_at", "yesterday"), "bad_time", "saved_at", 'journey: saved_at: "yesterday" is not a time; write RFC 3339'),
    # -- stages
    (SHAPE, with_("stages", GONE), "missing_field", "stages", "journey: stages are missing; add 1 to 10"),
    (SHAPE, with_("stages", None), "wrong_type", "stages", "journey: stages: null is not a list"),
    (SHAPE, with_("stages", {"1": {}}), "wrong_type", "stages", "journey: stages: an object is not a list"),
    (SHAPE, with_("stages", []), "bad_stage_count", "stages", "journey: 0 stages; a journey has 1 to 10, add one"),
    (SHAPE, with_("stages", stages_(11)), "bad_stage_count", "stages", "journey: 11 stages; a journey has 1 to 10, remove some"),
    (SHAPE, with_("stages.1", None), "wrong_type", "stages[1]", "stage 2: null is not an object; give one with name, kpi, condition"),
    (SHAPE, with_("stages.1", "x"), "wrong_type", "stages[1]", 'stage 2: "x" is not an object'),
    (SHAPE, with_("stages.1", []), "wrong_type", "stages[1]", "stage 2: a list is not an object"),
    (SHAPE, with_("stages.2.conditions", {}), "unknown_field", "stages[2].conditions", f'{IN_STAGE_3}: unknown field "conditions"; did you'),
    (SHAPE, with_("stages.2.name", GONE), "missing_field", "stages[2].name", "stage 3: name is missing; add it"),
    (SHAPE, with_("stages.2.name", ""), "empty_field", "stages[2].name", "stage 3: name is empty"),
    (SHAPE, with_("stages.2.name", 3), "wrong_type", "stages[2].name", "stage 3: name: 3 is not a text"),
    (SHAPE, with_("stages.2.name", "x" * 201), "too_long", "stages[2].name", f'stage 3 "{"x" * 57}...": name has 201 characters'),
    (BEYOND, with_("stages.2.name", "Requested case study"), "duplicate_name", "stages[2].name",
     'stage 3 "Requested case study": stage 2 has the same name; give each stage its own'),
    (SHAPE, with_("stages.2.kpi", 0), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: 0 is not a whole number of contacts from 1"),
    (SHAPE, with_("stages.2.kpi", -5), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: -5"),
    (SHAPE, with_("stages.2.kpi", 1.5), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: 1.5"),
    (BEYOND, with_("stages.2.kpi", 100.0), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: 100.0"),
    (BEYOND, with_("stages.2.kpi", float("nan")), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: nan"),
    (SHAPE, with_("stages.2.kpi", "100"), "bad_kpi", "stages[2].kpi", f'{IN_STAGE_3}: kpi: "100"'),
    (SHAPE, with_("stages.2.kpi", True), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: true"),
    (SHAPE, with_("stages.2.kpi", 10**30), "bad_kpi", "stages[2].kpi", f"{IN_STAGE_3}: kpi: a number of more than 64 bits"),
    # -- conditions
    (SHAPE, with_("stages.2.condition", GONE), "missing_field", "stages[2].condition", f'{IN_STAGE_3}: condition is missing; add {{"any": [...]}}'),
    (SHAPE, with_("stages.2.condition", {}), "empty_condition", "stages[2].condition",
     f"{IN_STAGE_3}: condition is empty; add a rule or remove the stage"),
    (SHAPE, with_("stages.2.condition", {"any": []}), "empty_condition", "stages[2].condition",
     f"{IN_STAGE_3}: condition is empty; add a rule or remove the stage"),
    (SHAPE, with_("stages.2.condition", {"all": [{"any": []}]}), "empty_condition", "stages[2].condition.all[0]",
     f"{IN_STAGE_3}: inner condition is empty; add a rule or remove it"),
    (SHAPE, with_("stages.2.condition", {"all": [{}]}), "empty_condition", "stages[2].condition.all[0]", f"{IN_STAGE_3}: inner condition is empty"),
    (SHAPE, with_("stages.2.condition", None), "wrong_type", "stages[2].condition", f"{IN_STAGE_3}: condition: null is not an object; write"),
    (SHAPE, with_("stages.2.condition", [MEMBER]), "wrong_type", "stages[2].condition", f"{IN_STAGE_3}: condition: a list is not an object"),
    (SHAPE, with_("stages.2.condition", "any"), "wrong_type", "stages[2].condition", f'{IN_STAGE_3}: condition: "any" is not an object'),
    (SHAPE, with_("stages.2.condition", MEMBER), "bare_rule", "stages[2].condition",
     f'{IN_STAGE_3}: condition is a rule; write it inside {{"any": [...]}}'),
    (SHAPE, with_("stages.2.condition", {"any": [MEMBER], "all": [MEMBER]}), "any_and_all", "stages[2].condition",
     f"{IN_STAGE_3}: condition has both any and all; nest one in the other"),
    (SHAPE, with_("stages.2.condition", {"ANY": [MEMBER]}), "unknown_field", "stages[2].condition.ANY",
     f'{IN_STAGE_3}, condition: unknown field "ANY"; the fields are any, all'),
    (SHAPE, with_("stages.2.condition", {"any": [MEMBER], "not": []}), "unknown_field", "stages[2].condition.not",
     f'{IN_STAGE_3}, condition: unknown field "not"'),
    (SHAPE, with_("stages.2.condition", {"any": MEMBER}), "wrong_type", "stages[2].condition.any",
     f"{IN_STAGE_3}: condition: any is an object; give a list of rules and conditions"),
    (SHAPE, with_("stages.2.condition", {"any": None}), "wrong_type", "stages[2].condition.any", f"{IN_STAGE_3}: condition: any is null"),
    (SHAPE, with_("stages.2.condition", {"any": ["became_member"]}), "wrong_type", "stages[2].condition.any[0]",
     f'{IN_STAGE_3}: "became_member" is neither a rule nor a condition; write {{"rule": ...}}'),
    (SHAPE, with_("stages.2.condition", {"any": [None]}), "wrong_type", "stages[2].condition.any[0]", f"{IN_STAGE_3}: null is neither"),
    (SHAPE, with_("stages.2.condition", {"any": [{"page": "/x"}]}), "wrong_type", "stages[2].condition.any[0]",
     f'{IN_STAGE_3}: an object with "page" is neither a rule nor a condition'),
    (SHAPE, with_("stages.2.condition", deep(6)), "too_deep", "stages[2].condition.all[0].all[0].all[0].all[0].all[0]",
     f"{IN_STAGE_3}: conditions are nested more than 5 deep; flatten them"),
    (SHAPE, with_("stages.2.condition", {"any": rules_(51)}), "too_many_rules", "stages[2].condition.any[50]",
     f"{IN_STAGE_3}: more than 50 rules in one stage; use one_of or matches, or remove some"),
    (BEYOND, with_("stages.2.condition", {"any": [{"all": rules_(25)}, {"all": rules_(26)}]}), "too_many_rules",
     "stages[2].condition.any[1].all[25]", f"{IN_STAGE_3}: more than 50 rules"),
    # -- rules
    (SHAPE, only({"rule": "visited_pages", "page": "/x"}), "unknown_rule", f"{RULE}.rule",
     f'{IN_STAGE_3}: unknown rule "visited_pages"; did you mean "visited_page"?'),
    (SHAPE, only({"rule": "teleported"}), "unknown_rule", f"{RULE}.rule",
     f'{IN_STAGE_3}: unknown rule "teleported"; use one of visited_page, visited_url'),
    (SHAPE, only({"rule": None}), "unknown_rule", f"{RULE}.rule", f"{IN_STAGE_3}: unknown rule null"),
    (SHAPE, only({"rule": ["visited_page"]}), "unknown_rule", f"{RULE}.rule", f"{IN_STAGE_3}: unknown rule a list"),
    (SHAPE, only({"rule": "x" * 5000}), "unknown_rule", f"{RULE}.rule", f'{IN_STAGE_3}: unknown rule "xxx'),
    (SHAPE, only({"rule": "became_member", "any": [MEMBER]}), "rule_and_condition", RULE, f"{IN_STAGE_3}, became_member: a rule cannot have any"),
    (SHAPE, only({"rule": "became_member", "page": "/x"}), "unknown_field", f"{RULE}.page",
     f'{IN_STAGE_3}, became_member: unknown field "page"; there are none'),
    (SHAPE, only({"rule": "visited_page", "page": "/x", "chanel": "c"}), "unknown_field", f"{RULE}.chanel",
     f'{IN_STAGE_3}, visited_page: unknown field "chanel"; did you mean "channel"?'),
    (SHAPE, only({"rule": "visited_page"}), "missing_field", f"{RULE}.page", f"{IN_STAGE_3}, visited_page: page is missing; add it"),
    (SHAPE, only({"rule": "visited_url"}), "missing_field", f"{RULE}.url", f"{IN_STAGE_3}, visited_url: url is missing; add it"),
    (SHAPE, only({"rule": "submitted_form"}), "missing_field", f"{RULE}.form", f"{IN_STAGE_3}, submitted_form: form is missing"),
    (SHAPE, only({"rule": "clicked_email_link", "email": "e"}), "missing_field", f"{RULE}.url", f"{IN_STAGE_3}, clicked_email_link: url is missing"),
    (SHAPE, only({"rule": "performed_activity", "value": "v"}), "missing_field", f"{RULE}.activity",
     f"{IN_STAGE_3}, performed_activity: activity is missing"),
    (SHAPE, only({"rule": "performed_activity", "activity": ""}), "empty_field", f"{RULE}.activity",
     f"{IN_STAGE_3}, performed_activity: activity is empty; give at least one character"),
    (SHAPE, only({"rule": "performed_activity", "activity": "x" * 251}), "too_long", f"{RULE}.activity",
     f"{IN_STAGE_3}, performed_activity: activity has 251 characters; give at most 250"),
    (SHAPE, only({"rule": "performed_activity", "activity": 5}), "wrong_type", f"{RULE}.activity",
     f"{IN_STAGE_3}, performed_activity: activity: 5 is not a text"),
    (SHAPE, only({"rule": "performed_activity", "activity": {"contains": "x"}}), "wrong_type", f"{RULE}.activity",
     f"{IN_STAGE_3}, performed_activity: activity: an object is not a text"),
    (SHAPE, only({"rule": "landed_on_page"}), "bad_value", RULE, f"{IN_STAGE_3}, landed_on_page: landed_on_page needs page or url; add one"),
    (SHAPE, only({"rule": "landed_on_page", "page": None}), "bad_value", RULE, f"{IN_STAGE_3}, landed_on_page: landed_on_page needs page or url"),
    # -- texts
    (SHAPE, only({"rule": "visited_page", "page": None}), "bad_type", f"{RULE}.page",
     f'{IN_STAGE_3}, visited_page: page: null is neither a text nor an operator with a value; write "text" or {{equals: "text"}}'),
    (SHAPE, only({"rule": "visited_url", "url": 5}), "bad_type", f"{RULE}.url", f"{IN_STAGE_3}, visited_url: url: 5 is neither a text nor"),
    (SHAPE, only({"rule": "visited_url", "url": ["a"]}), "bad_type", f"{RULE}.url", f"{IN_STAGE_3}, visited_url: url: a list is neither"),
    (SHAPE, only({"rule": "visited_url", "url": ""}), "bad_operand", f"{RULE}.url.contains",
     f"{IN_STAGE_3}, visited_url: url: the text is empty; write what to look for"),
    (SHAPE, only({"rule": "visited_url", "url": {}}), "bad_operators", f"{RULE}.url",
     f"{IN_STAGE_3}, visited_url: url: 0 operators; give exactly one of contains, not_contains"),
    (SHAPE, only({"rule": "visited_url", "url": {"contains": "a", "ends_with": "b"}}), "bad_operators", f"{RULE}.url",
     f"{IN_STAGE_3}, visited_url: url: 2 operators; give exactly one of"),
    (SHAPE, only({"rule": "visited_url", "url": {"contain": "a"}}), "bad_operator", f"{RULE}.url",
     f'{IN_STAGE_3}, visited_url: url: unknown operator "contain"; did you mean "contains"?'),
    (SHAPE, only({"rule": "visited_url", "url": {"sounds_like": "a"}}), "bad_operator", f"{RULE}.url",
     f'{IN_STAGE_3}, visited_url: url: unknown operator "sounds_like"; use one of contains,'),
    (SHAPE, only({"rule": "visited_url", "url": {"contains": 5}}), "bad_operand", f"{RULE}.url.contains",
     f"{IN_STAGE_3}, visited_url: url: 5 is not a text; put it in quotes"),
    (SHAPE, only({"rule": "visited_url", "url": {"contains": ["a"]}}), "bad_operand", f"{RULE}.url.contains",
     f"{IN_STAGE_3}, visited_url: url: a list"),
    (SHAPE, only({"rule": "visited_url", "url": {"contains": "x" * 4001}}), "bad_operand", f"{RULE}.url.contains",
     f"{IN_STAGE_3}, visited_url: url: the text has 4001 characters; at most 4000"),
    (BEYOND, only({"rule": "visited_url", "url": {"contains": "\ud800"}}), "bad_operand", f"{RULE}.url.contains",
     f'{IN_STAGE_3}, visited_url: url: "\\ud800" is not valid Unicode'),
    (SHAPE, only({"rule": "visited_url", "url": {"one_of": "a"}}), "bad_operand", f"{RULE}.url.one_of",
     f'{IN_STAGE_3}, visited_url: url: "a" is not a list of texts; write ["first", "second"]'),
    (SHAPE, only({"rule": "visited_url", "url": {"one_of": []}}), "bad_operand", f"{RULE}.url.one_of",
     f"{IN_STAGE_3}, visited_url: url: the list is empty; write"),
    (SHAPE, only({"rule": "visited_url", "url": {"one_of": ["a", 5]}}), "bad_operand", f"{RULE}.url.one_of[1]",
     f"{IN_STAGE_3}, visited_url: url: 5 is not a text"),
    (BEYOND, only({"rule": "visited_url", "url": {"matches": "a[b"}}), "bad_pattern", f"{RULE}.url.matches",
     f'{IN_STAGE_3}, visited_url: url: "a[b" is not a pattern of RE2 (missing ]: [b); mend it, or use contains'),
    (BEYOND, only({"rule": "visited_url", "url": {"matches": "(?=a)"}}), "bad_pattern", f"{RULE}.url.matches", f"{IN_STAGE_3}, visited_url: url:"),
    (BEYOND, only({"rule": "visited_url", "url": {"matches": "(a)\\1"}}), "bad_pattern", f"{RULE}.url.matches", f"{IN_STAGE_3}, visited_url: url:"),
    (BEYOND, only({"rule": "visited_url", "url": {"matches": "a{1000}{1000}"}}), "bad_pattern", f"{RULE}.url.matches", f"{IN_STAGE_3}, visited_url:"),
]  # fmt: skip

SCHEMA = jsonschema_rs.validator_for(document())


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_every_mistake_has_its_sentence(number):
    shape, said, code, path, sentence = MISTAKES[number]
    with pytest.raises(JourneyRefused) as refused:
        parse_journey(said)
    error = refused.value.errors[0]
    assert (error.code, error.path) == (code, path)
    assert error.message.startswith(sentence)
    assert len(error.message) < 500
    assert "\n" not in error.message
    assert (refused.value.code, refused.value.path) == (code, path)
    if not said_oddly(said):
        assert SCHEMA.is_valid(said) == (not shape)


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_every_mistake_is_told_alike_by_a_put_and_by_an_apply(number):
    _, said, code, path, sentence = MISTAKES[number]
    if said_oddly(said):
        return  # see above: no file and no body can say it
    if not isinstance(said, list):  # a file may hold a list of journeys
        with pytest.raises(Failed) as failed:
            cli_journeys._checked([("loan.yaml", one) for one in from_text(yaml.safe_dump(said, allow_unicode=True, sort_keys=False), "loan.yaml")])
        assert failed.value.message.startswith(f"nothing was applied:\nloan.yaml: {sentence}")
    asked = said["id"] if isinstance(said, dict) and isinstance(said.get("id"), str) else "small-business-loan"
    body = json.dumps(said, ensure_ascii=False).encode()
    if the_api_allows(said, path):
        api._journey(asked, body, scheduled=False)
        return
    with pytest.raises(JourneyRefused) as refused:
        api._journey(asked, body, scheduled=False)
    assert (refused.value.code, refused.value.path) == (code, path)
    assert refused.value.errors[0].message.startswith(sentence)


def the_api_allows(said, path):
    """The address says the id, the API's own fields are ignored, and to JSON 75.0 is 75."""
    if path in ("version", "saved_at") or (path == "id" and "id" not in said):
        return True
    found = re.fullmatch(r"stages\[(\d)\]\.kpi", path or "")
    kpi = said["stages"][int(found[1])]["kpi"] if found else None
    return isinstance(kpi, float) and kpi.is_integer() and kpi > 0


TWICE = {
    "two conditions": ('{"id": "x", "stages": [{"condition": {"any": [1], "any": [2]}}]}', '"any" is there twice'),
    "two ids": ('{"id": "x", "id": "y"}', '"id" is there twice'),
    "escaped": ('{"id": "x", "\\u0069d": "y"}', '"id" is there twice'),
}


@pytest.mark.parametrize("name", TWICE)
def test_what_is_given_twice_is_told_and_not_lost(name):
    text, sentence = TWICE[name]
    for read in (lambda: from_json(text.encode()), lambda: from_text(text, "x.json"), lambda: from_text(text, "x.yaml")):
        with pytest.raises(Refused) as refused:
            read()
        assert refused.value.code == "given_twice"
        assert refused.value.message.startswith(sentence)
        assert "take one away" in refused.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id: x\nname: a\nname: b\n", ['"name" is there twice', "line 3", "take one away"]),
        ("stages:\n- condition:\n    any: [1]\n    all: [2]\n    any: [3]\n", ['"any" is there twice', "line 5"]),
        ("id: x\n  name: y\n", ["neither JSON nor YAML", "line 2"]),
        ("id: x\n---\nid: y\n", ["expected a single document"]),
        ("name: 2026-13-45\n", ["put texts in quotes"]),
        ("a: &a [*a]\n[", ["neither JSON nor YAML"]),
        ("- !!python/object/apply:os.system [true]", ["could not determine a constructor"]),
    ],
)
def test_a_file_that_is_no_yaml_names_the_line(text, words):
    with pytest.raises(Refused) as refused:
        from_text(text, "loan.yaml")
    assert all(word in refused.value.message for word in words), refused.value.message


def test_two_journeys_of_one_id_are_a_mistake_and_the_place_of_each_is_named():
    found = [("a.yaml, journey 1", EXAMPLE), ("a.yaml, journey 2", with_("id", "other")), ("b.json", EXAMPLE)]
    with pytest.raises(Failed) as failed:
        cli_journeys._checked(found)
    assert failed.value.message == (
        'nothing was applied:\nb.json: journey: id "small-business-loan" is that of the journey in a.yaml, journey 1 too; give each its own'
    )


def test_a_file_with_several_journeys_names_the_one_with_the_mistake(tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text("\ufeff" + yaml.safe_dump([EXAMPLE, with_("name", "")]), encoding="utf-8")
    with pytest.raises(Failed, match=r"all\.yaml, journey 2: journey: name is empty"):
        cli_journeys._checked(cli_journeys._read(str(file)))


def said_oddly(said):
    """Python values that JSON cannot say."""
    try:
        json.dumps(said, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return True
    return False


def test_all_mistakes_are_told_at_once():
    said = with_("stages.0.condition", {})
    said["stages"][1]["kpi"] = 0
    said["stages"][3]["condition"]["any"][1]["all"][0]["url"] = {"matches": "("}
    said["nmae"] = "x"
    with pytest.raises(JourneyRefused) as refused:
        parse_journey(said)
    assert [error.path for error in refused.value.errors] == [
        "nmae",
        "stages[0].condition",
        "stages[1].kpi",
        "stages[3].condition.any[1].all[0].url.matches",
    ]
    assert refused.value.message.endswith("(and 3 more)")
    assert len(set(map(str, refused.value.errors))) == 4
