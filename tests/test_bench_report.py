"""The page, the table and the pictures of a results folder, and two folders side by side."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text
from rich.console import Console

import bench_rows
from bench_rows import Letters, row, turn
from draftwise.bench import compare, measures, report
from draftwise.bench.page import overview, samples, table
from draftwise.bench.page.canvas import label, styled
from draftwise.bench.schema import Row

NAMES = ["report.html", "report.md", "speed.svg", "pareto.svg", "acceptance.svg", "length.svg", "shares.svg", "groups.svg"]
EVIL = "</pre></title></style><script>alert(1)</script><img src=x onerror=alert(2)> & $x_1$ | \u202egnitrats \x1b[2J"


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


def made(folder: Path, rows: list[Row], **options) -> dict[str, str]:
    """What the report of these rows holds, by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in report.write(bench_rows.write(folder, rows, **options))}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("run"), bench_rows.run(24))


def test_all_files_are_there(page):
    assert list(page) == NAMES


def test_the_page_needs_no_network(page):
    found = Tags(page["report.html"])
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "image"})
    links = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href", "xlink:href", "action")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", page["report.html"])


def test_the_page_says_what_matters(page):
    text = Tags(page["report.html"]).text
    assert "Speed and quality of big, drafted by small" in text
    assert "The fastest lossless method is fixed:n=5 at 6.96 tokens/s" not in text  # of another machine
    # 24 problems of 12 tokens; hard = 1 + i/10 has a mean of 2.15
    assert f"The fastest lossless method is fixed:n=5 at {12 / 1.5 / 2.15:.2f} tokens/s, 2.00 times the plain decoding of its engine" in text
    assert f"Lossy, and faster: adasd at {12 / 1.2 / 2.15:.2f} tokens/s, 2.50 times" in text
    assert "The fastest peer is vllm-draft (f32)" in text
    assert "Test CPU, 2 cores, 2 threads, 24 GiB memory, torch 2.13.0" in text
    assert "24 problems, the same for all 5 variants (12 code, 12 maths)" in text
    assert "not finished" not in text and "too narrow" not in text


def test_the_table_is_that_of_the_figures(page):
    lines = [line for line in page["report.md"].splitlines() if line.startswith("| ")]
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    cells = dict(zip(heads, (cell.strip() for cell in lines[3].split("|")[1:-1]), strict=True))
    wanted = {"variant": "adasd", "precision": "bf16", "× own plain": "2.50 (2.50 to 2.50)", "gsm8k": "16/24", "tau": "4.00", "accepted, %": "50"}
    assert cells.items() >= wanted.items()
    assert (cells["relaxed, %"], cells["same text, %"]) == ("25 (25 to 25)", "100 / 100")
    assert "| plain | bf16 |" in lines[2] and "2.50 |" in lines[2]  # memory, of plain only


def test_pictures_are_svg_with_units(page):
    for name in NAMES[2:]:
        tree = ElementTree.fromstring(page[name])
        assert tree.tag.endswith("svg") and tree.get("aria-label")
    assert "tokens per second" in page["speed.svg"] and "fixed:n=5" in page["speed.svg"]
    assert "% of all tasks" in page["pareto.svg"]
    assert "position in the draft" in page["acceptance.svg"] and "round of the answer" in page["length.svg"]
    assert "share of the wall time, %" in page["shares.svg"] and "maths (12)" in page["groups.svg"]


def test_equal_rows_give_equal_files(tmp_path, page):
    rows = bench_rows.run(24)
    assert made(tmp_path / "again", rows[::-1]) == page


def test_nothing_from_a_model_or_a_name_becomes_html(tmp_path):
    rows = [r._replace(group=EVIL, command=EVIL, machine={"cpu": EVIL}) for r in bench_rows.run(2)]
    rows = [r._replace(turns=tuple(t._replace(text=EVIL) for t in r.turns), variant=r.variant.replace("adasd", EVIL)) for r in rows]
    config = {"target": EVIL, "draft": EVIL, "methods": [EVIL, "adasd"], EVIL: EVIL}
    files = made(tmp_path, rows, config=config)
    found = Tags(files["report.html"])
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img"})
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in found.text  # as words
    assert "\u202e" not in files["report.html"] or "\u202e" not in re.findall(r"<pre>.*?</pre>", files["report.html"], re.DOTALL)[0]
    assert "<script" not in files["report.md"] and "<img" not in files["report.md"]
    for name in files.keys() - {"report.html", "report.md"}:
        assert "{http://www.w3.org/2000/svg}script" not in {element.tag for element in ElementTree.fromstring(files[name]).iter()}


def test_samples_show_who_wrote_each_token(tmp_path):
    folder = bench_rows.write(tmp_path, bench_rows.run(2))
    html = (report.write(folder, tokenizer=Letters())[0]).read_text(encoding="utf-8")
    card = re.search(r"<h3>adasd</h3><pre>(.*?)</pre>", html)[1]
    one = '<span class="drafted">{}</span><span class="relaxed">{}</span><span class="drafted">{}</span><span class="target">{}</span>'
    assert card == one.format(*"abcd") + one.format(*"efgh") + one.format(*"ijkl")
    assert report.write(folder)[0].read_text(encoding="utf-8") == html  # without the tokenizer, from what was kept


