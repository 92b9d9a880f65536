"""The facts of contract sections 1 and 3 as they go in and out, field by field, and the rules of section 2 by name."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import changes, codec, rules, times
from schemas.activity import FIELDS, Activity
from schemas.changes import StageChange
from schemas.errors import Refused
from schemas.hashing import h, h8
from schemas.journey import JourneyRefused, parse_journey
from schemas.merge import ContactMerge
from schemas.profile import ContactProfile
from schemas.text import OPERATORS, TextTest
from tests.support import PATIENCE_SECONDS

ACTIVITY = {
    "id": "a-81", "contact_id": "c-42", "type": "pagevisit", "at": "2026-01-02T03:04:05.678Z",
    "page": "/campaign/smb", "url": "https://bank.example/campaign/smb?utm_source=ads", "channel": "business-banking",
    "form": None, "email": None, "value": None, "title": "Loans", "utm_source": "ads", "utm_content": None, "language": "en", "referrer": None,
}  # fmt: skip
MERGE = {"id": "m-7", "from": "visitor-9", "into": "c-42", "at": "2026-01-02T03:10:00Z"}
PROFILE = {
    "contact_id": "c-42",
    "groups": ["smb-owner", "newsletter"],
    "attributes": {"name": "Ada"},
    "at": "2026-01-02T03:00:00Z",
}


def raw(said):
    return json.dumps(said).encode()


# -- in ---------------------------------------------------------------------------------------------------------------------


def test_the_activity_of_the_contract():
    assert set(Activity.model_fields) == set(ACTIVITY)
    decoded = codec.decode_activity(raw(ACTIVITY))
    assert {name: getattr(decoded, name) for name in ACTIVITY if name != "at"} == {
        k: v for k, v in ACTIVITY.items() if k != "at"
    }
    assert codec.activity_at_ms(decoded) == 1_767_323_045_678
    assert {f"{k}" for k in ACTIVITY} - set(FIELDS) == {"id", "contact_id", "type", "at"}


def test_the_merge_of_the_contract():
    assert codec.decode_merge(raw(MERGE)) == ("m-7", "visitor-9", "c-42", times.parse_ms(MERGE["at"]))


def test_the_profile_of_the_contract():
    decoded = codec.decode_profile(b"c-42", raw(PROFILE))
    assert decoded == ("c-42", ("smb-owner", "newsletter"), {"name": "Ada"}, times.parse_ms(PROFILE["at"]))


@pytest.mark.parametrize(
    ("model", "example"),
    [(Activity, ACTIVITY), (ContactMerge, MERGE), (ContactProfile, PROFILE)],
    ids=["activity", "merge", "profile"],
)
def test_decoders_have_the_fields_of_the_models(model, example):
    struct = codec.wire_struct("Same", model)
    assert struct.__struct_fields__ == tuple(model.model_fields)
    assert set(struct.__struct_encode_fields__) == {info.alias or name for name, info in model.model_fields.items()}
    required = {info.alias or name for name, info in model.model_fields.items() if info.is_required()}
    for name in example:
        without = raw({k: v for k, v in example.items() if k != name})
        if name in required:
            with pytest.raises(msgspec.ValidationError):
                msgspec.json.decode(without, type=struct)
        else:
            msgspec.json.decode(without, type=struct)


@pytest.mark.parametrize(("model", "example"), [(Activity, ACTIVITY), (ContactMerge, MERGE), (ContactProfile, PROFILE)])
def test_models_describe_themselves_as_json_schema(model, example):
    schema = jsonschema_rs.validator_for(model.model_json_schema())
    assert schema.is_valid(example)
    assert schema.is_valid({**example, "at": 1_767_323_045_678, "something_else": [1]})
    assert not schema.is_valid({**example, "at": True})
    assert not schema.is_valid({k: v for k, v in example.items() if k != "at"})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_hash_is_blake2b_as_a_big_endian_number(text):
    assert len(h8(text)) == 8
    assert h(text) == int.from_bytes(h8(text), "big")


def test_known_hashes():
    assert h8("").hex() == "e4a6a0577479b2b4"
    assert h8("a-81") != h8("a-82")


# -- out --------------------------------------------------------------------------------------------------------------------

CHANGE = StageChange(
    journey="small-business-loan",
    version=3,
    contact_id="c-42",
    stage=2,
    stage_name="Requested case study",
    change="reached",
    reached_at=1_767_323_045_678,
    previous_reached_at=None,
    cause="activity",
    cause_id="a-81",
)


def test_the_stage_change_of_the_contract():
    key, value, headers = changes.encode(CHANGE, time_ms=1_767_323_046_000)
    assert key == b"c-42"
    said = json.loads(value)
    assert said == {
        "journey": "small-business-loan", "version": 3, "contact_id": "c-42", "stage": 2, "stage_name": "Requested case study",
        "change": "reached", "reached_at": "2026-01-02T03:04:05.678Z", "previous_reached_at": None, "cause": "activity", "cause_id": "a-81",
    }  # fmt: skip
    assert list(said) == [
        "journey", "version", "contact_id", "stage", "stage_name", "change", "reached_at", "previous_reached_at", "cause", "cause_id",
    ]  # fmt: skip
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": changes.change_id(CHANGE).encode(),
        "ce_source": b"/waypost",
        "ce_type": b"waypost.stage.reached",
        "ce_subject": b"c-42",
        "ce_time": b"2026-01-02T03:04:06.000Z",
        "content-type": b"application/json",
    }
    assert all(isinstance(name, str) and isinstance(value, bytes) for name, value in headers)


@pytest.mark.parametrize("change", ["reached", "moved", "left"])
def test_the_kind_of_change_is_in_the_type(change):
    _, value, headers = changes.encode(
        msgspec.structs.replace(CHANGE, change=change, reached_at=None, contact_id="Ünal"), 0
    )
    assert dict(headers)["ce_type"] == f"waypost.stage.{change}".encode()
    assert dict(headers)["ce_subject"] == "Ünal".encode()
    assert json.loads(value)["reached_at"] is None


def test_the_same_change_has_the_same_id_and_another_has_another():
    assert (
        changes.encode(CHANGE, 1)[2][1]
        == changes.encode(CHANGE, 2)[2][1]
        == ("ce_id", changes.change_id(CHANGE).encode())
    )
    others = {
        "journey": "other", "version": 4, "contact_id": "c-43", "stage": 3, "change": "moved", "reached_at": 1,
        "previous_reached_at": 1, "cause_id": None,
    }  # fmt: skip
    ids = {changes.change_id(msgspec.structs.replace(CHANGE, **{name: value})) for name, value in others.items()}
    assert len(ids | {changes.change_id(CHANGE)}) == 1 + len(others)


def test_ids_cannot_be_made_equal_by_moving_text_between_fields():
    one = msgspec.structs.replace(CHANGE, journey="a", contact_id='b",1,"c')
    other = msgspec.structs.replace(CHANGE, journey='a",3,"b', contact_id="c")
    assert changes.change_id(one) != changes.change_id(other)


# -- rules ------------------------------------------------------------------------------------------------------------------

# name, type, parameters with the operator that a bare string means (None: no text operators), optional ones (contract, section 2)
RULES = [
    ("visited_page", "pagevisit", {"page": "equals", "channel": "equals"}, {"channel"}),
    ("visited_url", "pagevisit", {"url": "contains", "channel": "equals"}, {"channel"}),
    ("landed_on_page", "landingpage", {"page": "equals", "url": "contains"}, {"page", "url"}),
    ("submitted_form", "bizformsubmit", {"form": "equals"}, set()),
    ("clicked_email_link", "emailclick", {"url": "contains", "email": "equals"}, {"email"}),
    ("performed_activity", "download", {"activity": None, "value": "contains"}, {"value"}),
    ("became_member", "memberregistration", {}, set()),
]


def test_the_catalogue_is_that_of_the_contract():
    assert (
        [name for name, *_ in RULES] == [rule.name for rule in rules.BUILT_IN] == list(rules.catalogue())[: len(RULES)]
    )
    assert set(OPERATORS) == {
        "contains", "not_contains", "starts_with", "ends_with", "equals", "not_equals", "one_of", "matches",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "type_", "parameters", "optional"), RULES, ids=[r[0] for r in RULES])
def test_a_rule_of_the_contract(name, type_, parameters, optional):
    rule_type = rules.catalogue()[name]
    assert set(rule_type.model_fields) == set(parameters)
    given_ = {p: "Download" if operator is None else "x" for p, operator in parameters.items()}
    rule = rule_type(**given_)
    assert rule.activity_types() == {type_}
    assert set(rule.tests()) == {(p, operator, "x") for p, operator in parameters.items() if operator}
    for parameter, operator in parameters.items():
        if operator:
            assert getattr(rule, parameter) == TextTest(operator, "x")
            for other in set(OPERATORS) - {"one_of"}:
                assert getattr(rule_type(**{**given_, parameter: {other: "x"}}), parameter) == TextTest(other, "x")
            one_of = rule_type(**{**given_, parameter: {"one_of": ["x", "y"]}})
            assert getattr(one_of, parameter) == TextTest("one_of", ("x", "y"))
        without = {k: v for k, v in given_.items() if k != parameter}
        if parameter in optional:
            assert (
                rules.rule_key(rule_type(**without))
                == rules.rule_key(rule_type(**without, **{parameter: None}))
                != rules.rule_key(rule)
            )
        else:
            with pytest.raises(ValidationError):
                rule_type(**without)
    assert "{" not in rule.describe()


def test_landed_on_page_needs_a_page_or_a_url():
    with pytest.raises(ValidationError, match="needs page or url"):
        rules.LandedOnPage()
    assert rules.LandedOnPage(page="/a").describe() == 'landed on a page "/a"'
    assert rules.LandedOnPage(url="a").describe() == 'landed on a page with a URL containing "a"'
    assert rules.LandedOnPage(page="/a", url="a").describe() == 'landed on a page "/a" with a URL containing "a"'


def test_rules_that_test_the_same_share_their_evidence():
    same = [
        rules.VisitedUrl(url="Loan.PDF"),
        rules.VisitedUrl(url={"contains": "loan.pdf"}),
        rules.VisitedUrl(url={"contains": "LOAN.pdf"}, channel=None),
    ]
    assert len({rules.rule_key(rule) for rule in same}) == 1
    lists = [rules.VisitedUrl(url={"one_of": ["a", "B"]}), rules.VisitedUrl(url={"one_of": ["b", "A", "a"]})]
    assert len({rules.rule_key(rule) for rule in lists}) == 1
    names = [rules.PerformedActivity(activity="Download"), rules.PerformedActivity(activity="download")]
    assert len({rules.rule_key(rule) for rule in names}) == 1
    different = [
        *same[:1], *lists[:1], *names[:1],
        rules.VisitedUrl(url={"equals": "loan.pdf"}), rules.VisitedUrl(url="loan.pdf", channel="c"),
        rules.VisitedUrl(url={"matches": r"\d"}), rules.VisitedUrl(url={"matches": r"\D"}),
        rules.VisitedPage(page="/x"), rules.LandedOnPage(page="/x"),
    ]  # fmt: skip
    keys = {rules.rule_key(rule) for rule in different}
    assert len(keys) == len(different)
    assert {len(key) for key in keys} == {8}


def test_the_catalogue_tells_what_the_builder_needs():
    data = rules.catalogue_data()
    json.dumps(data)
    for row, (name, _, parameters, optional) in zip(data, RULES, strict=False):
        assert row["name"] == name
        assert row["category"]
        assert row["sentence"]
        schema = jsonschema_rs.validator_for(row["parameters"])
        given_ = {p: "x" for p in parameters if p not in optional or name == "landed_on_page"}
        assert schema.is_valid(given_)
        assert not schema.is_valid({**given_, "other": "x"})
        assert not given_ or not schema.is_valid({})


# -- rules of other distributions -------------------------------------------------------------------------------------------

SHOP = '''
from schemas.rules import Contains, Equals, Rule

class ViewedProduct(Rule):
    name = "viewed_product"
    category = "Shop"
    sentence = "viewed a product with title {title}[ in language {language}]"
    types = frozenset({"productview"})
    title: Contains
    language: Equals | None = None
    at_least: int = 0

    def accepts(self, activity):
        return len(activity.title) >= self.at_least

class NoRule: pass

class NoSentence(Rule):
    name = "no_sentence"

class Taken(Rule):
    name = "visited_page"
    sentence = "taken"

class BadName(Rule):
    name = "Bad Name"
    sentence = "bad"

class BadField(Rule):
    name = "bad_field"
    sentence = "bad {price}"
    price: Equals

class BadSentence(Rule):
    name = "bad_sentence"
    sentence = "bad {price}"

class BadType(Rule):
    name = "bad_type"
    sentence = "bad"
    types = frozenset({"ProductView"})

class CalledRule(Rule):
    name = "called_rule"
    sentence = "bad"
    rule: str
'''  # fmt: skip


def installed(tmp_path, *entries, program):
    """Runs *program* where another distribution, with these entry points, is installed beside ours."""
    (tmp_path / "shop_rules.py").write_text(SHOP)
    info = tmp_path / "shop_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[waypost.rules]\n" + "\n".join(entries) + "\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.stdout + done.stderr.splitlines()[-1] if done.stderr else done.stdout


def test_another_distribution_adds_a_rule_by_one_class(tmp_path):
    said = installed(
        tmp_path,
        "viewed_product = shop_rules:ViewedProduct",
        program="""
        import json
        from schemas import codec, rules
        from schemas.journey import parse_journey, journey_json
        from state.matching import Matcher
        from state.recalculation import by_key
        rule = {"rule": "viewed_product", "title": "Loan", "at_least": 6}
        journey = parse_journey({"id": "j", "name": "J", "stages": [{"name": "S", "condition": {"any": [rule]}}]})
        assert parse_journey(journey_json(journey)) == journey
        matcher = Matcher(by_key(journey.stages[0].condition.members))
        for title in ("a loan", "loan", "nothing", None):
            raw = json.dumps({"contact_id": "c", "type": "ProductView", "at": 1_700_000_000_001, "title": title}).encode()
            print(len(matcher.match(codec.decode_activity(raw))), end=" ")
        print(journey.stages[0].condition.members[0].describe(), rules.catalogue_data()[-1]["category"], dict(matcher.faults))
        """,
    )
    assert said == '1 0 0 0 viewed a product with title containing "Loan" Shop {}\n'


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("NoRule", "is not a subclass of schemas.rules.Rule"),
        ("NoSentence", "has no sentence; add a class attribute of that name"),
        ("Taken", "the name visited_page is taken already; choose another"),
        ("BadName", "the name 'Bad Name' is not of small letters, digits and _"),
        ("BadField", "price is no field of an activity; override tests()"),
        ("BadSentence", "the sentence names price, which is no parameter"),
        ("BadType", "types must be in small letters"),
        ("CalledRule", "a parameter cannot be called rule"),
        ("Missing", "cannot be loaded: AttributeError"),
    ],
)
def test_a_rule_type_that_cannot_be_used_is_named(tmp_path, entry, says):
    said = installed(tmp_path, f"it = shop_rules:{entry}", program="from schemas import rules; rules.catalogue()")
    assert f"BadRuleType: entry point it = shop_rules:{entry} of shop-rules" in said
    assert says in said


def test_refusals_survive_pickling():
    import pickle

    refused = pickle.loads(pickle.dumps(Refused("code", "sentence", "path")))
    assert (refused.code, refused.message, refused.path) == ("code", "sentence", "path")
    with pytest.raises(JourneyRefused) as journey:
        parse_journey({"id": "x"})
    copy = pickle.loads(pickle.dumps(journey.value))
    assert [str(e) for e in copy.errors] == [str(e) for e in journey.value.errors]
    assert str(copy) == str(journey.value)
