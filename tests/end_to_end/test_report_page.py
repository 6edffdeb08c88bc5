"""The report as a person uses it: one command, then the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from commands import launch, launch_afresh
from records import composed, language_model, training_rows, write_run

SMALL = ["model.d_model=32", "model.n_layers=1"]
LOSSES = {"0": 5.3, "1": 4.9, "2": 11.2, "3": 5.05}
NASTY = "</script><script>console.error('ran')</script><img src=http://example.invalid/x onerror=console.error('ran')>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs that differ in learning rate and seed, one that is going on, and one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (name, loss) in enumerate(LOSSES.items()):
        overrides = [f"trainer.optimizer.lr={(number // 2 + 1) * 1e-3}", f"seed={number % 2}"]
        samples = [{"prompt": f"The {NASTY}", "text": f"text of run {name}\x00\x1b[31m"}]
        config = composed(*SMALL, *overrides)
        write_run(
            folder / name, config, training_rows(60, loss - 0.5), language_model(loss, 60, samples=samples), overrides
        )
    write_run(folder / "going", composed(*SMALL), training_rows(30))
    (write_run(folder / "failed", composed(*SMALL)) / "failure.txt").write_text(f"ValueError: {NASTY}\n")
    return folder


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    done = launch("task=report", f"task.runs=[{runs}/*]", f"paths.outputs={outputs}")
    assert done.returncode == 0, done.stderr
    (path,) = outputs.glob("*/*_report/report.html")
    for name in ("report.html", "report.md", "runs.csv"):
        assert str(path.with_name(name)) in done.stdout
    return path


def test_a_report_imports_nothing_heavy_and_records_nothing_of_models(runs: Path, tmp_path: Path) -> None:
    words = ["task=report", f"task.runs=[{runs}]", f"paths.outputs={tmp_path}"]
    done = launch_afresh(*words, flags=("-X", "importtime"))
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "modern_llm" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "transformers", "datasets", "tokenizers"}
    (record,) = tmp_path.glob("*/*_report/config.yaml")
    keys = {line.split(":")[0] for line in record.read_text().splitlines() if line[0].isalpha()}
    assert keys == {"name", "tags", "task"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=report", "task.runs=[nowhere/*]"], "task.runs=['nowhere/*']: no run is found"),
        (["task=report", "runs=[outputs]"], "Did you mean 'task.runs'?"),
        (["task=report", "task.runs=outputs"], "must be a list of a text"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(overrides: list[str], message: str, tmp_path: Path) -> None:
    refused = launch(*overrides, f"paths.outputs={tmp_path}")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_finished_report_is_not_resumed(runs: Path, tmp_path: Path) -> None:
    assert launch("task=report", f"task.runs=[{runs}]", f"paths.outputs={tmp_path}").returncode == 0
    (folder,) = tmp_path.glob("*/*_report")
    refused = launch(f"resume={folder}")
    assert refused.returncode == 1
    assert "this run is finished" in refused.stderr


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on the path")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page in a wide window; whatever a test does with it, nothing may be loaded and nothing may complain."""
    chromium.screen(1280, 1000)
    chromium.open(page)
    yield chromium
    assert chromium.complaints() == []


def column(browser: Browser, head: str) -> list[str]:
    """Texts of a column of the table of runs, from top to bottom, without their notes; hidden rows are left out."""
    return browser.value(
        f"""(() => {{ const heads = [...document.querySelectorAll("#runs thead th")];
        const at = heads.findIndex((th) => (th.title || th.textContent) === {head!r});
        return [...document.querySelectorAll("#runs tbody tr")].filter((row) => row.offsetParent)
            .map((row) => row.cells[at].firstChild?.textContent ?? "") }})()"""
    )


def head(name: str) -> str:
    return f"#runs thead th[title='{name}'] button"


def test_a_click_on_a_head_sorts_numbers_as_numbers(opened: Browser) -> None:
    opened.value("""for (const th of document.querySelectorAll("#runs thead th")) th.title ||= th.textContent""")
    opened.click(head("validation_loss"))
    assert column(opened, "validation_loss") == ["4.900", "5.050", "5.300", "11.20", "", ""]
    assert column(opened, "run")[:4] == ["1", "3", "0", "2"]
    opened.click(head("validation_loss"))
    assert column(opened, "validation_loss") == ["11.20", "5.300", "5.050", "4.900", "", ""]
    opened.click(head("run"))
    assert column(opened, "run") == ["0", "1", "2", "3", "failed", "going"]
    assert opened.value("""document.querySelector("#runs th[aria-sort]").title""") == "run"


def test_the_filter_hides_runs_in_the_table_the_curves_and_the_samples(opened: Browser) -> None:
    assert "curves of 5 of 6 runs" in caption(opened)
    opened.type("#filter", "finished 0.002")
    assert column(opened, "run") == ["2", "3"]
    assert opened.value("document.querySelector('#count').textContent") == "2 of 6"
    assert "curves of 2 of 6 runs" in caption(opened)
    samples = "[...document.querySelectorAll('.sample')].filter(e => !e.closest('[hidden]')).length"
    assert opened.value(samples) == 2
    opened.type("#filter", "no such words")
    assert column(opened, "run") == []
    opened.value("document.querySelector('#filter').value = ''")
    opened.value("document.querySelector('#filter').dispatchEvent(new Event('input'))")
    assert len(column(opened, "run")) == 6