def test_without_a_tokenizer_samples_are_whole(page):
    assert "The tokenizer of the target was not at hand" in page["report.html"]
    assert "<h3>adasd</h3><pre>text of 12 tokens</pre>" in page["report.html"]


def test_samples_of_another_problem_are_not_mixed_up(tmp_path):
    rows = measures.answered(bench_rows.run(2)).table
    (tmp_path / samples.FILE).write_text(json.dumps({"problem": "gsm8k, p7", "pieces": {"adasd": ["x"] * 12}}))
    title, found = samples.samples(rows, tmp_path)
    assert title == "gsm8k, p0" and found[1].runs == (("text of 12 tokens", ""),)


def test_an_unfinished_run_says_so(tmp_path):
    rows = [some for some in bench_rows.run(4) if some.id != "p3" or some.variant == "plain"]
    config = {"tasks": {"gsm8k": {"version": 1, "problems": 6}}, "methods": ["plain", "adasd", "svip"], "temperature": 0.7, "baseline": "svip"}
    folder = bench_rows.write(tmp_path, rows, config, tail='{"task": "gsm8k", "ver')
    text = Tags(report.write(folder)[0].read_text(encoding="utf-8")).text
    for words in (
        "last row was cut short",
        "3 of 6 problems",
        "Without any answer so far: svip.",
        "Only 3 problems",
        "sampled",
        "plain stands in for it",
    ):
        assert words in text, words
    assert [line for line in report.summary(folder)["notes"] if "3 of 6" in line]


def test_a_run_without_rows_gives_a_page(tmp_path):
    files = made(tmp_path, [], config={"target": "big", "methods": ["plain"]})
    assert list(files) == ["report.html", "report.md"]
    assert "There is nothing to compare yet." in files["report.html"]


def test_plain_alone_gives_a_page(tmp_path):
    files = made(tmp_path, [r for r in bench_rows.run(2) if r.variant == "plain"])
    assert "Only plain decoding has been timed so far" in files["report.html"] and "groups.svg" not in files


def test_machines_that_differ_are_told(tmp_path):
    rows = bench_rows.run(2)
    rows[0] = rows[0]._replace(machine={"cpu": "Another"})
    assert "more than one machine" in made(tmp_path, rows)["report.html"]


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="there are no results in"):
        report.write(tmp_path / "nothing")
    rows = bench_rows.run(1)
    folder = bench_rows.write(tmp_path / "run", rows)
    with pytest.raises(ValueError, match="there is no variant 'fast'"):
        report.write(folder, baseline="fast")
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is no line of a bench"):
        report.write(folder)


def test_samples_are_shown_and_compared(tmp_path):
    def told(factor: float) -> list[Row]:
        rows = []
        for variant, speeds in {"plain": (1.0, 1.0), "stand": (1.0, factor)}.items():
            for i, speed in enumerate(speeds):
                rows += [row(variant, id, turn(12, 12 / speed, bench_rows.rounds(4, 5, i + 1)), sample=i) for id in "abc"]
        return rows

    config = {"target": "t", "samples": 2, "temperature": 0.6, "tasks": {"gsm8k": {"version": 1, "problems": 3, "hash": "x"}}}
    folders = [bench_rows.write(tmp_path / str(factor), told(factor), config) for factor in (2.0, 3.0)]
    report.write(folders[0])
    text = (folders[0] / "report.md").read_text()
    assert "| first → last sample | tau by sample |" in text and "| 1.00 → 2.00, × 2.00 (2.00 to 2.00) | 2.00 3.00 |" in text
    assert "1.00 → 2.00, × 2.00 <small>(2.00 to 2.00)" in (folders[0] / "report.html").read_text()
    assert "3 problems, the same for all 2 variants (3 gsm8k)" in (folders[0] / "report.html").read_text()
    short = bench_rows.write(tmp_path / "short", told(2.0)[:-1], config)
    assert "5 of 6 samples of problems have been answered" in " ".join(report.summary(short)["notes"])
    change = {some.variant: some for some in compare.compare(*folders).changes}["stand"]
    assert change.problems == 3 and change.speed.point == pytest.approx((24 / 16) / (24 / 18)) and "speed" in change.beyond_noise


def test_without_matplotlib_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install draftwise\[bench\]"):
        report.write(bench_rows.write(tmp_path, bench_rows.run(1)))


def many(n: int) -> list[Row]:
    """Rows of n variants with long names, close to each other in speed and quality."""
    names = [f"method-with-a-long-name:option={i},another=[nested:x={i}]" for i in range(n)]
    return [
        row(name, f"p{j}", turn(20, 2 + (i % 5) / 40 + j / 10), correct=(i + j) % 4 > 0) for i, name in enumerate(["plain", *names]) for j in range(4)
    ]


