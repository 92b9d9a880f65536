"""The pages of the console, on a running Waypost: they show the API's numbers, every number opens its list, and no text becomes markup."""

from __future__ import annotations

import csv
import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.support.running import Waypost

from .test_api import journey, put, send, visit

pytestmark = pytest.mark.embedded

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title><svg onload=alert(1)>",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)//&lt;b&gt;",
    "\u202e<iframe srcdoc=x>",
)


class Tags(HTMLParser):
    """What markup a page has: its tags, the names of their attributes, and the targets of its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.targets: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.names |= set(given)
        if tag == "a" and given.get("id"):
            self.targets[str(given["id"])] = str(given["href"])


def shop(waypost: Waypost, name: str) -> dict[str, Any]:
    """Three enter, one of them in group red goes on; the results when all is in them."""
    put(waypost, journey(name, "a", "b"))
    send(waypost, "contacts", {"contact_id": f"{name}-1", "groups": ["red"], "at": "2026-01-01T00:00:00Z"})
    send(waypost, "activities", *(visit(name, str(k), "a", f"10:0{k}:00") for k in (1, 2, 3)), visit(name, "1", "b", "11:00:00"))
    return waypost.settled(name)


def page(waypost: Waypost, path: str, status: int = 200) -> str:
    answer = waypost.http.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    return answer.text


def cell(text: str, id_: str) -> str:
    found = re.search(rf'id="{re.escape(id_)}"[^>]*>([^<]*)<', text)
    assert found, f"{id_} is not on the page"
    return html.unescape(found[1])


def test_the_front_door_leads_to_the_journeys(waypost: Waypost) -> None:
    answer = waypost.http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/journeys")


def test_journeys_are_listed_with_the_numbers_of_the_api_and_found_by_the_name_of_a_stage(waypost: Waypost, name: str) -> None:
    found = shop(waypost, name)
    text = page(waypost, f"/journeys?q={name.upper()}")
    assert (cell(text, f"in-{name}"), cell(text, f"out-{name}")) == ("3", "1")
    assert [row["converted"] for row in found["stages"]] == [3, 1]
    assert "66.7 %" in text  # the drop-off after stage 1
    put(waypost, {**journey(name, "a", "b"), "stages": [{**journey(name, "a")["stages"][0], "name": f"Stage of {name}"}]})
    assert f"open-{name}" in page(waypost, f"/journeys?q=stage of {name}")
    assert "No journey has" in page(waypost, f"/journeys?q={name}-nowhere")


def test_every_number_of_a_journey_opens_a_list_of_as_many_contacts(waypost: Waypost, name: str) -> None:
    found = shop(waypost, name)
    for group in ("", "red"):
        query = {"group": group} if group else {}
        rows = waypost.settled(name, **query)["stages"]
        text = page(waypost, f"/journeys/{name}" + (f"?group={group}" if group else ""))
        targets = Tags(text).targets
        for row in rows:
            for shown, number in (("converted", row["converted"]), ("dropped", row["dropped_off"])):
                id_ = f"{shown}-{row['stage']}"
                if number is None:
                    assert id_ not in targets
                    continue
                assert cell(text, id_) == str(number)
                listed = page(waypost, targets[id_])
                assert f"<h1>{number} contact" in listed
                assert listed.count('<th scope="row" class="mono"') == number
    assert [row["converted"] for row in found["stages"]] == [3, 1]


def test_a_list_is_saved_as_csv_with_the_rows_of_the_api(waypost: Waypost, name: str) -> None:
    shop(waypost, name)
    path = f"/journeys/{name}/stages/1/contacts"
    answer = waypost.http.get(f"{path}.csv")
    rows = list(csv.reader(answer.text.splitlines()))
    api = waypost.http.get(f"/api{path}").json()["contacts"]
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}.1.converted.csv"'
    assert rows == [["contact_id", "reached_at", "groups"], *([r["contact_id"], r["reached_at"], " ".join(r["groups"])] for r in api)]
    assert len(rows) == 4


def test_a_long_list_goes_on_by_its_pages_and_its_csv_has_all_of_it(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    send(waypost, "activities", *(visit(name, f"{k:04}", "a", "10:00:00") for k in range(1050)))
    waypost.settled(name)
    path: str | None = f"/journeys/{name}/stages/1/contacts"
    seen: list[str] = []
    while path is not None:
        text = page(waypost, path)
        seen += re.findall(r'<th scope="row" class="mono">([^<]*)</th>', text)
        path = Tags(text).targets.get("more")
    assert sorted(seen) == [f"{name}-{k:04}" for k in range(1050)]
    assert len(waypost.http.get(f"/journeys/{name}/stages/1/contacts.csv").text.splitlines()) == 1051


def test_an_export_can_be_put_back_and_changes_nothing(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b"))
    exported = waypost.http.get(f"/journeys/{name}/export")
    assert {"version", "saved_at"}.isdisjoint(exported.json())
    assert waypost.http.put(f"/api/journeys/{name}", content=exported.content).json()["version"] == 1


def test_zero_is_said_in_words_with_what_stage_1_waits_for(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b"))
    waypost.settled(name)
    text = html.unescape(page(waypost, f"/journeys/{name}"))
    assert "0 contacts have reached stage 1" in text
    assert f'It waits for: visited page "/{name}/a"' in text


def test_what_is_wrong_is_a_page_with_the_sentence_of_the_api(waypost: Waypost, name: str) -> None:
    assert f'there is no journey "{name}"' in html.unescape(page(waypost, f"/journeys/{name}", 404))
    put(waypost, journey(name, "a"))
    for path, status in (("2/contacts", 404), ("x/contacts", 422), ("1/contacts?who=me", 422), ("1/contacts?cursor=x", 404)):
        assert 'role="alert"' in page(waypost, f"/journeys/{name}/stages/{path}", status)
    assert waypost.http.get(f"/api/journeys/{name}-no").headers["content-type"] == "application/json"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_that_people_send_becomes_markup(waypost: Waypost, name: str, text: str) -> None:
    contact = f"{name}{text}"
    hostile = {**journey(name, "a", "b"), "name": f"{name}{text}"}
    for k, stage in enumerate(hostile["stages"]):
        stage["name"] = f"{text}{k}"
    hostile["stages"][1]["condition"]["any"].append({"rule": "visited_page", "page": text})
    saved = put(waypost, hostile)
    assert saved.status_code == 201, saved.text
    send(waypost, "contacts", {"contact_id": contact, "groups": [text], "at": "2026-01-01T00:00:00Z"})
    send(waypost, "activities", {**visit(name, "", "a", "10:00:00"), "contact_id": contact})
    assert waypost.settled(name)["stages"][0]["converted"] == 1
    places = (
        ("/journeys", {"q": f"{name}{text}"}, 200),
        (f"/journeys/{name}", {"group": text}, 200),
        (f"/journeys/{name}/stages/1/contacts", {"group": text}, 200),
        (f"/journeys/{name}/stages/1/contacts", {"who": text}, 422),
    )
    for path, query, status in places:
        answer = waypost.http.get(path, params=query)
        assert answer.status_code == status
        assert status != 200 or text in html.unescape(answer.text)
        found = Tags(answer.text)
        assert not {"img", "iframe"} & set(found.tags)
        assert not {given for given in found.names if given.startswith("on")} | ({"srcdoc", "style"} & found.names)
        assert found.tags.count("script") == answer.text.count('<script src="/static/')
        assert all(target.startswith(("/", "?")) for target in found.targets.values())


def test_pages_load_nothing_from_elsewhere_and_their_files_are_there(waypost: Waypost, name: str) -> None:
    shop(waypost, name)
    for path in ("/journeys", f"/journeys/{name}", f"/journeys/{name}/stages/1/contacts"):
        text = page(waypost, path)
        loaded = re.findall(r'<(?:script src|link rel="stylesheet" href)="([^"]*)"', text)
        assert loaded
        assert all(waypost.http.get(found).status_code == 200 for found in loaded)
        assert "://" not in text
    assert waypost.http.get("/static/..%2froutes.py").status_code == 404
