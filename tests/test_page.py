"""`fl report`: what the page says of real runs, and that it works in a real browser."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

import fl
from experiments import screenshots
from fl.cli.app import app
from fl.cli.reports import _loaded
from fl.report.charts import Bars, Heatmap, Lines, Pictures, Points, Spans, mean_line
from fl.report.page.report import make_sections, own_sections
from fl.report.page.runs import Runs
from fl.report.page.section import Folded, Table
from fl.report.page.sections.images import as_pixels
from fl.report.page.traces import Pool, figure
from fl.report.page.write import write_page
from fl.report.plots.charts import plot_chart

ROOT = Path(fl.__file__).parent.parent
pytestmark = pytest.mark.xdist_group("page")  # one process makes the runs and the page
KEPT = ROOT / "build" / "screenshots"  # of the last run of these tests
TINY = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 0.5, "min_size": 20},
    "splits": {"val": 0.1, "test": 0.2},
    "model": {"name": "mlp", "hidden": [16]},
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 32, "lr": 0.1},
    "execution": {"executor": "serial"},
}
DEVICES = {"devices": {"name": "lognormal", "ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5}, "dropout": 0.3}
HOSTILE = "<img src=x onerror=alert(1)> <b>a"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of run directories: two seeds of FedAvg, one of them profiled, and methods that keep things."""
    out = tmp_path_factory.mktemp("runs")
    (out.parent / "tiny.yaml").write_text(json.dumps(TINY))
    command = ["run", f"{out.parent}/tiny.yaml", "--profile", "--out", f"{out}/fedavg/seed-0"]
    assert CliRunner().invoke(app, command).exit_code == 0
    fl.run(TINY | {"seed": 1}, out=out / "fedavg/seed-1")
    fl.run(TINY | {"system": DEVICES, "client": {"epochs": 1, "batch": 16, "lr": 0.1}}, out=out / HOSTILE)
    fl.run(TINY | {"strategy": "fedproto", "client": {}}, out=out / "fedproto")
    fl.run(TINY | {"strategy": "fedselect", "client": {"every": 1, "limit": 0.25}, "rounds": 2}, out=out / "fedselect")
    lora = {"strategy": "fedsa_lora", "model": TINY["model"] | {"adapter": {"name": "lora", "rank": 2}}}
    fl.run(TINY | lora | {"client": {"lr": 0.01}, "cohort": {"fraction": 1.0}}, out=out / "fedsa")
    stream = {"stream": {"name": "permuted", "tasks": 2, "rounds": 2}, "partition": {"name": "iid", "clients": 3}}
    without = {key: value for key, value in TINY.items() if key != "rounds"}
    fl.run(without | stream | {"splits": {"val": 0}, "evaluation": {"every": 2}}, out=out / "stream")
    return out


@pytest.fixture(scope="module")
def read(runs):
    return Runs.read(sorted(runs.iterdir()))


@pytest.fixture(scope="module")
def sections(read):
    return {section.title: section for section in make_sections(read)}


