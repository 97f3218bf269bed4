"""The desk in a real browser: ten cases by keyboard, undo, the slider, a phone, accessible names, contrast.

And not one request to another machine.
"""

import json
import os
import re
import shutil
from contextlib import contextmanager
from functools import partial

import pytest
import sqlalchemy as sa
from support import desk_data, desk_server
from support.waiting import CLICK

from fraud_poc.core.database import writing
from fraud_poc.desk.tables import cases, labels
from fraud_poc.service.keys import list_keys, new_key

CHROMIUM = next(
    (
        path
        for path in (
            os.environ.get("CHROMIUM"),
            "/usr/bin/chromium",
            shutil.which("chromium"),
            shutil.which("chromium-browser"),
            shutil.which("google-chrome"),
        )
        if path and os.path.exists(path)
    ),
    None,
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: `apt-get install chromium`, or name one with CHROMIUM")
]


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=CLICK)
        playwright.expect.set_options(timeout=CLICK)
        yield browser
        browser.close()


@pytest.fixture
def desk(tmp_path):
    made = desk_server.make_desk(tmp_path, count=900)
    with desk_server.served(made) as url:
        made.url = url
        yield made


@contextmanager
def person(chromium, desk, name="analyst-1", **context):
    "A page of somebody who is logged in; afterwards nothing was wrong in the console, and nothing was asked of others."
    wrong = []
    opened = (
        chromium.new_context(viewport={"width": 1280, "height": 860}, **{"reduced_motion": "reduce"} | context)
        if "viewport" not in context
        else chromium.new_context(**context)
    )
    opened.set_default_timeout(CLICK)
    page = opened.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((desk.url, "data:", "blob:")) or wrong.append(f"asked {request.url}"),
    )
    cookie, token, _ = desk_server.logged_in(desk, name)
    secure = {"secure": True, "httpOnly": True, "sameSite": "Strict"}
    opened.add_cookies([{"name": cookie, "value": token, "domain": "127.0.0.1", "path": "/desk", **secure}])
    page.goto(f"{desk.url}/queue")
    try:
        yield page
    finally:
        opened.close()
    assert wrong == []


def statuses(desk) -> dict[int, str]:
    with desk.engine.connect() as connection:
        return dict(connection.execute(sa.select(cases.c.decision_id, cases.c.status)).all())


def test_ten_cases_by_keyboard_and_one_undone(chromium, desk):
    queue, keys = desk_server.open_numbers(desk.engine), "fccfcffccf"
    with person(chromium, desk) as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/case/{queue[0]}")
        page.keyboard.press("n")
        page.keyboard.type("stolen card, the customer f c u said")  # letters in a note are no shortcuts
        page.keyboard.press("Escape")
        for place, key in enumerate(keys):
            page.keyboard.press(key)
            page.wait_for_url(re.compile(rf"case/{queue[place + 1]}\b"))
        assert [change.fraud for change in desk.log.changes] == [key == "f" for key in keys]
        page.keyboard.press("u")
        page.wait_for_url(re.compile(rf"case/{queue[9]}\b"))
        assert page.get_by_role("button", name="Flag as fraud").is_visible()
        desk.log.write()
        page.reload()
        shown = page.locator(".labels li").all_inner_texts()
        assert (
            len(shown) == 2
            and "fraud analyst analyst-1" in shown[0]
            and "was retracted by analyst-1" in shown[1]
            and "counts as unresolved" in shown[1]
        )
    found = statuses(desk)
    assert [found[number] for number in queue[:10]] == ["flagged" if key == "f" else "cleared" for key in keys[:9]] + [
        "open"
    ]
    with desk.engine.connect() as connection:
        rows = (
            connection.execute(sa.select(labels).where(labels.c.position > 10_000).order_by(labels.c.position))
            .mappings()
            .all()
        )
    assert (
        len(rows) == 11
        and rows[0]["note"] == "stolen card, the customer f c u said"
        and [row["asserted"] for row in rows] == [int(key == "f") for key in keys + keys[-1]]
        and rows[10]["retracts"] == rows[9]["position"]
    )


