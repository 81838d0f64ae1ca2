"""A researcher opens the notebooks: what they see, hear and touch answers as it should."""

import re
import time

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TO_THE_TOP = "element => element.scrollIntoView({block: 'start'})"
DECODE = """async audio => {
    const bytes = await (await fetch(audio.src)).arrayBuffer();
    return (await new AudioContext().decodeAudioData(bytes)).duration;
}"""


def run_all(page):
    page.locator(".jp-Notebook").first.wait_for(timeout=60_000)
    page.get_by_text(re.compile(r"Python 3 \(ipykernel\) \| Idle")).wait_for(timeout=60_000)
    page.wait_for_timeout(500)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()


def at_rest(page, timeout=200_000):
    """Until all cells have run."""
    page.wait_for_timeout(1000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=timeout)


def until_changed(read, before, timeout=20.0):
    """The new value, and the seconds it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < timeout:
        if (now := read()) != before and "working" not in str(now):
            return now, time.monotonic() - begin
        time.sleep(0.01)
    raise AssertionError(f"still {before!r}")


def sound(watch):
    """Nothing went wrong on the pages, and nothing left the machine."""
    assert watch.outside == []
    assert watch.errors == []


def test_perturbations_are_explored(lab, opened, shot, film):
    open_page, watch = opened
    page = open_page(lab("03_attacks"))
    run_all(page)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for(timeout=60_000)
    at_rest(page)
    explorer = page.locator(".fedser-perturbation")
    explorer.evaluate(TO_THE_TOP)

    def status():
        return explorer.locator(".fedser-status").inner_text()

    def picture():
        return explorer.locator("img").first.get_attribute("src")

    page.wait_for_timeout(1000)  # the figures above it have been drawn
    explorer.evaluate(TO_THE_TOP)
    shot(page, "perturbation")
    film(page, 2)
    line, image = status(), picture()
    handle.focus()
    page.keyboard.press("ArrowRight")
    line, seconds = until_changed(status, line)
    print(f"epsilon by keyboard: {1000 * seconds:.0f} ms: {line}")
    assert "largest change 0.1" in line
    assert picture() != image
    for seconds in (1.5, 1.5):
        film(page, seconds)
        page.keyboard.press("ArrowRight")
        line, _ = until_changed(status, line)
    image, box = picture(), explorer.locator(".noUi-base").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    line, seconds = until_changed(status, line)
    print(f"epsilon by mouse: {1000 * seconds:.0f} ms: {line}")
    assert "largest change 1" in line
    assert picture() != image
    film(page, 2)
    for name in ("FGSM", "PGD"):
        line = status()
        explorer.get_by_label("Attack").select_option(name)
        line, _ = until_changed(status, line)
        film(page, 1.5)
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
        line, _ = until_changed(status, line)
    explorer.get_by_role("button", name="New draw").click()
    strip = explorer.locator(".fedser-strip")
    until_changed(strip.inner_text, "")
    explorer.evaluate(TO_THE_TOP)
    page.wait_for_timeout(500)
    film(page, 2)
    decisions = explorer.locator(".fedser-decisions")
    said = {decisions.inner_text()}
    for _ in range(3):
        line = status()
        explorer.get_by_role("button", name="New draw").focus()
        page.keyboard.press("Enter")
        until_changed(status, line)
        film(page, 1.5)
        said.add(decisions.inner_text())
        assert re.search(r"\d+ of 30 draws are recognised", strip.inner_text())
    assert len(said) > 1
    shot(page, "perturbation-defended")
    explorer.get_by_role("button", name="Listen").click()
    players = explorer.locator("audio")
    players.first.wait_for(state="attached", timeout=60_000)
    assert players.count() == 3
    players.last.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    film(page, 2.5)
    for number in range(3):
        assert players.nth(number).evaluate(DECODE) > 1
    sound(watch)


def test_confusions_are_explored(lab, opened, shot):
    open_page, watch = opened
    page = open_page(lab("05_analysis"))
    run_all(page)
    explorer = page.locator(".fedser-confusions")
    explorer.wait_for(timeout=60_000)
    at_rest(page)
    explorer.scroll_into_view_if_needed()
    cells = explorer.locator("button.fedser-cell")
    assert cells.count() == 49

    def numbers():
        return cells.all_inner_texts()

    before = numbers()
    handle = explorer.locator(".noUi-handle").first
    handle.focus()
    page.keyboard.press("ArrowLeft")
    _, seconds = until_changed(numbers, before)
    print(f"another round: {1000 * seconds:.0f} ms")
    page.wait_for_timeout(500)  # the cells change one by one
    after = numbers()
    filled = [place for place, text in enumerate(after) if re.match("[1-9]", text)]
    cells.nth(filled[0]).focus()
    page.keyboard.press("Enter")
    players = explorer.locator("audio")
    players.first.wait_for(state="attached", timeout=30_000)
    assert players.first.evaluate(DECODE) > 0.5
    assert explorer.locator("img").count() >= players.count()
    first = players.first.get_attribute("src")
    cells.nth(filled[1]).click()
    until_changed(lambda: players.first.get_attribute("src"), first)
    shot(page, "confusions")
    sound(watch)


def test_the_monitor_survives_a_closed_tab(lab, opened, shot, study):
    open_page, watch = opened
    page = open_page(lab("02_fl_advtrain"))
    run_all(page)
    line = page.locator(".fedser-monitor")
    line.get_by_text("of 3 clients replied").wait_for(timeout=90_000)
    line.scroll_into_view_if_needed()
    shot(page, "monitor")
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1000)
    before = line.inner_text()
    page.close()
    page = open_page(lab("02_fl_advtrain"))
    line = page.locator(".fedser-monitor")
    line.wait_for(timeout=60_000)
    print(f"closed at: {before}; opened again: {line.inner_text()}")
    line.get_by_text(re.compile("round 8 of 8, finished")).wait_for(timeout=120_000)
    line.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    shot(page, "monitor-again")
    assert "missing: nobody" in line.inner_text()
    assert watch.outside == []


def test_the_dashboard_is_a_page_of_its_own(dashboard, opened, shot):
    open_page, watch = opened
    page = open_page(dashboard)
    page.get_by_text("-fgsm-s0-").first.wait_for(timeout=90_000)
    page.wait_for_timeout(1000)
    shot(page, "dashboard")
    assert not page.get_by_text("notebook_settings").is_visible()  # no source code
    status = page.get_by_text(re.compile("^Runs in")).first
    line = status.inner_text()
    page.get_by_role("button", name="Refresh").click()
    until_changed(status.inner_text, line)  # it says when it looked
    sound(watch)
