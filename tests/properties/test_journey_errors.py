"""Every mistake in a journey is told by a sentence that names the place and the way out; no input hurts the reader."""

import copy
import json
import re

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from console import api, cli_journeys
from console.options import Failed
from console.written import from_json, from_text
from schemas import journey as journeys
from schemas.errors import Refused
from schemas.journey import JourneyRefused, body_digest, journey_json, parse_journey
from schemas.journey_schema import document
from schemas.rules import BUILT_IN

EXAMPLE = {  # contract, section 2
    "id": "small-business-loan",
    "name": "Small business loan - demo",
    "scheduled_recalculation": True,
    "stages": [
        {
            "name": "Visited campaign page",
            "kpi": 1000,
            "condition": {"any": [{"rule": "visited_page", "page": "/campaign/smb", "channel": "business-banking"}]},
        },
        {
            "name": "Requested case study",
            "kpi": 300,
            "condition": {"any": [{"rule": "submitted_form", "form": "loan-smb"}]},
        },
        {
            "name": "Clicked link in email",
            "kpi": 100,
            "condition": {
                "all": [
                    {
                        "rule": "clicked_email_link",
                        "url": {"contains": "download-smb-case-study"},
                        "email": "smb-jumpstart-loan",
                    }
                ]
            },
        },
        {
            "name": "Downloaded",
            "kpi": 75,
            "condition": {
                "any": [
                    {
                        "rule": "performed_activity",
                        "activity": "sample_file_download",
                        "value": {"contains": "download-smb-case-study"},
                    },
                    {"all": [{"rule": "visited_url", "url": {"ends_with": ".pdf"}}, {"rule": "became_member"}]},
                ]
            },
        },
    ],
}
MEMBER = {"rule": "became_member"}
GONE = object()


def with_(path, value):
    """The example with *value* at *path*, such as `stages.2.condition`; GONE takes the place away."""
    said = copy.deepcopy(EXAMPLE)
    *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = said
    for step in way:
        place = place[step]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return said


def deep(levels, inner=MEMBER):
    condition = {"any": [inner]}
    for _ in range(levels - 1):
        condition = {"all": [condition]}
    return condition


def rules_(number):
    return [{"rule": "submitted_form", "form": f"form {i}"} for i in range(number)]


def stages_(number):
    return [{"name": f"Stage {i}", "condition": {"any": [MEMBER]}} for i in range(number)]


def only(rule):
    return with_("stages.2.condition", {"any": [MEMBER, rule]})


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


# -- what is right ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_contract():
    journey = parse_journey(EXAMPLE)
    assert parse_journey(yaml.safe_load(yaml.safe_dump(EXAMPLE))) == journey
    assert SCHEMA.is_valid(EXAMPLE)
    assert (journey.id, journey.name, journey.scheduled_recalculation, journey.version) == (
        EXAMPLE["id"],
        EXAMPLE["name"],
        True,
        None,
    )
    assert [(stage.name, stage.kpi) for stage in journey.stages] == [(s["name"], s["kpi"]) for s in EXAMPLE["stages"]]
    first = journey.stages[0].condition.members[0]
    assert first.describe() == 'visited page "/campaign/smb" in channel "business-banking"'
    inner = journey.stages[3].condition.members[1]
    assert (inner.op, [rule.name for rule in inner.members]) == ("all", ["visited_url", "became_member"])
    assert inner.members[0].describe() == 'visited a URL ending with ".pdf"'


def test_the_limits_themselves_are_allowed():
    for said in (
        with_("id", "a-0" + "x" * 61),
        with_("name", "é" * 200),
        with_("stages", stages_(10)),
        with_("stages", stages_(1)),
        with_("stages.2.name", "x" * 200),
        with_("stages.2.kpi", 1),
        with_("stages.2.kpi", None),
        with_("stages.2.kpi", GONE),
        with_("scheduled_recalculation", GONE),
        with_("stages.2.condition", deep(5)),
        with_("stages.2.condition", {"any": rules_(50)}),
        only({"rule": "visited_url", "url": {"one_of": ["a", "b"]}, "channel": None}),
        only({"rule": "landed_on_page", "page": {"matches": "^/a"}, "url": {"not_equals": "b"}}),
        only({"rule": "performed_activity", "activity": "PageVisit"}),
    ):
        parse_journey(said)
        assert SCHEMA.is_valid(said)


def test_what_the_api_adds_is_no_mistake():
    journey = parse_journey({**EXAMPLE, "version": 3, "saved_at": "2026-01-02T03:04:05.678Z", "status": "live"})
    assert (journey.version, journey.saved_at) == (3, 1_767_323_045_678)
    said = journey_json(journey)
    assert (said["version"], said["saved_at"]) == (3, "2026-01-02T03:04:05.678Z")
    assert parse_journey(said) == journey


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
operators = st.one_of(
    texts,
    st.builds(
        lambda op, t: {op: t},
        st.sampled_from(["contains", "not_contains", "starts_with", "ends_with", "equals", "not_equals"]),
        texts,
    ),
    st.builds(lambda ts: {"one_of": ts}, st.lists(texts, min_size=1, max_size=3)),
)
some_rules = st.one_of(
    st.fixed_dictionaries(
        {"rule": st.just("visited_page"), "page": operators}, optional={"channel": operators | st.none()}
    ),
    st.fixed_dictionaries(
        {"rule": st.just("landed_on_page"), "url": operators}, optional={"page": operators | st.none()}
    ),
    st.fixed_dictionaries({"rule": st.just("performed_activity"), "activity": texts}, optional={"value": operators}),
    st.just(MEMBER),
)
conditions = st.recursive(
    st.builds(
        lambda op, rows: {op: rows}, st.sampled_from(["any", "all"]), st.lists(some_rules, min_size=1, max_size=3)
    ),
    lambda inner: st.builds(
        lambda op, rows: {op: rows},
        st.sampled_from(["any", "all"]),
        st.lists(inner | some_rules, min_size=1, max_size=3),
    ),
    max_leaves=4,
)
good_stages = st.lists(
    st.fixed_dictionaries(
        {"name": texts, "condition": conditions}, optional={"kpi": st.none() | st.integers(1, 10**6)}
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda s: s["name"],
)
good_journeys = st.fixed_dictionaries(
    {"id": st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True), "name": texts, "stages": good_stages},
    optional={"scheduled_recalculation": st.booleans(), "version": st.integers(1, 9), "status": st.just("live")},
)