def test_the_slider_changes_the_counts(chromium, desk):
    with person(chromium, desk, "viewer-1") as page:
        page.get_by_role("link", name="Trends").click()
        chosen, saved = page.locator("[data-count=chosen]"), page.locator("[data-count=saved]")
        before, marker = float(chosen.inner_text()), page.evaluate("window.here = 1")
        slider = page.get_by_role("slider")
        slider.focus()
        for _ in range(9):
            page.keyboard.press("ArrowRight")
        playwright.expect(chosen).not_to_have_text(f"{before:,.1f}")
        assert float(chosen.inner_text()) < before and page.evaluate("window.here") == marker == 1, (
            "the page was loaded again"
        )
        money = saved.inner_text()
        page.get_by_label("Cost of a reviewer's hour").fill("4000")
        playwright.expect(saved).not_to_have_text(money)
        page.get_by_label("Reviews a day").fill("0")
        playwright.expect(page.locator("[data-count=reviewed]")).to_have_text("0.0")
        assert page.locator("[data-trend] canvas").count() == 5 and page.locator(
            "[data-tile=events]"
        ).inner_text() not in ("…", "0")
        page.goto(f"{desk.url}/queue")


def test_filters_more_rows_and_live_updates(chromium, desk):
    with writing(desk.engine) as connection:
        waiting = connection.execute(sa.select(cases.c.decision_id, cases.c.band).where(cases.c.status == "open")).all()
    with person(chromium, desk) as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "find"
        page.keyboard.type("no such thing")
        playwright.expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
        playwright.expect(page).to_have_url(re.compile("find=no.such.thing"))
        page.get_by_role("link", name="Clear the filters").click()
        page.get_by_label("Risk").select_option("high")
        playwright.expect(page.locator(".count b")).to_have_text(str(sum(band == "high" for _, band in waiting)))
        assert "band=high" in page.url
        page.get_by_label("Risk").select_option("")
        playwright.expect(page.locator(".count b")).to_have_text(str(len(waiting)))
        first = page.locator("#rows tr").first.get_attribute("id")
        desk_data.fill(desk.engine, desk.settings, desk_server.SECRET, desk.now, 400, 2, first=5000, seed=9)
        with writing(desk.engine) as connection:
            number = int(page.locator("#rows tr").nth(2).get_attribute("id").removeprefix("case-"))
            connection.execute(
                sa.update(cases)
                .where(cases.c.decision_id == number)
                .values(status="cleared", closed=desk.now, closed_by="analyst-2")
            )
        fresh = page.locator("#pulse a")
        playwright.expect(fresh).to_contain_text("new · show")
        playwright.expect(page.locator(f"#case-{number} .age")).to_have_text("cleared by analyst-2")
        assert page.locator("#rows tr").first.get_attribute("id") == first, "rows jumped"
        fresh.click()
        playwright.expect(page.locator(".count b")).not_to_have_text(str(len(waiting)))
        shown = page.locator("#rows tr[id^=case]").count()
        page.get_by_role("link", name=re.compile("Show .* more")).click()
        playwright.expect(page.locator("#rows tr[id^=case]")).not_to_have_count(shown)
        page.get_by_label("By customer").check()
        playwright.expect(page.get_by_role("columnheader", name="Customer")).to_be_visible()


def test_the_last_text_typed_is_the_filter_while_answers_are_slow(chromium, desk):
    "Texts typed while answers are under way replace them: the queue ends at the whole text, without a notice."
    with person(chromium, desk) as page:
        asked = []

        def slowly(route):
            asked.append(route.request.url)
            page.wait_for_timeout(600)
            route.continue_()

        page.route("**/queue?*", slowly)
        find = page.get_by_label("Find")
        for text in ("o", "o4", "o48", "no such thing"):
            find.fill(text)
            page.wait_for_timeout(450)
        playwright.expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
        playwright.expect(page).to_have_url(re.compile("find=no.such.thing"))
        assert len(asked) > 1, "no answer was under way when the next text was typed"
        assert page.locator("#notice").is_hidden()


EARLY = """document.addEventListener("readystatechange", () => {
  const field = document.querySelector("#find, #what-if [name=step]");
  if (field && document.readyState === "interactive") field.value = field.id ? "no such thing" : 9;
});"""


def test_what_is_changed_before_the_scripts_are_there_applies(chromium, desk):
    "The text of the queue's filter, and the slider of Trends with the number beside it."
    with person(chromium, desk) as page:
        page.goto(f"{desk.url}/trends")
        chosen, threshold = page.locator("[data-count=chosen]"), page.locator("#threshold")
        before, steps = chosen.inner_text(), json.loads(threshold.get_attribute("data-steps"))
        page.add_init_script(EARLY)
        page.reload()
        playwright.expect(chosen).not_to_have_text(before)
        playwright.expect(threshold).to_have_text(str(steps[9]))
        page.goto(f"{desk.url}/queue")
        playwright.expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
        playwright.expect(page).to_have_url(re.compile("find=no.such.thing"))