def test_all_columns_and_folded_parts_open(opened: Browser) -> None:
    hidden = "[...document.querySelectorAll('#runs thead th')].filter((th) => !th.offsetParent).length"
    assert opened.value(hidden) > 0
    opened.click("#columns")
    assert opened.value(hidden) == 0
    for number in range(opened.value("document.querySelectorAll('details').length")):
        opened.value(f"document.querySelectorAll('details')[{number}].setAttribute('id', 'fold{number}')")
        opened.click(f"#fold{number} > summary")
    assert opened.value("document.querySelectorAll('details:not([open])').length") == 0
    assert "text of run 2␀␛[31m" in opened.value("document.body.innerText")
    assert "python launch.py trainer.optimizer.lr=0.001 seed=0" in opened.value("document.body.innerText")


def caption(browser: Browser) -> str:
    return browser.value("document.querySelector('figcaption').textContent")


def test_curves_zoom_tell_values_and_can_be_hidden(opened: Browser) -> None:
    assert caption(opened).startswith("Steps 1 to 60")
    left, top, width, height = opened.place(".plot")
    opened.drag((left + 0.3 * width, top + 0.5 * height), (left + 0.6 * width, top + 0.5 * height))
    first, last = (float(word) for word in caption(opened).split(";")[0].split()[1::2])
    assert 10 < first < 22 < 30 < last < 40
    opened.mouse("mouseMoved", left + 0.5 * width, top + 0.5 * height)
    tip = opened.value("document.querySelector('.tip').innerText")
    assert opened.value("document.querySelector('.tip').hidden") is False
    step = int(tip.split()[1])
    assert first <= step <= last
    assert "loss" in tip
    opened.double_click(left + 0.5 * width, top + 0.5 * height)
    assert caption(opened).startswith("Steps 1 to 60")
    before = opened.value("document.querySelector('.plot canvas').toDataURL()")
    opened.click(".legend button")
    assert opened.value("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert "curves of 3 of 6 runs" in caption(opened)
    assert opened.value("document.querySelector('.plot canvas').toDataURL()") != before
    opened.click(".legend button")
    assert "curves of 5 of 6 runs" in caption(opened)
    for name, value, told in (("axis", "tokens", "Tokens 64 to 3,840"), ("axis", "seconds", "Seconds 0.5 to 30")):
        opened.value(f"""(() => {{ const s = document.querySelector('select[name={name}]'); s.value = {value!r};
            s.dispatchEvent(new Event('change')) }})()""")
        assert caption(opened).startswith(told)
    for box in ("logy", "logx"):
        before = opened.value("document.querySelector('.plot canvas').toDataURL()")
        opened.click(f"input[name={box}]")
        assert opened.value("document.querySelector('.plot canvas').toDataURL()") != before


def test_the_tip_tells_the_value_that_was_recorded(opened: Browser, runs: Path) -> None:
    opened.value("""(() => { const s = document.querySelector('select[name=metric]');
        s.value = [...s.options].find((o) => o.textContent === 'validation_loss').value;
        s.dispatchEvent(new Event('change')) })()""")
    left, top, width, height = opened.place(".plot")
    opened.mouse("mouseMoved", left + width - 30, top + height / 2)
    lines = opened.value("[...document.querySelectorAll('.tip div')].map((line) => line.innerText.split('\\n'))")
    told = {line[-2].strip(): float(line[-1]) for line in lines[1:]}
    last = {name: training_rows(60, loss - 0.5)[-1]["validation_loss"] for name, loss in LOSSES.items()}
    assert lines[0] == ["step 60"]
    assert {name: told[name] for name in last} == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_only_tables_scroll_sideways(chromium: Browser, page: Path, dark: bool) -> None:
    chromium.screen(360, 740, phone=True, dark=dark)
    chromium.open(page)
    for _ in range(2):
        assert chromium.value("document.documentElement.scrollWidth") == 360
        outside = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, .plot, [hidden]"))
            .filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"""
        assert chromium.value(outside) == []
        chromium.value("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
        chromium.click("#columns")
    assert chromium.value("document.querySelector('#runs').parentElement.scrollWidth") > 360
    assert chromium.complaints() == []


def test_dark_is_dark_and_readable(chromium: Browser, page: Path) -> None:
    """Contrast of text and paper by WCAG's formula, in both schemes."""
    lightness = {}
    for dark in (False, True):
        chromium.screen(1280, 1000, dark=dark)
        chromium.open(page)
        for part in ("body", ".notices", "td.best", "th.failed small", ".note", "thead th"):
            colours = chromium.value(
                f"""(() => {{ let e = document.querySelector({part!r}); const ink = getComputedStyle(e).color;
                let paper = getComputedStyle(e).backgroundColor;
                for (; paper === "rgba(0, 0, 0, 0)"; paper = getComputedStyle(e).backgroundColor) e = e.parentElement;
                return [ink, paper].map((c) => c.match(/\\d+/g).slice(0, 3).map(Number)) }})()"""
            )
            ink, paper = (luminance(colour) for colour in colours)
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, (part, dark)
            lightness.setdefault(part, []).append(paper)
    assert all(light > 0.5 > dark for light, dark in lightness.values())
    assert chromium.complaints() == []


def luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_test_itself_sees_what_it_forbids(chromium: Browser, tmp_path: Path) -> None:
    """A page that throws, complains and loads something is caught, or the tests above would prove nothing."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='missing.png'><script>console.error('no'); setTimeout(() => { throw Error('no') })</script>"
    )
    chromium.open(bad)
    found = " ".join(chromium.complaints())
    for kind in ("Network.requestWillBeSent", "Network.loadingFailed", "consoleAPICalled", "exceptionThrown"):
        assert kind in found