@settings(max_examples=200, deadline=None)
@given(good_journeys)
def test_a_journey_comes_back_as_it_went(said):
    assert SCHEMA.is_valid(said) or depth(said) > 5
    try:
        journey = parse_journey(said)
    except JourneyRefused as error:
        refused = error
    else:
        written = json.loads(json.dumps(journey_json(journey)))
        assert SCHEMA.is_valid(written)
        assert parse_journey(written) == journey
        assert (
            body_digest(parse_journey(written))
            == body_digest(journey)
            == body_digest(journey.model_copy(update={"version": 8}))
        )
        assert body_digest(journey.model_copy(update={"name": journey.name + "!"})) != body_digest(journey)
        return
    assert {error.code for error in refused.errors} <= {"too_deep", "too_many_rules"}


def depth(said):
    def of(condition):
        members = next(iter(condition.values()))
        return 1 + max((of(m) for m in members if "rule" not in m), default=0)

    return max(of(stage["condition"]) for stage in said["stages"])


# -- harm -------------------------------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.one_of(st.text(), st.integers(), st.none(), st.booleans()), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = [
    "any",
    "all",
    "rule",
    "stages",
    "name",
    "id",
    "condition",
    "page",
    "url",
    "contains",
    "one_of",
    "matches",
    "kpi",
    "channel",
    "activity",
]
likely = st.recursive(
    junk | st.sampled_from(["visited_page", "performed_activity", "landed_on_page", "a", "("]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw):
    """A journey of which one place is something else."""
    said = copy.deepcopy(draw(good_journeys))
    places = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(said)
    place, key = draw(st.sampled_from(places))
    place[key] = draw(likely)
    return said


@settings(max_examples=1500, deadline=None)
@given(junk | likely | damaged())
def test_whatever_comes_is_a_journey_or_refused(said):
    try:
        journey = parse_journey(said)
    except JourneyRefused as error:
        refused = error
    else:
        assert parse_journey(journey_json(journey)) == journey
        return
    for error in refused.errors:
        assert isinstance(error, Refused)
        assert re.fullmatch(r"[a-z_]+", error.code)
        assert 0 < len(error.message) < 1000
        assert error.message.isprintable()
        error.message.encode()
        (error.path or "").encode()


def bomb(make, levels=100_000):
    said = "x"
    for _ in range(levels):
        said = make(said)
    return said


def cyclic():
    said = {"any": []}
    said["any"].append(said)
    return said


def laughs(levels, wide):
    """A small YAML file whose aliases make it endless."""
    said = {"any": []}
    for _ in range(levels):
        said = {"any": [said] * wide}
    return said


@pytest.mark.parametrize(
    "make",
    [
        lambda: bomb(lambda inner: [inner]),
        lambda: bomb(lambda inner: {"any": [inner]}),
        lambda: bomb(lambda inner: {"condition": inner}),
        cyclic,
        lambda: laughs(30, 1000),
        lambda: {"any": [MEMBER] * 1_000_000},
        lambda: {"any": [None] * 1_000_000},
        lambda: {"any": [{"any": []}] * 1_000_000},
        lambda: {"any": [{"all": [MEMBER] * 40}] * 100_000},
        lambda: {str(i): i for i in range(1_000_000)},
        lambda: {"any": [{"rule": "visited_page", "page": bomb(lambda inner: {"contains": inner})}]},
        lambda: {"any": [{"rule": "visited_page", **{str(i): i for i in range(100_000)}}]},
        lambda: {"any": [{"rule": "visited_page", "page": {str(i): i for i in range(100_000)}}]},
        lambda: {"any": [{"rule": "visited_page", "page": {"one_of": [5] * 1_000_000}}]},
    ],
)
def test_bombs_are_refused(make):
    bad = make()
    for said in (
        bad,
        {"stages": bad},
        with_("stages.2", bad),
        with_("stages.2.condition", bad),
        {**EXAMPLE, "name": bad},
    ):
        with pytest.raises(JourneyRefused) as refused:
            parse_journey(said)
        assert len(refused.value.errors) <= journeys.MAX_ERRORS
    while (
        isinstance(bad, dict | list) and bad and bad is not MEMBER
    ):  # taken apart by hand: the interpreter would do it recursively
        bad = bad.popitem()[1] if isinstance(bad, dict) else bad.pop()


def test_every_rule_of_the_catalogue_can_be_said():
    given_ = {
        "visited_page": {"page": "/a"},
        "visited_url": {"url": "/a"},
        "landed_on_page": {"page": "/a"},
        "submitted_form": {"form": "a"},
        "clicked_email_link": {"url": "a"},
        "performed_activity": {"activity": "a"},
        "became_member": {},
    }
    assert set(given_) == {rule.name for rule in BUILT_IN}
    for name, parameters in given_.items():
        parse_journey(only({"rule": name, **parameters}))
