"""The report's page: what it shows is what runs wrote, in a browser of its own, with nothing but the file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from fl_hydra.report import commands
from fl_hydra.report.commands import command_of
from fl_hydra.report.cost import read_table
from fl_hydra.report.marks import reachable
from fl_hydra.report.measures import measure
from fl_hydra.report.page import write_page
from fl_hydra.report.page.writing import as_script
from fl_hydra.report.results import Results
from fl_hydra.report.spec import FigureSpec, Spec
from fl_hydra.runs.identity import run_hash
from fl_hydra.runs.reading import read_run
from tests.conftest import Program
from tests.support.make import experiment

SECTIONS = {
    "local": ["algorithm=localsgd", "K=2", "J=2,4", "seed=0,1", "epochs=2"],
    "central": ["optimizer=sgdm,adamw", "optimizer.lr=0.013", "epochs=2"],
    "federated": ["algorithm=fedavg", "sharding=classes", "K=10", "C=0.5", "N_c=2", "J=2", "rounds=4", "server=slowmo", "server.lr=1e-3"],
    "skewed": [
        *("algorithm=fedavg", "sharding=classes", "K=5", "C=0.4", "N_c=4", "J=2", "rounds=4"),
        *("participation=skewed", "gamma=0.1,10"),
    ],
}


@pytest.fixture(scope="module")
def results(program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    folder = tmp_path_factory.mktemp("page")
    found = {}
    for section, words in SECTIONS.items():
        assert program("-m", f"section={section}", *words, cwd=folder).status == 0
        listed = (folder / f"outputs/sections/{section}.txt").read_text().split()
        found[section] = Results.of(section, [read_run(folder / "outputs" / name) for name in listed])
    return found


@pytest.fixture(scope="module")
def page(results: dict[str, Results]) -> Path:
    outputs = results["local"].settings[0].runs[0].folder.parents[2]
    sections = [(each, Spec.default(name, each.axes)) for name, each in results.items()]
    sections[-1] = (results["skewed"], Spec("skewed", (FigureSpec("classes", facet="gamma", name="classes"),)))
    return write_page(sections, read_table(), outputs / "report")


def content(page: Path) -> Any:
    found = re.search(r'id="content">(.*?)</script>', page.read_text())
    assert found is not None
    return json.loads(found[1])


def test_a_command_trains_the_very_run(results: dict[str, Results], program: Program, tmp_path: Path) -> None:
    for each in results.values():
        for setting in each.settings:
            run = setting.runs[-1]
            command = command_of(run)
            assert command is not None and "/" not in command  # a folder elsewhere is nobody else's
            words = shlex.split(command)[2:]
            assert run.folder.name.endswith(run_hash(experiment(*words)))
        said = program(*words, f"outputs={run.folder.parents[2]}", cwd=tmp_path)
        assert said.status == 0 and run.folder.name in said.output  # it is found there, and nothing trained
        assert not list(tmp_path.iterdir())


def test_a_folder_within_the_project_is_named_from_there(results: dict[str, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    run = results["local"].settings[0].runs[0]
    monkeypatch.setattr(commands, "PROJECT", run.folder.parents[3])
    assert f"outputs={run.folder.parents[2].name}" in shlex.split(command_of(run) or "")
    monkeypatch.setattr(commands, "OUTPUTS", run.folder.parents[2])
    assert "outputs=" not in (command_of(run) or "")


def test_a_run_whose_configuration_cannot_be_read_has_no_command(results: dict[str, Results], tmp_path: Path) -> None:
    copied = shutil.copytree(results["local"].settings[0].runs[0].folder, tmp_path / results["local"].settings[0].runs[0].folder.name)
    assert command_of(read_run(copied))
    (copied / "config.yaml").write_text("run: [")
    assert command_of(read_run(copied)) is None


def test_text_in_the_data_ends_no_script() -> None:
    text = {"label": "</script><!-- <script> & \u2028"}
    assert not re.search("[<>&\u2028]", as_script(text))
    assert json.loads(as_script(text)) == text


def test_links_lead_to_the_runs_and_nothing_else_is_loaded(page: Path) -> None:
    for section in content(page)["sections"]:
        for setting in section["settings"]:
            for run in setting["runs"]:
                assert (page.parent / run["folder"] / "summary.json").is_file()
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", re.sub(r"<script>.*?</script>", "", text, flags=re.S))


def test_a_page_without_runs_is_written(tmp_path: Path) -> None:
    assert content(write_page([], read_table(), tmp_path))["sections"] == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its driver here (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    for name in names.split():
        options.add_argument(f"--{name}")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options, selenium.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: Any, page: Path, choice: str = "", width: int = 1200) -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    if browser.current_url.partition("#")[0] == page.as_uri():  # a page of 5 MB is read once
        browser.execute_script("location.hash = arguments[0]; recall(); update(false)", choice)
    else:
        browser.get(f"{page.as_uri()}#{choice}")
    return browser


def plots(browser: Any) -> Any:
    return browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.data?.map(t => [t.x, t.y ?? null, t.z ?? null]))"
    )


def table(browser: Any) -> list[list[str]]:
    browser.execute_script("document.getElementById('data').open = true; plot(current())")
    script = "return [...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    rows: list[list[str]] = browser.execute_script(script)
    return rows


def no_errors(browser: Any) -> None:
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_every_section_and_view_shows_a_plot_in_375_pixels_too(browser: Any, page: Path) -> None:
    for section in SECTIONS:
        drawn = []
        for view in ("curves", "final", *(("sampling", "classes") if section == "skewed" else ())):
            for width in (1200, 375):
                opened(browser, page, f"section={section}&view={view}", width)
                assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                drawn.append(plots(browser))
                assert drawn[-1] and all(drawn[-1])
        assert drawn[0] != drawn[2]
    no_errors(browser)


def test_the_table_is_what_runs_wrote_and_one_seed_has_no_deviation(browser: Any, page: Path, results: dict[str, Results]) -> None:
    costs = read_table()
    accuracy, epoch = measure("test/acc", costs), measure("epoch", costs)
    opened(browser, page, "section=local&view=final&x=J&y=test/acc")
    for row, setting in zip(table(browser), results["local"].drawn, strict=True):
        found = setting.final(accuracy)
        assert found is not None and found.deviation is not None
        assert row == [setting.label, str(setting.value("J")), f"{found.mean:.2f}", f"{found.deviation:.2f}", "2"]
    opened(browser, page, "section=local&view=curves&x=epoch&y=test/acc")
    curves = [(setting, setting.curve(epoch, accuracy)) for setting in results["local"].drawn]
    expected = [
        [setting.label, f"{x:.1f}", f"{mean:.2f}", f"{deviation:.2f}", "2"]
        for setting, curve in curves
        if curve is not None and curve.deviation is not None
        for x, mean, deviation in zip(curve.x, curve.mean, curve.deviation, strict=True)
    ]
    shown = table(browser)
    assert len(shown) == len(expected)
    for row, wanted in zip(shown, expected, strict=True):
        assert (row[0], row[4]) == (wanted[0], wanted[4])
        assert [float(cell) for cell in row[1:4]] == pytest.approx([float(cell) for cell in wanted[1:4]], abs=0.1001)
    opened(browser, page, "section=central&view=curves")
    assert {row[3] for row in table(browser)} == {""}
    assert "n=1: one seed, no deviation" in browser.find_element("id", "notes").text
    no_errors(browser)


def test_the_keyboard_alone_reaches_and_changes_every_control(browser: Any, page: Path) -> None:
    keys = pytest.importorskip("selenium.webdriver").Keys
    opened(browser, page, "section=local&view=curves&facet=J")
    reached: list[str] = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(keys.TAB)
        element = browser.switch_to.active_element
        name = element.get_attribute("id") or element.get_attribute("class") or element.tag_name
        if name in reached and name in ("section", "skip"):
            break
        reached.append(name)
        if name in ("section", "view", "x", "y", "color", "facet"):
            outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
    order = [name for name in reached if name in ("section", "view", "x", "y", "color", "facet")]
    assert order == ["section", "view", "x", "y", "color", "facet"]
    assert any("plot" in name for name in reached)
    for name in ("facet", "color", "y", "x", "view", "section"):
        before = browser.execute_script(f"return document.getElementById('{name}').value")
        element = browser.find_element("id", name)
        browser.execute_script("arguments[0].focus()", element)
        element.send_keys(keys.DOWN if element.get_property("selectedIndex") == 0 else keys.UP)
        after = browser.execute_script(f"return [document.getElementById('{name}').value, location.hash, document.activeElement.id]")
        assert after[0] != before and after[2] == name
        assert f"{name}={after[0]}" in unquote(after[1])
    assert browser.execute_script("return document.getElementById('live').textContent")
    no_errors(browser)


def test_enter_on_a_point_shows_its_command(browser: Any, page: Path, results: dict[str, Results]) -> None:
    keys = pytest.importorskip("selenium.webdriver").Keys
    opened(browser, page, "section=local&view=final&x=J&y=test/acc")
    plot = browser.find_element("class name", "plot")
    browser.execute_script("arguments[0].focus()", plot)
    plot.send_keys(keys.RIGHT)
    plot.send_keys(keys.RIGHT)
    assert "LocalSGD K=2 J=4" in browser.execute_script("return document.getElementById('live').textContent")
    plot.send_keys(keys.ENTER)
    setting = results["local"].settings[1]
    shown = [element.text for element in browser.find_elements("css selector", "#runs code")]
    assert shown == [command_of(run) for run in setting.runs]
    assert browser.execute_script("return document.activeElement.id") == "runs-title"
    no_errors(browser)


def test_the_mouse_shows_values_and_leads_to_commands_that_are_copied(browser: Any, page: Path, results: dict[str, Results]) -> None:
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    opened(browser, page, "section=local&view=final&x=J&y=test/acc")
    time.sleep(0.5)
    browser.execute_script("document.querySelector('.plot').scrollIntoView()")
    setting = results["local"].settings[1]
    found = setting.final(measure("test/acc", read_table()))
    assert found is not None
    where = browser.execute_script(
        "const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;"
        "const point = [plot.data[0].x[1], plot.data[0].y[1]];"
        "return [box.x + xaxis._offset + xaxis.d2p(point[0]), box.y + yaxis._offset + yaxis.d2p(point[1])].map(Math.round)"
    )
    mouse = chains(browser)
    mouse.w3c_actions.pointer_action.move_to_location(*where)
    mouse.perform()
    time.sleep(0.5)
    shown = browser.execute_script("return document.querySelector('.hoverlayer').textContent")
    assert f"{found.mean:.2f}" in shown and "n=2" in shown
    assert all(run.folder.name in shown for run in setting.runs)
    chains(browser).click().perform()
    codes = [element.text for element in browser.find_elements("css selector", "#runs code")]
    assert codes == [command_of(run) for run in setting.runs]
    browser.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    browser.find_element("css selector", "#runs button").click()
    assert browser.execute_script("return [copied, document.getElementById('live').textContent]") == [codes[0], "Command copied"]
    no_errors(browser)


def test_what_an_accuracy_takes_is_what_the_figures_show(browser: Any, page: Path, results: dict[str, Results]) -> None:
    costs = read_table()
    accuracy, sent = measure("test/acc", costs), measure("bytes", costs)
    settings = results["local"].drawn
    opened(browser, page, "section=local&view=targets&x=bytes&y=test/acc")
    usual = reachable(settings, accuracy)
    assert float(browser.find_element("id", "target").get_property("value")) == usual
    for target in (usual, 100):
        opened(browser, page, f"section=local&view=targets&x=bytes&y=test/acc&target={target}")
        for row, setting in zip(table(browser), settings, strict=True):
            found = setting.reached(sent, target, accuracy)
            wanted = ["never", ""] if found is None else [f"{found.mean:.2f}", f"{found.deviation:.2f}"]
            assert [cell.replace(",", "") for cell in row[1:3]] == wanted
    assert "never" in browser.execute_script("return document.querySelector('.plot').textContent")
    no_errors(browser)


def test_what_clients_hold_and_how_they_are_sampled_is_what_runs_wrote(browser: Any, page: Path, results: dict[str, Results]) -> None:
    for choice, gamma in (("gamma=0.1", 0.1), ("gamma=10", 10.0)):
        (run,) = next(each.runs for each in results["skewed"].settings if each.value("gamma") == gamma)
        written = json.loads((run.folder / "clients.json").read_text())
        opened(browser, page, "section=skewed&view=sampling&facet=gamma")
        rows = [row for row in table(browser) if row[0] == choice]
        assert [float(row[2]) for row in rows] == pytest.approx(sorted(written["probabilities"], reverse=True), abs=5e-5)
        assert {(row[3], row[4]) for row in rows} == {("", "1")}
        opened(browser, page, "section=skewed&view=classes&facet=gamma")
        held = [row[3] for row in table(browser) if row[0] == choice]
        for text, counts in zip(held, written["counts"], strict=True):
            assert sorted(text.split(", ")) == sorted(f"{name}: {count}" for name, count in enumerate(counts) if count)
    assert len(plots(browser)) == 2
    no_errors(browser)


def test_every_control_has_a_name(browser: Any, page: Path) -> None:
    for view in ("curves", "final", "targets", "sampling", "classes"):
        opened(browser, page, f"section=skewed&view={view}")
        table(browser)
        for element in browser.find_elements("css selector", "select, input, button, summary, [tabindex='0'], a"):
            if element.is_displayed():
                assert element.accessible_name.strip(), element.get_attribute("outerHTML")
