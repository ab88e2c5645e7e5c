"""The picture of the dashboard has every panel of it, with the queries that Grafana would send."""

import json

import pytest

from bench.dashboard import DASHBOARD, EMPTY, PICTURES, THEMES, Query, panels


def test_every_panel_and_expression_of_the_dashboard_is_drawn_in_its_order() -> None:
    dashboard = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    assert [panel.title for panel in panels()] == [panel["title"] for panel in dashboard]
    assert [[query.expression for query in panel.queries] for panel in panels()] == [
        [target["expr"] for target in panel["targets"]] for panel in dashboard
    ]
    assert all(panel.queries for panel in panels())
    assert len({panel.title for panel in panels()}) == len(panels())
    assert EMPTY.keys() <= {panel.title for panel in panels()}


def test_no_variable_of_grafana_is_left_in_a_query() -> None:
    filled = [query.filled(180) for panel in panels() for query in panel.queries]
    assert [query for query in filled if "$" in query] == []
    assert Query('a{topic=~"$topic"}[$__range]', "").filled(180) == 'a{topic=~".*"}[180s]'


def test_a_series_has_the_name_of_its_legend() -> None:
    assert Query("", "{{topic}}[{{partition}}]").name({"topic": "a", "partition": "0"}) == "a[0]"


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_of_each_kind_of_page_is_committed_and_is_small(theme: str) -> None:
    picture = (PICTURES / f"dashboard-{theme}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 800_000
    assert f"(dashboard-{theme}.png#gh-{theme}-mode-only)" in (PICTURES / "operations.md").read_text()
