"""The annotation page as people use it: a real headless Chromium on the real command."""

import re
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on the PATH: install the package chromium to run these", allow_module_level=True)
pytest.importorskip("starlette", reason="the annotation app needs diffusers_ext[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")

from annotation import candidates, lines_of, served  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

expect.set_options(timeout=20_000)
EVIL = '<img src=x onerror="document.title=1"><script>document.title=1</script>" onload="document.title=1'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return candidates(tmp_path_factory.mktemp("browser") / "candidates")


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, "--port", "0") as (_, address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page in a browser profile of its own, or in another page's; whatever goes wrong on it fails the test."""
    contexts, faults = [], []

    def open_page(address: str, beside: Page | None = None) -> Page:
        if beside is None:
            contexts.append(browser.new_context(viewport={"width": 1440, "height": 900}))
        page = beside.context.new_page() if beside else contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def enter(page: Page, name: str) -> Page:
    page.get_by_label("Name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(3)
    return page


def press(page: Page, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def numbers(page: Page) -> list[int]:
    """Return which of the prompt's images stand on the page, by their numbers in the table."""
    sources = page.locator(".card img").evaluate_all("images => images.map(image => image.src)")
    return [int(source.split("?")[0].rsplit("/", 1)[-1]) for source in sources]


def ranks(page: Page) -> list[str]:
    """Return the ladder from the best rank down, each rank as its letters."""
    return ["".join(slot.split()[1:]) for slot in page.locator(".slot").all_inner_texts()]


def judge_all_alike(page: Page) -> None:
    press(page, "4 4 4  4 4 4  4 4 4  r Enter")


def drag(page: Page, source: str, target: str) -> None:
    """Drag with the real mouse; the gaps between ranks open only while something is dragged."""
    page.locator(source).hover()
    page.mouse.down()
    page.mouse.move(5, 5, steps=3)
    box = page.locator(target).bounding_box()
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


def test_a_whole_session_by_keyboard(visit, folder, address):
    page = enter(visit(address), "Keys")
    assert "token" not in page.url
    shown = []
    for at in range(3):
        expect(page.locator("#count")).to_have_text(f"{at} of 3")
        shown.append(numbers(page))
        press(page, "6 5 4")  # A, one axis after the other
        expect(page.locator(".card.selected")).to_have_attribute("data-image", "1")
        press(page, "2 2 2  7 7 7")  # B and C
        press(page, "Shift+A c l l")  # limbs given and taken back
        press(page, "h r")  # C, A, B by overall rating
        assert ranks(page) == ["C", "A", "B"]
        press(page, "Shift+B ArrowUp")
        assert ranks(page) == ["C", "B", "A"]
        expect(page.locator("#warnings")).to_contain_text("B is ranked above A, but rated lower overall (2 and 6)")
        press(page, "z t")  # back, then B into a tie with A
        assert ranks(page) == ["C", "AB"]
        expect(page.locator("#warnings")).to_be_empty()
        press(page, "o 3 z Shift+Z")  # another rating of B, undone and done again
        press(page, "Enter")
        expect(page.locator("#count")).to_have_text(f"{at + 1} of 3")
    expect(page.get_by_text("All prompts are judged")).to_be_visible()
    lines = lines_of(folder, "keys")
    assert len({line["id"] for line in lines}) == 3
    for line, order in zip(lines, shown):
        assert line["display"]["shown"] == order and line["prompt_flags"] == ["harmful"]
        (ranking,) = line["rankings"]
        by_letter = {letter: number for letter, number in zip("ABC", order)}
        assert [ranking["ranking"][by_letter[letter]] for letter in "ABC"] == [2, 2, 1]
        assert ranking["ratings"][by_letter["A"]] == {"overall": 6, "alignment": 5, "fidelity": 4}
        assert ranking["ratings"][by_letter["B"]] == {"overall": 3, "alignment": 2, "fidelity": 2}
        assert ranking["issues"][by_letter["A"]] == ["conflict"] and ranking["issues"][by_letter["B"]] == []
        assert 0 < ranking["time_s"] < 60


def test_a_correction_goes_back_and_is_one_more_line(visit, folder, address):
    page = enter(visit(address), "correct")
    judge_all_alike(page)
    expect(page.locator("#count")).to_have_text("1 of 3")
    press(page, "b")
    expect(page.locator("#message")).to_contain_text("Judged before")
    assert ranks(page) == ["ABC"]
    press(page, "Enter")  # nothing was changed: nothing is written
    expect(page.locator("#message")).not_to_contain_text("Judged before")
    press(page, "b")
    expect(page.locator("#message")).to_contain_text("Judged before")
    press(page, "Shift+C ArrowUp Enter")
    expect(page.locator("#message")).to_have_text("Saved.")
    lines = lines_of(folder, "correct")
    assert [line["revision"] for line in lines] == [1, 2] and len({line["id"] for line in lines}) == 1
    expect(page.locator("#count")).to_have_text("1 of 3")


def test_images_are_dragged_into_ranks_and_ties(visit, address):
    page = enter(visit(address), "mouse")
    drag(page, '.thumb[data-thumb="0"]', '[data-gap="0"]')
    assert ranks(page) == ["A"]
    drag(page, '.card[data-image="1"] .picture', '[data-gap="0"]')  # the large picture can be taken, too
    assert ranks(page) == ["B", "A"]
    drag(page, '.thumb[data-thumb="2"]', '[data-slot="1"]')
    assert ranks(page) == ["B", "AC"]
    drag(page, '.thumb[data-thumb="0"]', '[data-gap="2"]')
    assert ranks(page) == ["B", "C", "A"]
    drag(page, '.thumb[data-thumb="1"]', "#tray")
    assert ranks(page) == ["C", "A"]
    drag(page, '.thumb[data-thumb="2"]', "#prompt")  # let go elsewhere: as it was
    assert ranks(page) == ["C", "A"] and page.locator(".ghost").count() == 0
    press(page, "z")
    assert ranks(page) == ["B", "C", "A"]
    page.locator('.card[data-image="2"]').get_by_role("radio", name="Fidelity 3").click()
    expect(page.get_by_role("radio", name="Fidelity 3").nth(2)).to_have_attribute("aria-checked", "true")
    page.locator('.card[data-image="2"]').get_by_role("button", name="toxic").click()
    expect(page.locator('.card[data-image="2"] .chip[data-word="toxic"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")  # the click did not leave the focus on a button: this saves, or says what is missing
    expect(page.locator("#message")).to_contain_text("Still to do: overall of A")


def test_fast_fingers_are_not_lost_while_the_server_is_asked(visit, address):
    page = enter(visit(address), "fast")
    held = []
    page.route("**/api/judgement", lambda route: held.append(route))
    with page.expect_request("**/api/judgement"):
        press(page, "4 4 4  4 4 4  4 4 4  r Enter")
    press(page, "7 6 5")
    expect(page.locator("#count")).to_have_text("0 of 3")
    held[0].continue_()
    expect(page.locator("#count")).to_have_text("1 of 3")
    expect(page.locator(".card.selected")).to_have_attribute("data-image", "1")
    assert page.locator('.card[data-image="0"] [aria-checked="true"]').all_inner_texts() == ["7", "6", "5"]


def test_enter_says_what_is_missing_and_leads_there(visit, address):
    page = enter(visit(address), "missing")
    press(page, "4 4 4  4 4 4  4 4  r Shift+A Enter")
    expect(page.locator("#message")).to_have_text("Still to do: fidelity of C.")
    expect(page.locator('.card.selected[data-image="2"] .rating.active')).to_have_attribute("data-axis", "fidelity")
    expect(page.locator("#count")).to_have_text("0 of 3")
    press(page, "4 Enter")
    expect(page.locator("#count")).to_have_text("1 of 3")


def test_a_contradiction_warns_and_does_not_block(visit, folder, address):
    page = enter(visit(address), "warned")
    press(page, "1 1 1  2 2 2  3 3 3  Shift+A ArrowDown Shift+B ArrowDown Shift+C ArrowDown")
    expect(page.locator("#warnings")).to_contain_text("A is ranked above B")
    press(page, "Enter")
    expect(page.locator("#count")).to_have_text("1 of 3")
    assert len(lines_of(folder, "warned")) == 1


def test_a_reload_in_the_middle_brings_all_back(visit, folder, address):
    page = enter(visit(address), "reload")
    judge_all_alike(page)
    expect(page.locator("#count")).to_have_text("1 of 3")
    press(page, "7 6 5  4 3  x t")
    before, order = ranks(page), numbers(page)
    page.reload()
    expect(page.locator("#message")).to_contain_text("not saved yet")
    assert page.locator(".card").count() == 3 and numbers(page) == order and ranks(page) == before
    assert page.locator('.card[data-image="0"] [aria-checked="true"]').all_inner_texts() == ["7", "6", "5"]
    assert page.locator('.card[data-image="1"] [aria-checked="true"]').all_inner_texts() == ["4", "3"]
    expect(page.locator('.card[data-image="1"] .chip[data-word="toxic"]')).to_have_attribute("aria-pressed", "true")
    press(page, "Shift+B 2 Shift+C 1 1 1 r Enter")
    expect(page.locator("#count")).to_have_text("2 of 3")
    assert len(lines_of(folder, "reload")) == 2
    fresh = enter(visit(address), "RELOAD ")  # another browser, the same person
    expect(fresh.locator("#count")).to_have_text("2 of 3")
    assert fresh.url.endswith("annotator=reload#3")


def test_two_people_at_once_and_their_agreement(visit, folder, address):
    ada, bob = enter(visit(address), "ada"), enter(visit(address), "bob")
    for at in range(3):
        for page, best in ((ada, 0), (bob, 0 if at else 2)):  # by number in the table: they differ on one prompt
            for place, number in enumerate(numbers(page)):
                press(page, f"Shift+{'ABC'[place]} {' '.join(3 * [str(7 - (number - best) % 3)])}")
            press(page, "r")
        press(ada, "Enter")
        press(bob, "Enter")
        for page in (ada, bob):
            expect(page.locator("#count")).to_have_text(f"{at + 1} of 3")
    assert len(lines_of(folder, "ada")) == len(lines_of(folder, "bob")) == 3
    press(bob, "g")
    row = bob.get_by_role("row", name="ada and bob")
    expect(row).to_be_visible(timeout=60_000)  # the first report waits for scipy to load
    # Prompts meet in different orders, so bob's odd one is some prompt: 9 pairs, of which that prompt turns two round.
    assert row.get_by_role("cell").all_inner_texts() == ["ada and bob", "9", "78 %", "0.56"]
    expect(bob.get_by_role("row", name="ada 3 of 3")).to_be_visible()
    press(bob, "Escape")
    expect(bob.get_by_text("All prompts are judged")).to_be_visible()


def test_two_windows_of_one_person_lose_nothing(visit, folder, address):
    one = enter(visit(address), "twice")
    other = visit(one.url, beside=one)
    expect(other.locator(".card")).to_have_count(3)
    press(one, "1 1 1  1 1 1  1 1 1  r")
    press(other, "7 7 7  7 7 7  7 7 7  r Enter")
    expect(other.locator("#count")).to_have_text("1 of 3")
    press(one, "Enter")
    expect(one.locator("#message")).to_contain_text("judged in another window")
    assert len(lines_of(folder, "twice")) == 1
    press(one, "Enter")
    expect(one.locator("#count")).to_have_text("1 of 3")
    lines = lines_of(folder, "twice")
    assert [line["rankings"][0]["ratings"][0]["overall"] for line in lines] == [7, 1]
    assert [line["revision"] for line in lines] == [1, 2]


def test_the_other_windows_judgement_can_be_taken_instead(visit, folder, address):
    one = enter(visit(address), "instead")
    other = visit(one.url, beside=one)
    expect(other.locator(".card")).to_have_count(3)
    press(other, "7 7 7  7 7 7  7 7 7  r Enter")
    expect(other.locator("#count")).to_have_text("1 of 3")
    press(one, "1 1 1  1 1 1  1 1 1  r Enter")
    one.get_by_role("button", name="Show the other").click()
    expect(one.locator("#message")).to_contain_text("Judged before")
    assert one.locator('.card[data-image="0"] [aria-checked="true"]').all_inner_texts() == ["7", "7", "7"]
    assert len(lines_of(folder, "instead")) == 1


def test_a_server_that_dies_costs_nothing_that_was_entered(visit, tmp_path):
    folder = candidates(tmp_path)
    with served(folder, "--port", "0") as (_, address, _):
        page = enter(visit(address), "ada")
        judge_all_alike(page)
        expect(page.locator("#count")).to_have_text("1 of 3")
        press(page, "5 5 5  5 5 5  5 5 5  r")
    press(page, "Enter")
    expect(page.locator("#message")).to_contain_text("Not saved. The server does not answer")
    port = address.split("/?")[0].rsplit(":", 1)[-1]
    with served(folder, "--port", port, "--annotator", "ada"):
        press(page, "Enter")  # the token is the same, so the page that was open saves
        expect(page.locator("#count")).to_have_text("2 of 3")
    assert len(lines_of(folder, "ada")) == 2


def test_texts_are_shown_as_texts(visit, tmp_path):
    folder = candidates(tmp_path, prompts=(EVIL, "a", "b"))
    with served(folder, "--port", "0") as (_, address, _):
        page = enter(visit(address), "Zoë")
        while EVIL not in page.locator("#prompt").all_inner_texts():
            press(page, "n")
            page.wait_for_timeout(100)
        assert page.locator("#prompt *").count() == 0 and page.title() == "Annotate: zoë"
        page.goto(address.split("?")[0] + "?annotator=" + "%3Cimg src=x onerror=alert(1)%3E")
        expect(page.locator("#name-error")).to_contain_text("give a name of letters")
        assert page.locator("#name-error *").count() == 0


def test_screen_readers_and_keyboards_find_everything(visit, address):
    page = enter(visit(address), "reader")
    expect(page.get_by_role("group", name="image A: not ranked, overall –")).to_be_focused()
    press(page, "5")
    expect(page.get_by_role("status").filter(has_text="A: overall 5")).to_be_visible()
    expect(page.get_by_role("group", name="image A: not ranked, overall 5, alignment –")).to_be_visible()
    press(page, "ArrowDown")
    expect(page.get_by_role("listitem", name="rank 1: A")).to_be_visible()
    unnamed = page.locator("button:visible").evaluate_all(
        "all => all.filter(each => !(each.textContent.trim() || each.ariaLabel)).length"
    )
    assert unnamed == 0
    press(page, "?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    press(page, "Escape Space")
    expect(page.get_by_role("dialog", name="the selected image, large")).to_be_visible()
    press(page, "ArrowRight 6 Space")  # compared and rated while large
    expect(page.get_by_role("group", name="image B: not ranked, overall 6")).to_be_focused()
    press(page, "Tab Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"  # on to the buttons, past the other cards


# ---- small windows, fingers, and no mouse


@pytest.mark.parametrize("width, height", [(360, 740), (800, 600)])
def test_fingers_can_do_everything_in_a_narrow_window(browser, folder, address, width, height):
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=True)
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Name").fill(f"touch{width}")
    page.get_by_role("button", name="Start").tap()
    expect(page.locator(".card")).to_have_count(3)
    for letter in "ABC":
        for axis in ("Overall", "Alignment", "Fidelity"):
            page.get_by_role("radiogroup", name=f"{axis} of {letter}").get_by_role("radio", name=f"{axis} 4").tap()
    for letter in "ABC":
        page.get_by_role("button", name=f"rank {letter} worse").tap()
    assert ranks(page) == ["A", "B", "C"]
    page.get_by_role("button", name="rank C better").tap()
    page.get_by_role("button", name="tie C with the next better one").tap()
    assert ranks(page) == ["AC", "B"]
    sizes = page.locator("button:visible").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect()).filter(box => box.width < 44 || box.height < 44).length"
    )
    assert sizes == 0
    assert page.evaluate("document.querySelector('#work').scrollWidth <= innerWidth")
    page.get_by_role("button", name="see B large").tap()
    expect(page.get_by_role("dialog", name="the selected image, large")).to_be_visible()
    page.locator("#zoom").tap()
    page.get_by_role("button", name="Save and continue").tap()
    expect(page.locator("#count")).to_have_text("1 of 3")
    assert lines_of(folder, f"touch{width}")[0]["rankings"][0]["ratings"][0]["overall"] == 4
    context.close()


@pytest.mark.parametrize("width", [390, 640])
def test_grabbing_a_thumbnail_does_not_scroll_it_away(visit, address, width):
    page = visit(address)
    page.set_viewport_size({"width": width, "height": 700})
    enter(page, f"narrow{width}")
    page.locator("#by-rating").scroll_into_view_if_needed()
    place = "document.querySelector('#work').scrollTop"
    before = page.evaluate(place)
    thumb, gap = page.locator('.thumb[data-thumb="1"]').bounding_box(), page.locator(".gap.last").bounding_box()
    page.mouse.move(thumb["x"] + 20, thumb["y"] + 20)
    page.mouse.down()
    assert page.evaluate(place) == before > 0
    page.mouse.move(gap["x"] + 60, gap["y"] + 8, steps=6)
    page.mouse.up()
    assert ranks(page) == ["B"]


def test_ratings_are_reached_with_tab(visit, address):
    page = enter(visit(address), "tabs")
    press(page, "Tab Tab Tab Tab Tab")  # past the four buttons that rank
    label = "document.activeElement.ariaLabel ?? document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(label) == "Overall 1"
    press(page, "ArrowRight ArrowRight")  # as in every group of radio buttons
    assert page.evaluate(label) == "Overall 3"
    expect(page.get_by_role("group", name="image A: not ranked, overall 3, alignment –")).to_be_visible()
    press(page, "Tab")
    assert page.evaluate(label) == "Alignment 1"
    press(page, "Space")
    expect(page.get_by_role("group", name="image A: not ranked, overall 3, alignment 1")).to_be_visible()


# ---- what is skipped, what is missing, whose draft it is


def test_skipped_prompts_are_listed_at_the_end(visit, tmp_path):
    folder = candidates(tmp_path)
    with served(folder, "--port", "0") as (_, address, _):
        page = enter(visit(address), "ada")
        press(page, "7 7")
        page.get_by_role("button", name="Skip").click()
        expect(page.locator("#message")).to_have_text("Skipped; it is listed at the end.")
        for count in (1, 2):
            judge_all_alike(page)
            expect(page.locator("#count")).to_have_text(f"{count} of 3")
        expect(page.get_by_text("Done, apart from 1 skipped prompt")).to_be_visible()
        page.get_by_role("button", name="Return to what was skipped").click()
        expect(page.locator("#message")).to_contain_text("What you had entered here is back")
        press(page, "Shift+A 7 7 7 Shift+B 4 4 4 Shift+C 4 4 4 r Enter")
        expect(page.get_by_text("All prompts are judged")).to_be_visible()
    assert [line.get("skipped", False) for line in lines_of(folder, "ada")] == [True, False, False, False]


def test_a_picture_that_vanishes_stops_nobody(visit, tmp_path):
    folder = candidates(tmp_path)
    with served(folder, "--port", "0") as (_, address, _):
        page = enter(visit(address), "gus")
        press(page, "n")
        expect(page.locator("#prompt")).not_to_be_empty()
        expect(page).to_have_url(re.compile("#2$"))
        place = page.locator(".card img").first.get_attribute("src").split("/")[1]
        press(page, "b")
        expect(page).to_have_url(re.compile("#1$"))
        (folder / f"images/{place}-1.png").unlink()
        judge_all_alike(page)
        expect(page.locator("#message")).to_contain_text("Saved. A picture of this prompt is missing. K skips")
        expect(page.get_by_text("Picture missing").first).to_be_visible()
        judge_all_alike(page)
        expect(page.locator("#message")).to_contain_text("Not saved. 1 of 3 pictures missing")
        press(page, "k")
        judge_all_alike(page)
        expect(page.locator("#count")).to_have_text("2 of 3")
        page.goto(address)
        enter_again = page.get_by_label("Name")
        enter_again.fill("gus")
        press(page, "Enter")
        expect(page.get_by_text("Done, apart from 1 skipped prompt")).to_be_visible()


def test_a_draft_stays_with_its_project(visit, tmp_path):
    """Equal ids, names and pictures on one port: what was entered in one folder does not appear in another."""
    one, other = candidates(tmp_path / "one"), candidates(tmp_path / "other")
    with served(one, "--port", "0") as (_, address, _):
        page = enter(visit(address), "kim")
        press(page, "6 6 6")
    port = address.split("/?")[0].rsplit(":", 1)[-1]
    with served(other, "--port", port) as (_, address, _):
        page.goto(address)
        enter(page, "kim")
        expect(page.get_by_role("group", name="image A: not ranked, overall –")).to_be_visible()
    with served(one, "--port", port) as (_, address, _):
        page.goto(address)
        enter(page, "kim")
        expect(page.locator("#message")).to_contain_text("not saved yet")


def test_a_personal_link_needs_no_name(visit, tmp_path):
    folder = candidates(tmp_path)
    with served(folder, "--port", "0", "--annotators", "ada", "bob", "--overlap", "2") as (process, _, _):
        link = next(word for word in process.stdout.readline().split() if "annotator=ada" in word)
        page = visit(link)
        expect(page.locator(".card")).to_have_count(3)
        assert page.title() == "Annotate: ada" and "token" not in page.url
        press(page, "g")
        row = page.get_by_role("row", name="bob 0 of 3")
        expect(row).to_be_visible(timeout=60_000)


def test_undo_outlives_a_look_at_the_agreement(visit, address):
    page = enter(visit(address), "undo")
    assert page.evaluate("document.activeElement.closest('.card') !== null")
    press(page, "5 ArrowUp z")
    expect(page.locator("#message")).to_have_text("Undone.")
    press(page, "g")
    expect(page.locator("#report")).to_be_visible(timeout=60_000)
    assert page.evaluate("document.querySelector('#report').scrollTop") == 0
    press(page, "Escape z")
    expect(page.get_by_role("group", name="image A: not ranked, overall –")).to_be_visible()
    expect(page.locator("#message")).to_have_text("Undone.")
