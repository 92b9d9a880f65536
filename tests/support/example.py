"""The contract's example of a journey, and ways to change it."""

import copy

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