def test_a_colleague_closes_the_case_on_the_screen(chromium, desk):
    number = desk_server.open_numbers(desk.engine)[0]
    with person(chromium, desk) as page:
        page.goto(f"{desk.url}/case/{number}")
        with writing(desk.engine) as connection:
            connection.execute(
                sa.update(cases)
                .where(cases.c.decision_id == number)
                .values(status="flagged", closed=desk.now, closed_by="analyst-2", note="called the bank")
            )
        playwright.expect(page.locator("#decision .gone")).to_contain_text("Flagged by analyst-2")
        assert (
            page.get_by_role("button", name="Clear").count() == 0 and page.get_by_text("called the bank").is_visible()
        )


LIGHT = """colour => {
  const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  c.fillStyle = colour; c.fillRect(0, 0, 1, 1);
  return [...c.getImageData(0, 0, 1, 1).data];
}"""
CHECK = """() => {
  const read = READ_COLOUR, wrong = [];
  const seen = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length;
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = read(getComputedStyle(e).backgroundColor);
      if (c[3] > 250) return c;
    }
    return read('Canvas');
  };
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !seen(e) || e.closest('dialog, .skip, [aria-hidden=true]')) continue;
    const style = getComputedStyle(e), a = light(read(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const what = `${e.tagName} ${e.className} "${e.textContent.trim().slice(0, 30)}"`;
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${what}`);
  }
  for (const e of document.querySelectorAll('[role=img]'))
    if (!e.getAttribute('aria-label')) wrong.push('a picture without a name');
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) wrong.push(`the page is ${width} wide`);
  return wrong;
}""".replace("READ_COLOUR", LIGHT)


def unnamed(page) -> list[str]:
    "Controls that a screen reader could not name, from the browser's own accessibility tree."
    roles = {
        "button",
        "link",
        "textbox",
        "searchbox",
        "checkbox",
        "combobox",
        "slider",
        "spinbutton",
        "MenuListPopup",
        "radio",
    }
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node.get("role", {}).get("value") in roles
    ]
    assert found, "the page has no controls"
    return [role for role, name in found if not name.strip() and role != "MenuListPopup"]


@pytest.mark.parametrize("width", [1280, 320])
def test_every_page_is_readable_and_every_control_has_a_name(chromium, desk, width):
    number = desk_server.open_numbers(desk.engine)[1]
    with desk.engine.connect() as connection:
        done = connection.execute(sa.select(cases.c.decision_id).where(cases.c.status != "open").limit(1)).scalar()
    with person(chromium, desk, "admin-1", viewport={"width": width, "height": 844}) as page:
        for path in (
            "queue",
            "queue?group=customer",
            "queue?status=flagged",
            f"case/{number}",
            f"case/{number}?done={done}",
            f"case/{done}",
            "trends",
            "accounts",
            "audit",
            "queue?find=nothing",
            "queue?find=O4",
            "queue?status=all",
        ):
            page.goto(f"{desk.url}/{path}")
            if path == "trends":
                playwright.expect(page.locator("#trends-state")).to_have_text("")
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                assert page.evaluate(CHECK) == [], (path, scheme)
            assert unnamed(page) == [], path
        page.goto(f"{desk.url}/queue")
        page.keyboard.press("?")
        assert page.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
        page.keyboard.press("Escape")
        page.goto(f"{desk.url}/queue")
        page.keyboard.press("Tab")
        assert page.get_by_role("link", name="Skip to the content").bounding_box()["x"] >= 0


def test_tables_and_menu_of_an_administrator_fit_a_telephone(chromium, desk):
    "Each value stands beside its head, none is behind the edge, and every page is one tap away."
    long = "a-key-of-" + "x" * 40
    site = next(route.app for route in desk.app.routes if getattr(route, "path", "") == "/desk").state.site
    new_key(desk.engine, long, ["score", "labels", "read", "metrics"], "tests")
    site.read_keys = partial(list_keys, desk.engine)
    with person(chromium, desk, "admin-1", viewport={"width": 320, "height": 700}) as page:
        for path in ("accounts", "keys", "audit"):
            page.goto(f"{desk.url}/{path}")
            assert (
                page.evaluate(CHECK) == []
                and page.evaluate("""[...document.querySelectorAll('.scroll, nav')].filter(
                e => e.scrollWidth > e.clientWidth).map(e => e.className || e.tagName)""")
                == []
            ), path
            right = [box["x"] + box["width"] for box in (a.bounding_box() for a in page.locator("nav a").all())]
            assert len(right) == 5 and max(right) <= 320
            head = page.locator("td").first.evaluate("e => getComputedStyle(e, '::before').content")
            assert head == {"audit": '"Number"'}.get(path, '"Name"')
            if path != "accounts":
                assert page.get_by_text(long).first.is_visible()
        assert "scopes: labels, metrics, read, score" in page.locator("main").inner_text()