@pytest.fixture(scope="module")
def page(read, sections, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(read, list(sections.values()), file, f"All {HOSTILE}")
    return file


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def one(section, title):
    return next(block for block in section.blocks if getattr(block, "title", "") == title)


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# -- what the sections hold -------------------------------------------------------------------------------------------
def test_each_section_is_there_if_a_run_has_something_to_show(sections):
    expected = "Overview, Accuracy and loss, Clients, Bytes, Simulated time, Participation, Who holds what, "
    expected += "Stream of tasks, Prototypes, Adapters of clients, Masks, Other metrics, Timeline of workers, "
    assert ", ".join(sections) == expected + "Configuration, Environment"


def test_a_plain_run_has_no_sections_of_methods(runs):
    made = {section.title for section in make_sections(Runs.read([runs / "fedavg/seed-1"]))}
    absent = {"Stream of tasks", "Prototypes", "Adapters of clients", "Masks", "Timeline of workers", "Simulated time"}
    assert not made & (absent | {"Vertical split", "Privacy spent", "Generated images", "Generated answers"})


def test_curves_are_means_over_seeds_with_costs_by_hand(runs, sections):
    line = next(x for x in one(sections["Accuracy and loss"], "eval/accuracy").lines if x.name == "fedavg")
    rows = [metrics(runs / f"fedavg/seed-{seed}") for seed in (0, 1)]
    values = [[row["eval/accuracy"] for row in of_run] for of_run in rows]
    assert line.y.tolist() == [(a + b) / 2 for a, b in zip(*values)]
    assert line.low.tolist() == [min(pair) for pair in zip(*values)]
    assert line.high.tolist() == [max(pair) for pair in zip(*values)]
    assert [y.tolist() for _, y in line.runs] == values
    assert line.x["round"].tolist() == [1, 2, 3] and "hours" not in line.x
    up = [row["uplink_bytes"] for row in rows[0]]
    down = [row["downlink_bytes"] for row in rows[0]]
    assert line.x["up"].tolist() == pytest.approx([up[0] / 1e6, sum(up[:2]) / 1e6, sum(up) / 1e6])
    assert line.x["total"][-1] == pytest.approx((sum(up) + sum(down)) / 1e6)
    seconds = [sum(row["wall_seconds"] for row in of_run) for of_run in rows]
    assert line.x["wall"][-1] == pytest.approx(sum(seconds) / 2)


def test_each_client_comes_worst_first(sections):
    accuracy, loss = (one(sections["Clients"], f"{name} of each client") for name in ("accuracy", "loss"))
    for line in accuracy.lines:
        assert (np.diff(line.y) >= 0).all()
    for line in loss.lines:
        assert (np.diff(line.y) <= 0).all()


def test_bytes_by_group_add_up_to_those_of_the_rounds(runs, sections):
    bars = one(sections["Bytes"], "MB by group and direction")
    at = list(bars.names).index("fedavg")
    rows = [row for seed in (0, 1) for row in metrics(runs / f"fedavg/seed-{seed}")]
    assert bars.parts["up model"][at] == pytest.approx(sum(row["uplink_bytes"] for row in rows) / 2 / 1e6)


def test_participations_count_each_round_once(sections):
    bars = one(sections["Participation"], "Participations of a client")
    times = np.arange(len(bars.names))
    assert bars.parts["fedavg"].sum() == 6 and times @ bars.parts["fedavg"] == 3 * 3  # 6 clients; 3 in each of 3 rounds


def test_holdings_are_the_rows_of_the_data_set(runs, sections):
    """1,438 of the 1,797 digits are not the server's; each client has been seen in all its views but `train`."""
    section = make_sections(Runs.read([runs / "fedavg/seed-1"], _loaded))
    section = next(each for each in section if each.title == "Who holds what")
    bars = blocks(section, Bars)[0]
    assert sum(values.sum() for values in bars.parts.values()) == 1438 and list(bars.parts)[0] == "label 0"
    (matrix,) = blocks(section, Heatmap)
    assert matrix.values.shape == (10, 6) and matrix.values.sum() == 1438
    assert any("fl report --data" in text for text in blocks(sections["Who holds what"], str))


def test_the_matrix_of_a_stream_is_that_of_its_metrics(runs, sections):
    (matrix,) = blocks(sections["Stream of tasks"], Heatmap)
    rows = [row for row in metrics(runs / "stream") if "stream/acc" in row]
    assert matrix.values[0, 0] == rows[0]["task0/accuracy"] and np.isnan(matrix.values[0, 1])
    assert matrix.values[1].tolist() == [rows[1]["task0/accuracy"], rows[1]["task1/accuracy"]]


def test_methods_show_what_they_keep(sections):
    (points,) = blocks(sections["Prototypes"], Points)
    assert points.places.shape[1] == 2 and set(points.labels) <= {str(digit) for digit in range(10)}
    (factors,) = blocks(sections["Adapters of clients"], Heatmap)  # FedSA-LoRA's clients keep B alone
    assert factors.title == "Factors B: fedsa" and np.allclose(np.diag(factors.values), 1)
    shares, overlap = sections["Masks"].blocks
    # a quarter of the entries of each tensor, rounded down, becomes a client's own: arXiv:2404.02478, with limit 0.25
    sizes = (64 * 16, 16, 16 * 10, 10)
    assert shares.parts["share"].tolist() == [sum(n // 4 for n in sizes) / sum(sizes)] * len(shares.names)
    assert np.allclose(np.diag(overlap.values), 1) and (overlap.values <= 1).all()


def test_the_timeline_has_the_spans_of_the_profiled_run(sections):
    (spans,) = blocks(sections["Timeline of workers"], Spans)
    assert set(spans.track) == {"driver"} and {"compute", "evaluate"} <= set(spans.category)
    assert spans.title == "Timeline: fedavg, seed-0" and (spans.start >= 0).all()


def test_differences_between_configurations_are_those_that_were_made(runs):
    two = Runs.read([runs / "fedavg", runs / HOSTILE])
    section = next(each for each in make_sections(two) if each.title == "Configuration")
    rows = {row["key"]: row for row in blocks(section, Table)[0].rows}
    assert rows["client.batch"] == {"key": "client.batch", "fedavg": "32", HOSTILE: "16"}
    assert rows["seed"]["fedavg"] == "0, 1" and rows["system.dropout"] == {
        **{"key": "system.dropout", "fedavg": "", HOSTILE: "0.3"}
    }
    assert "client.lr" not in rows and "batch: 32" in blocks(section, Folded)[0].text


def made_by_hand(folder, rows, config="seed: 0\n"):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(config)
    return folder


def test_metrics_of_methods_have_sections_by_their_names(tmp_path):
    row = {
        "eval/accuracy": 0.5,
        "epsilon": 0.5,
        "affinity/a/b": -0.25,
        "affinity/b/a": 1.0,
        "drift": 2,
        "uplink_bytes": 8,
    }
    rows = [{"round": 0, **row}, {"round": 1, **row, "epsilon": 1.0, "affinity/a/b": 0.75}]
    found = Runs.read([made_by_hand(tmp_path / "a", rows, "seed: 0\nprivacy: {epsilon: 1.0, delta: 1.0e-6}\n")])
    made = {section.title: section for section in make_sections(found)}
    assert made["Privacy spent"].blocks[0].lines[0].y.tolist() == [0.5, 1.0]
    assert made["Privacy spent"].blocks[1] == "a: epsilon 1.0, delta 1e-06."
    (matrix,) = made["Affinity of tasks"].blocks
    assert matrix.values[0, 1] == 0.75 and matrix.values[1, 0] == 1.0 and list(matrix.x_names) == ["a", "b"]
    assert [chart.title for chart in made["Other metrics"].blocks] == ["drift"]


def test_images_of_a_state_are_shown(tmp_path):
    """A stored state with images, as a generator would leave it."""
    import torch

    from fl.storage import checkpoint

    folder = made_by_hand(tmp_path / "a", [{"round": 0, "eval/loss": 1.0}])
    (folder / "checkpoints").mkdir()
    state = {"made": torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8), "other": torch.zeros(2, 3, 8, 8)}
    checkpoint.save(folder / "checkpoints/final.safetensors", {"round": 1, "state": state})
    made = {section.title: section for section in make_sections(Runs.read([folder]))}
    (pictures,) = blocks(made["Generated images"], Pictures)
    assert pictures.images.shape == (2, 8, 8, 3) and pictures.images[0, 0, 1].tolist() == [1, 65, 129]
    assert as_pixels(state["made"][:, :1]).shape == (2, 8, 8)


def test_generated_answers_of_the_first_and_the_last_round_are_shown(tmp_path):
    folder = made_by_hand(tmp_path / "a", [{"round": 0, "eval/loss": 1.0}])
    (folder / "samples").mkdir()
    for round_, texts in ((1, ("no", "na")), (3, ("so", "sa")), (12, ("yes", "ya"))):
        samples = [{"prompt": f"q{i}\n?", "answer": f"a{i}", "generated": text} for i, text in enumerate(texts)]
        lines = "".join(json.dumps({"round": round_, "row": i, **sample}) + "\n" for i, sample in enumerate(samples))
        (folder / "samples" / f"round_{round_}.jsonl").write_text(lines)
    made = {section.title: section for section in make_sections(Runs.read([folder]))}
    (table,) = blocks(made["Generated answers"], Table)
    assert table.rows == [
        {"prompt": "q0 ?", "answer": "a0", "after round 1": "no", "after round 12": "yes"},
        {"prompt": "q1 ?", "answer": "a1", "after round 1": "na", "after round 12": "ya"},
    ]


# -- unfinished runs, mistakes ----------------------------------------------------------------------------------------
def test_an_unfinished_run_shows_what_is_there_and_says_so(runs, tmp_path):
    """As a killed run leaves it: no digests, no tables, the growing files alone, the last line of metrics cut off."""
    shutil.copytree(runs / "fedavg/seed-1", tmp_path / "killed")
    for name in ("SHA256SUMS", "clients.parquet", "ledger.parquet", "model.safetensors"):
        (tmp_path / "killed" / name).unlink()
    lines = (tmp_path / "killed/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed/metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    made_by_hand(tmp_path / "new", [])
    sections = {each.title: each for each in make_sections(Runs.read([tmp_path / "killed", tmp_path / "new"]))}
    texts = blocks(sections["Overview"], str)
    assert texts[0].endswith("killed (killed) has done 2 of 3 rounds; this page shows these rounds.")
    assert texts[1] == f"Left out: {tmp_path}/new has no finished round."
    assert {"Clients", "Bytes", "Participation", "Who holds what"} <= set(sections)


def test_a_damaged_file_costs_its_section_alone(runs, tmp_path):
    shutil.copytree(runs / "fedavg/seed-0", tmp_path / "hurt")
    data = bytearray((tmp_path / "hurt/ledger.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "hurt/ledger.parquet").write_bytes(data)
    sections = {each.title: each for each in make_sections(Runs.read([tmp_path / "hurt"]))}
    assert "is damaged: its SHA-256 is not that in" in sections["Sent bytes"].blocks[0]
    assert "Accuracy and loss" in sections


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{0}/nothing"], "is no run directory, and holds none"),
        (["{0}/new"], "has no finished round yet; wait, or resume it"),
        (["{0}/fedavg", "--out", "{0}"], "is a folder; name a file in it"),
        (["{0}/fedavg", "--cost", "euros"], "--cost: 'euros' is not one of ['round', 'up'"),
        (["{0}/fedavg", "--section", "drift"], "--section: 'drift' is not FILE.py:NAME"),
        (["{0}/fedavg", "--section", "{0}/none.py:drift"], "none.py does not exist"),
    ],
)
def test_mistakes_are_named(runs, tmp_path, arguments, said):
    shutil.copytree(runs / "fedavg/seed-1", tmp_path / "fedavg")
    made_by_hand(tmp_path / "new", [])
    done = CliRunner().invoke(app, ["report", *(a.format(tmp_path) for a in arguments)])
    assert done.exit_code == 2 and said in done.stderr


OWN = """
import numpy as np
from fl.report.charts import Line, Lines
from fl.report.page.section import Section, Table

def gap(runs):
    rows = [{"name": v.name, "gap": float((v.values("eval/loss") - v.values("val/loss"))[0])} for v in runs.variants]
    line = Line(name="<i>mine", x=np.arange(2), y=np.array([1.0, 2.0]))
    chart = Lines(title="own", lines=[line], x_label="x", y_label="y")
    return Section("Gap <b>", [chart, Table(rows), "One sentence."])

def nothing(runs):
    return None

def wrong(runs):
    return 3
"""


def test_users_bring_sections_and_figures_are_written(tmp_path):
    made_by_hand(tmp_path / "run", [{"round": 0, "eval/loss": 1.0, "val/loss": 2.0, "uplink_bytes": 2_000_000}])
    (tmp_path / "mine.py").write_text(OWN)
    command = ["report", str(tmp_path / "run"), "--out", f"{tmp_path}/page/r.html", "--title", "Mine"]
    command += ["--section", f"{tmp_path}/mine.py:gap", "--section", f"{tmp_path}/mine.py:nothing"]
    done = CliRunner().invoke(app, [*command, "--svg", f"{tmp_path}/svg", "--cost", "up"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page/r.html").read_text()
    assert "<h2>Gap &lt;b&gt;</h2>" in text and "<p>One sentence.</p>" in text and "<title>Mine</title>" in text
    names = {file.name for file in (tmp_path / "svg").iterdir()}
    assert names == {"gap-b-own.svg", "accuracy-and-loss-eval-loss.svg", "accuracy-and-loss-val-loss.svg"}
    assert "MB up" in (tmp_path / "svg/accuracy-and-loss-eval-loss.svg").read_text()  # a comment beside its outlines
    failed = CliRunner().invoke(app, [*command[:2], "--section", f"{tmp_path}/mine.py:wrong", "--out", f"{tmp_path}/x"])
    assert failed.exit_code == 2 and "wrong returned int, not a Section or None" in failed.stderr
    assert own_sections([f"{tmp_path}/mine.py:gap"])[0].__name__ == "gap"


@pytest.mark.parametrize(
    "chart",
    [
        Lines(title="t", lines=[mean_line("a", [({"up": np.arange(2)}, np.arange(2.0))] * 2)], y_label="y"),
        Bars(title="t", names=["a", "b"], parts={"p": np.ones(2), "q": np.ones(2)}, x_label="x"),
        Bars(title="t", names=["a"], parts={"p": np.ones(1), "q": np.ones(1)}, x_label="x", upright=True, beside=True),
        Heatmap(title="t", values=np.eye(2) - 0.5, x_label="x", y_label="y", signed=True),
        Points(title="t", places=np.eye(2), groups=["a", "b"], labels=["a", "b"]),
        Spans(title="t", track=["a"], start=np.zeros(1), length=np.ones(1), category=["c"], name=["n"]),
        Pictures(title="t", images=np.zeros((5, 8, 8, 3), np.uint8), names=list("abcde")),
    ],
    ids=lambda chart: type(chart).__name__,
)
def test_every_kind_of_chart_is_drawn(chart, tmp_path):
    plot_chart(chart, tmp_path / "chart.png", "up")
    picture = matplotlib.image.imread(tmp_path / "chart.png")[..., :3].reshape(-1, 3)
    assert 1 < len(np.unique(picture, axis=0)) and picture.mean() < 1
    if not isinstance(chart, Pictures):  # which the page shows as images
        assert figure(chart, [], Pool())["data"]


# -- the file ---------------------------------------------------------------------------------------------------------
def test_the_page_asks_for_nothing_and_holds_no_markup_of_runs(page):
    text = page.read_text()
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', outside) == []
    assert "<img src=x" not in outside and "&lt;img src=x onerror=alert(1)&gt;" in outside
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    assert not set("<>&") & set(data) and json.loads(data)["charts"]


def test_names_in_charts_are_text():
    chart = Bars(title="t", names=["<b>a"], parts={"<i>p": np.ones(1)}, x_label="<u>")
    made = json.dumps(figure(chart, [], Pool()))
    assert "<" not in made and "&lt;b&gt;a" in made


# -- in a browser -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def opened():
    if screenshots.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    pytest.importorskip("playwright", reason="no playwright: pip install -e '.[dev]'")
    with screenshots.browser() as browser:
        yield browser


def test_the_page_works_in_a_browser(opened, page, read):
    """Loads without an error or a request, every switch changes what it should, names are text, nothing overflows."""
    requests, said = [], []
    tab = opened.new_page(viewport={"width": 1280, "height": 900})
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.goto(page.as_uri())
    tab.wait_for_selector(screenshots.READY, timeout=120_000)
    charts = tab.evaluate("Object.keys(JSON.parse(document.getElementById('data').textContent).charts)")
    for chart in charts:  # charts are drawn when they come near the window
        tab.locator(f"#{chart}").scroll_into_view_if_needed()
        tab.wait_for_selector(f"#{chart} .main-svg")
    tab.evaluate("window.scrollTo(0, 0)")
    assert len(charts) > 30
    assert HOSTILE in tab.locator("h1").inner_text() and tab.locator("main img[src=x]").count() == 0

    def state(expression):
        return tab.evaluate(
            f"(() => {{ const chart = document.getElementById('{charts[0]}'); return {expression}; }})()"
        )

    def choose(name, value):
        before = tab.get_attribute("html", "data-ready")
        tab.locator(f"input[name={name}][value={value}]").check(force=True)
        tab.wait_for_function("before => document.documentElement.dataset.ready !== before", arg=before)

    labels = {"up": "MB up", "total": "MB up and down", "hours": "simulated hours"}
    drawn = state("chart.querySelectorAll('.scatterlayer .trace').length")
    for value, label in {**labels, "wall": "wall seconds", "round": "rounds"}.items():
        choose("axis", value)
        assert state("chart.layout.xaxis.title.text") == label
        if value == "hours":  # one variant alone has a system model, and its name is shown as text
            assert state("chart.querySelectorAll('.scatterlayer .trace').length") < drawn
            said_missing = tab.locator("figure .missing").first.inner_text()
            assert said_missing.startswith("Not counted: simulated hours of ") and "fedavg" in said_missing
    shown = "chart.data.filter(trace => trace.visible).length"
    mean = state(shown)
    choose("show", "runs")
    assert state(shown) == sum(len(variant.runs) for variant in read.variants)
    choose("show", "mean")
    assert state(shown) == mean
    backs = []
    for theme in ("light", "dark", "system"):
        choose("theme", theme)
        backs.append(
            (tab.evaluate("getComputedStyle(document.body).backgroundColor"), state("chart.layout.font.color"))
        )
    assert backs[0] == backs[2] != backs[1] and backs[0][1] != backs[1][1]
    for width in (1280, 420):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    tab.close()
    assert said == [] and requests == [page.as_uri()]


def test_screenshots_are_kept(opened, page):
    pytest.importorskip("PIL")
    from PIL import Image

    tops = {}
    for name, (_, width, _) in screenshots.VIEWS.items():
        screenshots.shoot(opened, page, name, KEPT / f"report-{name}.png")
        picture = Image.open(KEPT / f"report-{name}.png").convert("L")
        assert picture.width == width
        tops[name] = picture.getpixel((3, 3))
    assert tops["light"] > 240 > 60 > tops["dark"]
