"""`python -m analysis report`: the page in a real browser, headless Chromium.

Pictures are not compared with stored ones: text is drawn differently by every machine's fonts, and a tolerance wide
enough for that lets a missing line through. Instead the canvas is read back, and its pixels are compared with where
the history says that the lines lie, in the colours the figures give the losses.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright

from analysis import collapse, load
from analysis.__main__ import main
from analysis.figures import looks
from analysis.report import curves, payload, settings, words
from tests.analysis.conftest import Run, four, write_stream, written
from tests.analysis.large import write

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DPO, IPO = (tuple(round(255 * part) for part in looks.LOOKS[i].colour) for i in (0, 1))


def chromium(playwright: Playwright) -> str | None:
    """MARGINCALL_CHROMIUM, or the system's, or the one that `playwright install` fetched."""
    found = [os.environ.get("MARGINCALL_CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser"))]
    own = playwright.chromium.executable_path
    return next((path for path in found if path), own if Path(own).exists() else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: install it, or name one in MARGINCALL_CHROMIUM, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """visit(file, scheme) -> the page, opened and drawn. At the end: no error, and nothing was asked of a network."""
    contexts, said = [], []

    def opened(file: Path, scheme: str = "light", width: int = 1300, height: int = 900) -> Page:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not _local(request.url, file) else None)
        page.goto(file.as_uri())
        page.locator("html[data-ready]").wait_for(state="attached")
        drawn(page)
        return page

    opened.said = said  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert said == []


def _local(url: str, file: Path) -> bool:
    return url.startswith("data:") or url == file.as_uri()


def drawn(page: Page) -> None:
    page.wait_for_function("() => plots.length && plots.every((plot) => plot.x)")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ink(page: Page, colour: tuple[int, ...], plot: int = 0, canvas: str = "all") -> int:
    """How many pixels of a plot have this colour."""
    return int(page.evaluate(
        """([plot, canvas, [r, g, b]]) => {
          const c = plots[plot][canvas], copy = new OffscreenCanvas(c.width, c.height);
          const pen = copy.getContext("2d", { willReadFrequently: true });
          pen.drawImage(c, 0, 0);
          const d = pen.getImageData(0, 0, c.width, c.height).data;
          let n = 0;
          for (let i = 0; i < d.length; i += 4)
            n += d[i + 3] > 200 && Math.abs(d[i] - r) + Math.abs(d[i + 1] - g) + Math.abs(d[i + 2] - b) < 12;
          return n;
        }""", [plot, canvas, list(colour)]))  # fmt: skip


def column(page: Page, title: str) -> list[str]:
    heads = [head.strip() for head in page.locator("#table thead .title").all_inner_texts()]
    return [
        cell.strip()
        for cell in page.locator(f"#table tbody tr > :nth-child({heads.index(title) + 1})").all_inner_texts()
    ]


