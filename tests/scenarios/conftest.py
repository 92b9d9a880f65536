"""The shop of the stories: a campaign for small-business loans."""

from __future__ import annotations

import pytest

from .shop import Shop

CAMPAIGN = {
    "name": "Visited campaign page",
    "kpi": 2,
    "condition": {"any": [{"rule": "visited_page", "page": "/campaign/smb"}]},
}
REQUEST = {"name": "Requested case study", "condition": {"any": [{"rule": "submitted_form", "form": "loan-smb"}]}}
CLICK = {
    "name": "Clicked link in email",
    "condition": {"all": [{"rule": "clicked_email_link", "url": {"contains": "case-study"}, "email": "smb-jumpstart"}]},
}
DOWNLOAD = {
    "name": "Downloaded",
    "condition": {
        "any": [
            {"rule": "performed_activity", "activity": "sample_file_download", "value": {"contains": "case-study"}},
            {"all": [{"rule": "visited_url", "url": {"ends_with": ".pdf"}}, {"rule": "became_member"}]},
        ]
    },
}


@pytest.fixture
def shop() -> Shop:
    """Two stages: visited the campaign page (KPI 2), requested the case study."""
    return Shop(CAMPAIGN, REQUEST)


@pytest.fixture
def bank() -> Shop:
    """All four stages of the campaign."""
    return Shop(CAMPAIGN, REQUEST, CLICK, DOWNLOAD)