def test_names_in_the_scatter_do_not_meet():
    with styled():
        figure = overview.scatter(measures.figures(many(24)))
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without their lines
    assert len(boxes) > 10
    meeting = [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9))]
    assert meeting == []


def test_long_names_fit():
    f = measures.figures(many(1))[1]
    assert len(label(f)) == 34 and label(f).startswith("method-with-a-lon") and label(f).endswith("her=[nested:x=0]")


def test_a_peer_may_be_at_its_best_when_it_decodes_plainly():
    faster = {"vllm": 9}
    rows = [r._replace(turns=tuple(t._replace(seconds=t.seconds / faster.get(r.variant, 1)) for t in r.turns)) for r in bench_rows.run(2)]
    said = [line for line in table.headline(measures.figures(rows)) if "peer" in line]
    assert len(said) == 1 and said[0].startswith("The fastest peer is vllm (")
    assert said[0].endswith("tokens/s, decoding plainly; fixed:n=5 is 0.19 times as fast.")


def test_the_front():
    spots = [overview.Spot(None, x, y, 0, 0) for x, y in ((1, 9), (2, 9), (3, 5), (4, 7), (5, 1), (2, 8))]
    assert [(s.x, s.y) for s in overview.front(spots)] == [(2, 9), (4, 7), (5, 1)]


def test_markdown_keeps_its_columns(tmp_path):
    rows = [r._replace(variant=r.variant.replace("adasd", "a|b")) for r in bench_rows.run(2)]
    lines = [line for line in table.markdown(measures.figures(rows), "plain", []).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


# ---- two results


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    old = bench_rows.run(12)
    new = [r._replace(turns=tuple(t._replace(seconds=t.seconds / 2 if r.variant == "adasd" else t.seconds) for t in r.turns)) for r in old]
    new = [r._replace(correct=None if r.correct is None else r.variant == "adasd") for r in new if r.variant != "vllm"]
    a = bench_rows.write(tmp_path / "a", old, {"target": "big", "seed": 0, "command": "x", "draftwise": "1"})
    return a, bench_rows.write(tmp_path / "b", new, {"target": "big", "seed": 1, "command": "y", "draftwise": "2"})


def test_changes_beyond_noise(two):
    found = compare.compare(*two)
    changes = {change.variant: change for change in found.changes}
    assert list(changes) == ["adasd", "fixed:n=5", "plain", "vllm-draft"]
    assert changes["adasd"].speed == pytest.approx((2, 2, 2)) and changes["plain"].speed == (1, 1, 1)
    assert changes["adasd"].accuracy.point == pytest.approx(4 / 12) and changes["plain"].accuracy.point == pytest.approx(-8 / 12)
    assert changes["adasd"].acceptance == (0, 0, 0) and changes["vllm-draft"].acceptance is None
    assert changes["adasd"].beyond_noise == ("speed", "accuracy") and changes["fixed:n=5"].beyond_noise == ("accuracy",)
    assert (found.only_a, found.only_b) == (("vllm",), ())
    assert found.configuration == ("asked.seed: 0 there, 1 here", 'asked.draftwise: "1" there, "2" here')


def test_a_result_is_like_itself(two):
    found = compare.compare(two[0], two[0])
    assert all(change.beyond_noise == () and change.same_text == 1 for change in found.changes) and found.configuration == ()


def test_the_comparison_as_json_and_as_a_table(two):
    found = compare.compare(*two)
    record = json.loads(json.dumps(compare.to_json(found)))
    assert record["changes"][0]["speed"] == pytest.approx({"point": 2, "low": 2, "high": 2})
    console = Console(width=200, record=True, file=sys.stderr)
    console.print(compare.render(found))
    text = console.export_text()
    assert "x 2.00 (2.00 to 2.00) *" in text and "x 1.00 (1.00 to 1.00) *" not in text
    assert "asked.seed: 0 there, 1 here" in text and "Only in" in text


def test_results_that_share_nothing(tmp_path):
    a = bench_rows.write(tmp_path / "a", [row("plain", "a", turn(1, 1.0))])
    b = bench_rows.write(tmp_path / "b", [row("plain", "b", turn(1, 1.0))])
    with pytest.raises(ValueError, match="share no problem answered by the same variant"):
        compare.compare(a, b)


def test_answers_that_the_limit_cut_are_told_of(tmp_path: Path) -> None:
    def told(reasons: list[str]) -> list[str]:
        rows = [
            row("plain", f"p{i}", turn(8, 1.0)._replace(finish_reason=reason), correct=False, group="gsm8k")
            for i, reason in enumerate(reasons)
        ]
        return [note for note in report.summary(bench_rows.write(tmp_path / str(len(reasons)), rows))["notes"] if "cut by the limit" in note]

    assert told(["stop"] * 20 + ["length"]) == []
    assert told(["stop", "length"]) == ["50% of the judged answers were cut by the limit of tokens: the shares of right answers are too low."]