def report(sweep: Path) -> Path:
    assert main(["report", str(sweep)]) == 0
    return sweep / "report.html"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DPO, which collapses at beta = 2, and IPO, two seeds each; one run diverged, one is missing."""
    runs = [Run(loss, beta, seed=seed, steps=600) for loss in ("dpo", "ipo") for beta in (0.1, 2.0) for seed in (1, 2)]
    runs[0].noise = 0.01
    runs += [Run("ipo", 0.1, seed=3, state="diverged", stopped_at=12, reason="loss is not finite"), Run(seed=9)]
    folder = written(tmp_path_factory.mktemp("report") / "sweep", *runs)
    shutil.rmtree(folder / runs[-1].dir)
    content = json.loads((folder / "sweep.json").read_text())
    content["command"] = ["-m", "loss=dpo,ipo", "beta=0.1,2.0", "data.path=a file"]
    (folder / "sweep.json").write_text(json.dumps(content))
    about = {"git_commit": "0123abcd", "git_dirty": True, "python": "3.11.7", "libraries": {"torch": "2.13.0"},
             "platform": "Linux-6.1-x86_64", "cpu_count": 2}  # fmt: skip
    for run in runs[:-1]:
        (folder / run.dir / "provenance.json").write_text(json.dumps(about))
    report(folder)
    return folder


@pytest.fixture(scope="module")
def html(sweep: Path) -> Path:
    return sweep / "report.html"


def test_the_page_says_in_words_what_became_of_the_sweep(visit: Any, html: Path) -> None:
    page = visit(html)
    lead = page.locator(".lead").inner_text()
    assert lead.startswith("10 runs of 2 losses, with β = 0.1, 2; seed = 1, 2, 3.")
    assert "3 of 9 collapse or diverge: 2 margin collapse, 1 diverged." in lead
    assert lead.endswith("8 of 10 runs finished; 1 diverged, 1 missing.")
    dpo, ipo = page.locator(".losses li").all_inner_texts()
    assert "margin collapse in 2 of 4 from step 1" in dpo and "exactly where β = 2" in dpo
    assert "diverged in 1 of 5 from step 12" in ipo
    assert "dpo_beta0.1_seed9" in page.locator(".notices").inner_text()
    assert "missing" in page.locator(".notices").inner_text()


def test_the_command_is_to_be_pasted_and_where_the_runs_came_from_is_named(visit: Any, html: Path) -> None:
    page = visit(html)
    command = "python -m src.run -m loss=dpo,ipo beta=0.1,2.0 'data.path=a file'"
    assert page.locator("#command").inner_text() == command
    page.locator("#copy").click()
    expect(page.locator("#copy")).not_to_have_text("Copy")
    origin = page.locator("#origin").inner_text()
    for fact in ("0123abcd with uncommitted changes", "3.11.7", "2.13.0", "Linux-6.1-x86_64", "for 1 run"):
        assert fact in origin


def test_every_figure_is_in_the_page_and_can_be_enlarged(visit: Any, html: Path) -> None:
    page = visit(html)
    images = page.locator("#figures img")
    assert images.count() >= 6
    page.wait_for_function("() => [...document.querySelectorAll('#figures img')].every((image) => image.complete)")
    assert all(page.evaluate("() => [...document.querySelectorAll('#figures img')].map((i) => i.naturalWidth > 100)"))
    page.locator(".enlarge").first.click()
    assert page.locator("#large").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()


def test_lines_lie_where_the_history_says_in_the_colours_of_the_figures(visit: Any, html: Path, sweep: Path) -> None:
    page = visit(html)
    page.uncheck("#theory-toggle")
    page.fill("#search", "dpo_beta2_seed1")
    expect(page.locator("#shown")).to_have_text("1 of 10 runs shown")
    drawn(page)
    read = load(sweep, columns=["margin"])
    run = read.runs.index[read.runs["label"] == "dpo_beta2_seed1"][0]
    own = read.history[read.history["run"] == run]
    frame = page.evaluate(
        """() => { const { width, height, ratio, x, y } = plots[0];
             return { width, height, ratio, last: x.high, low: y.low, high: y.high, ...MARGIN }; }"""
    )

    def along(step: float) -> float:
        """Linear up to 1, which is half a decade from 0."""
        return 0.5 * step if step <= 1 else 0.5 + math.log10(step)

    places = [
        (
            frame["ratio"] * (frame["left"] + frame["width"] * along(step) / along(frame["last"])),
            frame["ratio"] * (frame["top"] + frame["height"] * (frame["high"] - h) / (frame["high"] - frame["low"])),
        )
        for step, h in zip(own["step"], own["margin"], strict=True)
        if step in (0, 3, 20, 100, 300, 599)
    ]
    on_line = page.evaluate(
        """(places) => { const plot = plots[0], copy = new OffscreenCanvas(plot.all.width, plot.all.height);
             const pen = copy.getContext("2d", { willReadFrequently: true });
             pen.drawImage(plot.all, 0, 0);
             return places.map(([x, y]) => {
             const d = pen.getImageData(Math.round(x) - 1, Math.round(y) - 2, 3, 5).data; let hit = false;
             for (let i = 3; i < d.length; i += 4) hit ||= d[i] > 120;
             return hit; }); }""",
        places,
    )
    assert on_line == [True] * 6
    shade = looks.shade(looks.LOOKS[0].colour, 1, 2)
    assert ink(page, tuple(round(255 * part) for part in shade)) > 300


def test_a_loss_that_is_toggled_off_leaves_the_plot_and_the_table(visit: Any, html: Path) -> None:
    page = visit(html)
    page.uncheck("#theory-toggle")
    assert ink(page, DPO) > 100 and ink(page, IPO) > 100
    page.locator("#dimensions").get_by_label("DPO").uncheck()
    expect(page.locator("#shown")).to_have_text("6 of 10 runs shown")
    drawn(page)
    assert ink(page, DPO) == 0 and ink(page, IPO) > 100
    assert {*column(page, "loss")} == {"IPO", "—"}  # the missing run has no loss that is known
    page.get_by_role("button", name="none of β").click()
    expect(page.locator("#shown")).to_have_text("0 of 10 runs shown")
    assert "No run" in page.locator("#plots").inner_text()
    page.click("#reset")
    expect(page.locator("#shown")).to_have_text("10 of 10 runs shown")


def test_words_filter_and_all_of_them_must_be_there(visit: Any, html: Path) -> None:
    page = visit(html)
    page.fill("#search", "loss=ipo seed2")
    expect(page.locator("#shown")).to_have_text("2 of 10 runs shown")
    assert column(page, "run") == ["ipo_beta0.1_seed2", "ipo_beta2_seed2"]
    page.fill("#search", "not finite")
    expect(page.locator("#shown")).to_have_text("1 of 10 runs shown")
    assert column(page, "verdict") == ["diverged"]


def test_the_table_sorts_both_ways_by_mouse_and_by_enter_with_what_is_missing_last(visit: Any, html: Path) -> None:
    page = visit(html)
    head = page.locator("#table th", has_text="margin h")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    falling = [float(text.replace("−", "-")) for text in column(page, "margin h")[:-1]]
    assert falling == sorted(falling, reverse=True) and column(page, "margin h")[-1] == ""
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text.replace("−", "-")) for text in column(page, "margin h")[:-1]] == falling[::-1]
    assert column(page, "margin h")[-1] == ""
    page.locator("#table th", has_text="verdict").locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, "verdict")[0] == "none" and column(page, "verdict")[-1] == "not judged"


def test_hovering_a_line_shows_its_run_its_settings_and_the_value_in_the_history(
    visit: Any, html: Path, sweep: Path
) -> None:
    page = visit(html)
    page.fill("#search", "ipo_beta0.1_seed1")
    expect(page.locator("#shown")).to_have_text("1 of 10 runs shown")
    drawn(page)
    x, y = page.evaluate("() => [plots[0].px(2), plots[0].py(lines.values[lines.start[plots[0].runs[0]] + 2])]")
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    tip = page.locator(".tip")
    expect(tip).to_be_visible()
    text = tip.inner_text()
    read = load(sweep, columns=["margin"])
    own = read.history[read.history["run"] == read.runs.index[read.runs["label"] == "ipo_beta0.1_seed1"][0]]
    value = own.loc[own["step"] == 2, "margin"].iloc[0]
    assert text.startswith("ipo_beta0.1_seed1") and f"{value:.5g} nats" in text
    for pair in (("step", "2"), ("loss", "IPO"), ("β", "0.1"), ("seed", "1"), ("verdict", "none")):
        assert "\t".join(pair) in text
    assert "theory\t" in text
    assert ink(page, IPO, canvas="over") > 100
    page.mouse.move(box["x"] + 90, box["y"] + 15)
    expect(tip).to_be_hidden()


def test_everything_works_from_the_keyboard(visit: Any, html: Path) -> None:
    page = visit(html)
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.className"))
        if "stage" in reached[-1]:
            break
    order = [reached.index(id) for id in ("theme", "search", "metric", "split", "x-scale", "y-scale", "from", "stage")]
    assert order == sorted(order)
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    readout = page.locator("#readout")
    assert "step 0, margin 0 nats" in readout.inner_text()
    page.keyboard.press("ArrowRight")
    assert "step 1," in readout.inner_text()
    first = readout.inner_text().split(":")[0]
    page.keyboard.press("ArrowUp")
    assert readout.inner_text().split(":")[0] != first
    page.keyboard.press("Enter")
    pressed = page.locator("#table [aria-pressed=true]")
    assert pressed.inner_text() == page.evaluate("() => data.labels[state.pinned]")
    page.keyboard.press("Escape")
    assert pressed.count() == 0 and readout.inner_text() == ""


def test_every_control_has_a_name(visit: Any, html: Path) -> None:
    page = visit(html)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, a, [tabindex]")].filter((one) =>
             !(one.innerText || one.getAttribute("aria-label") || one.labels?.length
               || one.hasAttribute("aria-labelledby") || one.closest("pre"))).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_pin_holds_the_line_up_and_a_second_click_lets_go(visit: Any, html: Path) -> None:
    page = visit(html)
    button = page.locator("#table tbody button").nth(1)
    button.click()
    page.mouse.move(5, 5)
    assert button.get_attribute("aria-pressed") == "true" and page.locator(".plot.lit").count() == 1
    assert page.locator("#readout").inner_text().startswith("Pinned: dpo_beta0.1_seed2")
    button.click()
    page.mouse.move(5, 5)
    assert page.locator(".plot.lit").count() == 0


def test_metrics_scales_splits_and_ranges_redraw(visit: Any, html: Path) -> None:
    page = visit(html)
    page.select_option("#metric", label="log_pi/rejected")
    page.select_option("#y-scale", "log")
    page.select_option("#x-scale", "linear")
    page.select_option("#split", "loss.name")
    page.wait_for_function("() => plots.length === 2")
    drawn(page)
    assert page.locator(".plot h3").all_inner_texts() == ["DPO", "IPO"]
    assert ink(page, DPO, 0) > 50 and ink(page, IPO, 0) == 0 and ink(page, IPO, 1) > 50
    assert page.evaluate("() => [plots[0].x.kind, plots[0].y.kind, plots[0].x.high]") == ["linear", "symlog", 599]
    assert page.locator("#theory-control").is_hidden()
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    page.wait_for_function("() => plots[0].x.low > 0")
    low, high = page.evaluate("() => [plots[0].x.low, plots[0].x.high]")
    assert 150 < low < 320 and 400 < high < 560
    assert page.input_value("#from") == str(low) and page.input_value("#to") == str(high)
    page.click("#whole")
    page.wait_for_function("() => plots[0].x.low === 0 && plots[0].x.high === 599")


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_the_page_is_light_or_dark_as_the_system_is_and_the_button_turns_it(
    visit: Any, html: Path, scheme: str, dark: bool
) -> None:
    page = visit(html, scheme)

    def is_dark() -> bool:
        """Of a screenshot: what is seen, not what a style says."""
        clip = page.locator(".stage").first.bounding_box()
        seen = np.asarray(_image(page.screenshot(clip=clip)))
        return bool(np.median(seen) < 128)

    def contrast() -> float:
        """Of the text beside the plots with the page behind it, as WCAG has it."""
        return float(page.evaluate(
            """() => { const light = (text) => { const c = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
                 .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                 return .2126 * c[0] + .7152 * c[1] + .0722 * c[2]; };
               const [a, b] = [getComputedStyle(document.querySelector(".hint")).color,
                 getComputedStyle(document.body).backgroundColor].map(light);
               return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }"""))  # fmt: skip

    button = page.locator("#theme")
    assert is_dark() == dark and button.get_attribute("aria-pressed") == str(dark).lower() and contrast() > 4.5
    button.click()
    assert is_dark() != dark and button.get_attribute("aria-pressed") == str(not dark).lower() and contrast() > 4.5
    assert ink(page, DPO) > 100


def _image(png: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("L")


def test_a_narrow_window_needs_no_sideways_scrolling(visit: Any, html: Path) -> None:
    page = visit(html, width=380, height=800)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 380
    assert page.locator(".stage").bounding_box()["width"] > 250


def test_what_data_hold_is_text_and_never_runs(visit: Any, tmp_path: Path) -> None:
    folder = written(tmp_path / "sweep", *four())
    evil = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    content = json.loads((folder / "sweep.json").read_text())
    content["name"] = content["runs"][0]["label"] = evil
    content["command"] = [evil]
    (folder / "sweep.json").write_text(json.dumps(content))
    config = folder / content["runs"][1]["dir"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"loss": {"name": evil}, "logps": evil}))
    (folder / content["runs"][2]["dir"] / "provenance.json").write_text(json.dumps({"platform": evil, evil: evil}))
    shutil.rmtree(folder / content["runs"][3]["dir"])
    page = visit(report(folder))
    assert page.evaluate("() => window.ran") is None
    assert page.locator("h1").inner_text() == evil and page.locator("#command").inner_text().count(evil[:20]) == 1
    assert column(page, "run")[0] == evil
    page.locator(".stage").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("() => window.ran") is None


def test_the_page_lets_itself_fetch_nothing(visit: Any, html: Path) -> None:
    page = visit(html)
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("() => fetch('https://example.com/')")
    assert visit.said and all("Content Security Policy" in text for text in visit.said)
    visit.said.clear()


def test_the_page_has_its_data_beside_it_in_full_precision(html: Path, sweep: Path) -> None:
    table = pd.read_csv(html.with_suffix(".csv"), float_precision="round_trip")
    read = load(sweep, columns=["margin"])
    last = read.history.groupby("run")["margin"].last()
    both = table.set_index("id")["margin"].reindex(last.index)
    assert (both == last).all() and len(table) == 10
    assert table["verdict"].value_counts()["margin collapse"] == 2
    assert 'href="report.csv"' in html.read_text()


def test_the_same_sweep_gives_the_same_bytes_in_another_process_at_another_time(html: Path, sweep: Path) -> None:
    before = html.read_bytes(), html.with_suffix(".csv").read_bytes()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    code = (
        "import sys\n"
        "from analysis.__main__ import main\n"
        "assert main(['report', *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'src', 'wandb'} & set(sys.modules)\n"
    )
    arguments = [sys.executable, "-W", "error", "-c", code, str(sweep)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (html.read_bytes(), html.with_suffix(".csv").read_bytes()) == before


def test_the_page_draws_means_over_a_pass_that_the_verdicts_were_made_of(visit: Any, tmp_path: Path) -> None:
    run = Run(steps=80, pairs=4, noise=0.05)
    folder = written(tmp_path / "sweep", run)
    page = visit(report(folder))
    assert page.input_value("#rows") == "mean"
    mean = page.evaluate("() => lines.values[lines.start[1] - 1]")
    read = load(folder)
    assert mean == pytest.approx(collapse.verdicts(read.runs, read.history)["h"].iloc[0], rel=1e-6)
    page.select_option("#rows", "metric")
    page.wait_for_function(f"() => lines.values[lines.start[1] - 1] !== {mean!r}")
    assert page.evaluate("() => lines.values[lines.start[1] - 1]") == pytest.approx(read.history["margin"].iloc[-1])


def test_a_sweep_of_reward_models_has_a_page(visit: Any, tmp_path: Path) -> None:
    page = visit(report(written(tmp_path / "sweep", Run("dpo", objective="reward_model"))))
    assert page.input_value("#metric") == "0" and ink(page, DPO) > 100
    assert page.evaluate("() => data.metrics[0][0]") == "rewards/margins"


@pytest.mark.slow
def test_two_thousand_runs_open_in_under_three_seconds_and_stay_usable(visit: Any, tmp_path: Path) -> None:
    html = report(write(tmp_path / "large", 2000, 1000))
    assert html.stat().st_size < 30e6
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        page = visit(html)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 3.0, seconds
    assert page.locator("#table tbody tr").count() == 100
    start = time.perf_counter()
    page.locator("#dimensions").get_by_label("IPO").uncheck()
    expect(page.locator("#shown")).to_have_text("1,000 of 2,000 runs shown")
    drawn(page)
    page.locator("#pager").get_by_role("button", name="Next").click()
    assert page.locator("#pager").inner_text().replace("\n", " ") == "Previous 101–200 of 1,000 Next"
    assert time.perf_counter() - start < 3.0
    assert "thinned" in page.locator("#explore .fine").first.inner_text()


@given(st.integers(1, 400), st.integers(4, 120), st.randoms(use_true_random=False))
def test_thinning_keeps_extremes_gaps_and_ends_and_is_short(length: int, points: int, random: Any) -> None:
    values = np.array([random.choice([random.gauss(0, 1), random.gauss(0, 1), np.nan, np.inf]) for _ in range(length)])
    kept = curves.worth_keeping(values[None], points)[0]
    assert kept[0] and kept[-1]
    finite = np.isfinite(values)
    if finite.any():
        assert values[finite].min() in values[kept] and values[finite].max() in values[kept]
    assert finite[kept].all() == finite.all()
    assert kept.all() if length <= points else kept.sum() <= 1.5 * points + 2


def test_packed_lines_are_those_of_the_history(visit: Any, html: Path, sweep: Path) -> None:
    page = visit(html)
    read = load(sweep, columns=["margin"])
    assert page.evaluate("() => [...lines.values]") == pytest.approx(
        read.history["margin"].to_numpy().astype(np.float32).tolist()
    )
    assert page.evaluate("() => [...lines.steps]") == read.history["step"].to_list()


def test_held_out_pairs_are_among_the_curves_to_the_last_evaluation(
    visit: Any, write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run(loss, pairs=4, steps=30, seed=seed) for seed, loss in enumerate(("dpo", "ipo"))]
    path = write_sweep(*runs)
    for run in runs:
        write_stream(path / run.dir / "evaluations.arrow", run.evaluations(every=10, answers=2))
    page = visit(report(path))
    assert page.locator("#mean-control").is_visible()
    page.select_option("#metric", label="eval/kl_k3")
    page.wait_for_function("() => data.metrics[state.metric][0] === 'eval/kl_k3' && lines.steps.length === 8")
    drawn(page)
    assert page.evaluate("() => [...lines.steps]") == [0, 10, 20, 30] * 2
    assert page.evaluate("() => plots[0].px(30) <= MARGIN.left + plots[0].width")
    assert ink(page, DPO) > 100 and not page.locator("#mean-control").is_visible()
    page.select_option("#metric", label="eval/rewards/margins")
    page.wait_for_function("() => lines.values[3] > 0 && data.metrics[state.metric][0] === 'eval/rewards/margins'")
    expected = runs[0].evaluations(10)["eval/rewards/margins"]
    assert page.evaluate("() => [...lines.values].slice(0, 4)") == pytest.approx(expected, rel=1e-6)


def test_a_setting_that_another_determines_is_no_setting_of_its_own(write_sweep: Any, make_run: Any) -> None:
    adam = {"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 0.99]}}
    folder = write_sweep(make_run(), make_run(beta=0.5), make_run(changes=adam, seed=1), make_run(beta=0.5, seed=1))
    assert settings.varying(load(folder).runs) == ["loss.name", "beta", "optimizer.name", "seed"]


def test_the_glossary_defines_every_verdict() -> None:
    assert tuple(words.glossary(collapse.DEFAULT)) == collapse.LABELS


def test_every_metric_with_a_name_on_the_page_is_one_of_the_format() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text()
    unknown = [name for name in payload.METRICS if f"`{name}`" not in text and name != collapse.GOLD_REWARD]
    assert unknown == []


def test_an_installed_package_has_the_pages_files() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "analysis" / "report"
    named = {file for pattern in packaged["analysis.report"] for file in folder.glob(pattern)}
    assert named == {file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}


def test_what_cannot_be_is_refused_in_one_line(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(four_runs / "no")], [str(four_runs), "--out", str(four_runs / "no" / "page.html")],
                      [str(four_runs), "--out", str(four_runs)]):  # fmt: skip
        assert main(["report", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("analysis report: ")
    assert not [*four_runs.glob("*.html"), *four_runs.glob("*.csv")]


def test_a_sweep_without_a_row_yet_has_no_page(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run(state="planned", stopped_at=0))
    assert main(["report", str(path)]) == 1 and not (path / "report.html").exists()
