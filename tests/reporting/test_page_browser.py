"""The page in a real browser: it draws, it answers, and text from data runs nothing."""

import shutil
import time

import pytest

from jaxunlearn.reporting.page import is_installed, write
from tests.reporting.pages import HOSTILE, make_source, page_tables

pytestmark = pytest.mark.slow
CHARTS = ("pareto", "effects", "layers", "plane", "profile", "changes", "risks", "relearning")
WIDTHS = {"wide": 1440, "narrow": 400}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    if not is_installed():
        pytest.skip("needs the extra report")
    write(make_source(), file)
    return file


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not service:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield made
    made.quit()


@pytest.fixture(autouse=True)
def silent_console(driver):
    """Nothing that is done with the page may end in an error."""
    driver.get_log("browser")
    yield
    assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []


def opened(driver, page, width="wide", scheme="light"):
    """The page in a window of this width and colour scheme, once it is drawn."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    wait(lambda: driver.execute_script("return document.body.dataset.ready === 'true'"))
    return driver


def wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the page did not come to it"
        time.sleep(0.05)


def count(driver, chart, selector):
    places = f'.chart[data-chart="{chart}"] {selector}'
    return len(driver.find_elements("css selector", places))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_drawn_without_an_error(driver, page, width, scheme):
    opened(driver, page, width, scheme)
    for chart in CHARTS:
        assert count(driver, chart, "svg path") > 5, chart
    # The page itself does not scroll sideways; wide tables and charts do so in their places.
    overhang = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert driver.execute_script(overhang) <= 0
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_text_from_data_runs_nothing(driver, page):
    opened(driver, page)
    assert driver.title.startswith("</script>")
    assert driver.execute_script("return document.querySelectorAll('script').length") == 3
    assert driver.find_element("id", "question").text.startswith("</script>")
    assert HOSTILE[:40] in driver.find_element("tag name", "pre").get_attribute("textContent")


def test_a_sample_that_is_picked_is_shown(driver, page):
    opened(driver, page)
    pick = driver.find_element("id", "pick")
    pick.find_element("css selector", "option[value='3']").click()
    assert driver.find_element("id", "answer").text == "answer 3"
    blocks = driver.find_elements("css selector", "#tokens .tokens")
    assert [len(b.find_elements("tag name", "span")) for b in blocks] == [3, 3, 3]
    assert "PG-effect on Dᵤ: -0.1" in blocks[0].find_element("tag name", "span").get_attribute(
        "title"
    )
    wait(lambda: count(driver, "profile", "svg .mark-rect path") == 4)  # two layers, two risks


def test_a_click_on_a_point_selects_its_sample(driver, page):
    opened(driver, page)
    points = driver.find_elements("css selector", '.chart[data-chart="plane"] .mark-symbol path')
    points = [p for p in points if "sample" in (p.get_attribute("aria-label") or "")]
    assert len(points) == 6
    webdriver = pytest.importorskip("selenium.webdriver")
    for point in points[:2]:
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
        mouse = webdriver.ActionChains(driver).move_to_element(point)
        mouse.perform()
        wait(lambda: "weight" in tooltip(driver))
        # Points may lie over one another: the tooltip names the one on top.
        named = int(tooltip(driver).split("sample")[1].split()[0])
        mouse.click().perform()
        expected = f"answer {named}"
        wait(lambda expected=expected: driver.find_element("id", "answer").text == expected)


def tooltip(driver):
    return driver.find_element("id", "vg-tooltip-element").text


def test_the_slider_moves_through_the_steps(driver, page):
    opened(driver, page)
    slider = driver.find_element("css selector", '.chart[data-chart="plane"] input[type=range]')
    shown = lambda: slider.find_element("xpath", "following-sibling::*").text
    wait(lambda: shown() == "0")
    slider.send_keys(pytest.importorskip("selenium.webdriver").Keys.ARROW_RIGHT)
    wait(lambda: shown() == "5")
    assert "step 5" in driver.find_element("css selector", "#tokens h3").text


def choose(driver, chart, text):
    places = f'.chart[data-chart="{chart}"] option'
    options = driver.find_elements("css selector", places)
    next(option for option in options if option.text == text).click()


def chosen(driver, chart):
    selects = driver.find_elements("css selector", f'.chart[data-chart="{chart}"] select')
    return [select.get_property("value") for select in selects]


def fills(driver, chart):
    points = f'.chart[data-chart="{chart}"] .mark-symbol.role-mark path'
    return [p.get_attribute("fill") for p in driver.find_elements("css selector", points)]


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """The page of objectives whose weights are alike, are none, and differ."""
    tables = page_tables()
    pg = tables["pg_effect"]
    pg["weight"] = [
        {"ga": 1.0, "npo": 0.1 * sample}[name] if step != max(pg["step"]) else None
        for name, sample, step in zip(pg["objective"], pg["sample"], pg["step"], strict=True)
    ]
    file = tmp_path_factory.mktemp("weighted") / "report.html"
    write(make_source(tables), file)
    return file


def test_the_plane_has_every_objective_and_step(driver, weighted):
    """Weights that are all 1 once left the picture at the first objective, with an error."""
    opened(driver, weighted)
    slider = driver.find_element("css selector", '.chart[data-chart="plane"] input[type=range]')
    keys = pytest.importorskip("selenium.webdriver").Keys
    assert chosen(driver, "plane") == ["npo"]  # the first one whose weights differ
    choose(driver, "plane", "ga")
    wait(lambda: len(set(fills(driver, "plane"))) == 1)  # all alike
    choose(driver, "plane", "npo")
    wait(lambda: len(set(fills(driver, "plane"))) == 5)  # of 6 samples, all fifths
    slider.send_keys(keys.END)
    wait(lambda: len(set(fills(driver, "plane"))) == 1)  # no weight
    assert len(fills(driver, "plane")) == 6
    choose(driver, "plane", "ga")
    slider.send_keys(keys.HOME)
    wait(lambda: "ga, step" in driver.find_element("css selector", "#tokens h3").text)


def test_choices_survive_another_scale_and_another_width(driver, page):
    opened(driver, page)
    slider = driver.find_element("css selector", '.chart[data-chart="plane"] input[type=range]')
    choose(driver, "plane", "npo")
    slider.send_keys(pytest.importorskip("selenium.webdriver").Keys.ARROW_RIGHT)
    choose(driver, "effects", "shallow")
    driver.find_element("css selector", "#pick option[value='3']").click()
    outlined = '.chart[data-chart="plane"] .mark-symbol.role-mark path[stroke-width="2.5"]'
    wait(lambda: len(driver.find_elements("css selector", outlined)) == 1)
    for key in ("plane", "effects"):
        linear = driver.find_element("css selector", f'input[name="scale-{key}"][value="linear"]')
        driver.execute_script("arguments[0].click()", linear)
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.5)  # until the page looks at its width again
    wait(lambda: chosen(driver, "plane") == ["npo"] and chosen(driver, "effects") == ["shallow"])
    wait(lambda: len(driver.find_elements("css selector", outlined)) == 1)
    assert "npo, step 5" in driver.find_element("css selector", "#tokens h3").text
    assert driver.find_element("id", "answer").text == "answer 3"


def test_axes_become_linear_and_back(driver, page):
    opened(driver, page)
    ticks = lambda: [
        t.text
        for t in driver.find_elements(
            "css selector", '.chart[data-chart="effects"] .role-axis-label text'
        )
    ]
    logarithmic = ticks()
    linear = driver.find_element("css selector", 'input[name="scale-effects"][value="linear"]')
    driver.execute_script("arguments[0].click()", linear)
    wait(lambda: ticks() and ticks() != logarithmic)
    back = driver.find_element("css selector", 'input[name="scale-effects"][value="symlog"]')
    driver.execute_script("arguments[0].click()", back)
    wait(lambda: ticks() == logarithmic)


def test_a_box_switches_an_objective_off_in_every_chart(driver, page):
    opened(driver, page)
    lines = lambda chart: count(driver, chart, ".mark-line path")
    labels = lambda: driver.find_element("css selector", '.chart[data-chart="pareto"]').text
    before = {chart: lines(chart) for chart in ("effects", "risks", "relearning")}
    assert before == {"effects": 4, "risks": 4, "relearning": 2} and "npo" in labels()
    box = driver.find_element("css selector", '#toggles input[value="npo"]')
    box.send_keys(" ")  # by the keyboard
    wait(
        lambda: {chart: lines(chart) for chart in before} == {k: v // 2 for k, v in before.items()}
    )
    wait(lambda: "npo" not in labels() and "ga" in labels())
    # It stays off where a chart is drawn anew.
    linear = driver.find_element("css selector", 'input[name="scale-effects"][value="linear"]')
    driver.execute_script("arguments[0].click()", linear)
    wait(lambda: lines("effects") == 2)
    box.send_keys(" ")
    wait(lambda: {chart: lines(chart) for chart in before} == before and "npo" in labels())


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """The page of so many samples that it holds layers and tokens of a part of them."""
    tables = page_tables(samples=6)
    with pytest.MonkeyPatch.context() as patch:
        content = pytest.importorskip("jaxunlearn.reporting.page.content")
        patch.setattr(content, "MOST_ROWS", 60)
        file = tmp_path_factory.mktemp("crowded") / "report.html"
        write(make_source(tables), file)
    return file


def test_samples_without_layers_say_so(driver, crowded):
    opened(driver, crowded)
    options = driver.find_elements("css selector", "#pick option")
    marked = [option.text.startswith("•") for option in options]
    assert len(options) == 6 and 0 < sum(marked) < 6
    tokens = driver.find_element("id", "tokens")
    assert "does not hold" not in tokens.text  # the first one that is shown has them
    options[marked.index(False)].click()
    wait(lambda: "does not hold the layers and tokens of this sample" in tokens.text)


def test_data_are_saved_as_a_table(driver, page):
    opened(driver, page)
    text = driver.execute_script("return csv('models')")
    columns = ("model", "kind", "forget_es", "retain_es", "forget_nll", "retain_nll", "side")
    assert text.splitlines()[0] == ",".join(f'"{name}"' for name in columns)
    assert len(text.splitlines()) == 5