def test_a_search_finds_all_and_the_status_follows(chromium, desk):
    with person(chromium, desk) as page:
        status, find = page.get_by_label("Status"), page.get_by_label("Find")
        assert status.input_value() == "" and page.locator("#rows tr").count() > 0
        find.fill("O48")
        playwright.expect(page.locator("h1")).to_have_text("All events")
        playwright.expect(page.locator(".chip.pass").first).to_be_visible()
        assert status.evaluate("e => e.selectedOptions[0].text") == "all" and "status=&" in page.url
        status.select_option("cleared")
        playwright.expect(page.locator("h1")).to_have_text("Cleared cases")
        find.fill("")
        playwright.expect(page.locator("h1")).to_have_text("Cleared cases")
        status.select_option("")
        playwright.expect(page.locator("h1")).to_have_text("Open cases")
        assert find.input_value() == ""


def test_charts_show_few_counts_and_say_when_there_is_nothing(chromium, tmp_path):
    few = desk_server.make_desk(tmp_path, count=3)
    with desk_server.served(few) as few.url, person(chromium, few) as page:
        page.goto(f"{few.url}/trends")
        playwright.expect(page.locator("#trends-state")).to_have_text("")
        empty = {
            name: page.locator(f'[data-trend="{name}"]').get_attribute("data-empty") for name in ("volume", "scores")
        }
        assert empty == {"volume": None, "scores": None}
        heights = page.evaluate("""() => {
          const chart = echarts.getInstanceByDom(document.querySelector('[data-trend="scores"]'));
          const drawn = chart.getModel().getSeriesByIndex(0).getData();
          return chart.getOption().series[0].data.map((value, i) => value && Math.abs(drawn.getItemLayout(i).height));
        }""")
        shown = [height for height in heights if height is not None]
        assert shown and min(shown) > 5, "the bar of a single event is not seen"
    nothing = desk_server.make_desk(tmp_path / "nothing", count=0)
    with desk_server.served(nothing) as nothing.url, person(chromium, nothing) as page:
        page.goto(f"{nothing.url}/trends")
        for name in ("volume", "saved", "rates", "scores", "ages"):
            chart = page.locator(f'[data-trend="{name}"]')
            playwright.expect(chart).to_have_attribute("data-empty", re.compile(r"^No"))


def test_a_phone_can_do_the_work(chromium, desk):
    queue = desk_server.open_numbers(desk.engine)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with person(chromium, desk, **phone) as page:
        assert not page.get_by_label("Risk").is_visible()
        page.get_by_role("button", name="More filters").tap()
        assert page.get_by_label("Risk").is_visible()
        page.locator("#rows tr").first.tap()
        page.wait_for_url(f"**/case/{queue[0]}")
        button = page.get_by_role("button", name="Flag as fraud")
        box = button.bounding_box()
        assert box["y"] + box["height"] <= 844 and box["height"] >= 40, "the decision is not within reach of a thumb"
        button.tap()
        page.wait_for_url(re.compile(rf"case/{queue[1]}\b"))
        page.get_by_role("button", name="Undo").tap()
        page.wait_for_url(re.compile(rf"case/{queue[0]}\b"))
    assert [type(change).__name__ for change in desk.log.changes] == [
        "LabelAssertion",
        "Retraction",
    ] and desk.log.changes[0].fraud


def test_what_fails_is_said(chromium, tmp_path):
    made = desk_server.make_desk(tmp_path, count=300)
    opened = chromium.new_context()
    opened.set_default_timeout(CLICK)
    with desk_server.served(made) as url:
        page = opened.new_page()
        page.goto(f"{url}/login")
        page.get_by_label("Account").fill("analyst-1")
        page.get_by_label("Password").fill("not the password")
        page.keyboard.press("Enter")
        assert "Name or password is wrong" in page.get_by_role("alert").inner_text()
        page.get_by_label("Password").fill(desk_server.PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/queue")
        page.goto(f"{url}/case/{desk_server.open_numbers(made.engine)[0]}")
        made.log.down = True
        page.get_by_label("Note").fill("my words")
        page.get_by_role("button", name="Clear").click()
        assert (
            "did not confirm" in page.get_by_role("alert").inner_text()
            and page.get_by_label("Note").input_value() == "my words"
        )
        page.goto(f"{url}/trends")
        page.route("**/trends/data*", lambda route: route.abort())
        page.reload()
        playwright.expect(page.locator("#trends-state")).to_contain_text("could not be loaded")
        page.goto(f"{url}/queue")
        page.route("**/queue?*", lambda route: route.abort())
        page.get_by_label("Risk").select_option("high")
        playwright.expect(page.locator("#notice")).to_contain_text("does not answer")
    opened.close()
