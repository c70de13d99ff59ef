"""The report in a real browser, headless and without a network: it renders, its slider moves, its table sorts."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from eval.report import page as report
from tests.test_eval_report import made_up

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chrome"]:
    folder = tmp_path_factory.mktemp("report")
    found, curves = made_up(folder / "photos")
    report.write(folder / "report.html", folder / "photos", found, curves)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get((folder / "report.html").as_uri())
        yield browser
    finally:
        browser.quit()


def texts(page: "Chrome", selector: str) -> list[str]:
    return [found.text for found in page.find_elements("css selector", selector)]


def click(page: "Chrome", selector: str) -> None:
    page.execute_script("arguments[0].click()", page.find_element("css selector", selector))


def test_renders_without_a_fault_or_a_request(page: "Chrome") -> None:
    assert [entry["message"] for entry in page.get_log("browser")] == []  # type: ignore[no-untyped-call]  # as selenium has it
    requests = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in requests if not name.startswith("data:")] == []
    assert len(page.find_elements("css selector", "svg.chart .curve.measured")) == 4
    assert len(texts(page, ".tile b")) == 2
    images = page.find_elements("css selector", ".view img")
    assert len(images) == 10
    assert all(page.execute_script("return arguments[0].naturalWidth", image) == 90 for image in images)


def test_is_no_wider_than_its_window(page: "Chrome") -> None:
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.execute_script(wide) == 0


def test_worst_pictures_stand_first(page: "Chrome") -> None:
    assert texts(page, "#pictures h2") == [f"<{i}>.png" for i in (4, 3, 2, 1, 0)]


def value(slider: "WebElement") -> float:
    return float(slider.get_attribute("aria-valuenow") or "nan")


def test_slider_moves(page: "Chrome") -> None:
    view = page.find_element("css selector", ".view")
    right = view.find_element("css selector", ".right")
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", view)
    seen = []
    for share in (-0.25, 0.25):
        move = webdriver.ActionChains(page).move_to_element_with_offset(view, round(view.size["width"] * share), 5)
        move.perform()
        seen.append((value(view), right.value_of_css_property("clip-path")))
    (low, low_clip), (high, high_clip) = seen
    assert low == pytest.approx(25, abs=2)
    assert high == pytest.approx(75, abs=2)
    assert low_clip != high_clip
    view.send_keys("\ue012")  # the left arrow
    assert value(view) == pytest.approx(high - 2, abs=1)


def test_sides_and_rates_can_be_chosen(page: "Chrome") -> None:
    before = page.find_element("css selector", ".view .right").get_attribute("src")
    click(page, "#right [data-value=jpeg]")
    assert texts(page, ".view .tag.r")[0].startswith("jpeg · 1,004 B")
    click(page, "#right [data-value=original]")
    assert page.find_element("css selector", ".view .right").get_attribute("src") != before
    assert texts(page, ".view .tag.r")[0] == "original"
    click(page, "#right [data-value=ours]")


def test_table_sorts(page: "Chrome") -> None:
    names = "#images tbody td:first-child"
    assert texts(page, names) == [f"<{i}>.png" for i in (4, 3, 2, 1, 0)]  # the worst of ours first
    click(page, "#images th[data-name=picture]")
    assert texts(page, names) == [f"<{i}>.png" for i in range(5)]
    click(page, "#images th[data-name=picture]")
    assert texts(page, names) == [f"<{i}>.png" for i in (4, 3, 2, 1, 0)]
    assert page.find_element("css selector", "#images th[aria-sort]").get_attribute("aria-sort") == "descending"
    click(page, "#images th[data-name=bytes]")
    assert texts(page, "#images tbody td:nth-child(3)") == [f"1,00{i}" for i in range(5)]
