"""The page, from artefacts with known numbers and colours."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import test_external_results
import torch
from finished_stages import EDITORS, FIRST, PEOPLE, PROMPTS, SIZE, WORKFLOW, numbers, test_people, write_edits
from PIL import Image

from pipeline import portraits
from pipeline.evaluation import REFERENCES, bootstrap, figures, tuning
from pipeline.report import charts, edit_grid, page
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, images
from pipeline.storage.domains import NETWORKS, Domain, Weights, default_path


@pytest.fixture
def domain() -> Domain:
    networks = {name: Weights(default_path("portraits", name)) for name in NETWORKS}
    return Domain("portraits", SIZE, "face", prompts=PROMPTS, **networks)


@pytest.fixture
def project(tmp_path: Path, domain: Domain) -> Path:
    """What the stages would have left, with numbers that are easy to find again."""
    test, layout = test_people(), artefacts.DomainPaths("portraits", tmp_path)
    assert test.people is not None
    artefacts.write_shard(
        layout.images / artefacts.shard_name(0),
        "images",
        {
            "id": list(test.ids),
            "split": ["test"] * PEOPLE,
            "image": [images.encode_png(image) for image in test.images],
            "params": [json.dumps(portraits.to_dict(person)) for person in test.people],
        },
        {},
    )
    scores = []
    for editor in EDITORS:
        write_edits(layout.edits(editor), test)
        for row_id in test.ids:
            scores += [
                {"editor": editor, "id": row_id, "prompt": p.text, "reached": 1.0, "kept": 0.9, "identity": 0.8}
                | {"counterfactual_gain": 2.5}
                for p in PROMPTS
            ]
    artefacts.write_table(layout.scores, pl.DataFrame(scores))
    layout.metrics.parent.mkdir(parents=True)
    layout.metrics.write_text(json.dumps(numbers()))
    (tmp_path / "params.yaml").write_text("domains: [portraits]\nmapper:\n  lr: 0.5\n  rows: null\n")
    (tmp_path / "dvc.yaml").write_text(json.dumps(WORKFLOW))
    layout.curve("mapper").parent.mkdir(parents=True)
    layout.curve("mapper").write_text("step,cosine\n50,0.9\n100,0.5\n150,0.41\n")
    layout.timings.mkdir(parents=True)
    layout.timing("cache").write_text('{"seconds": 125.0, "peak_rss": 1500000000}')
    return tmp_path


# ---------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Collects the page's words, its addresses, and whether every tag is closed."""

    void = frozenset({"input", "meta", "link", "img", "br", "line", "rect", "circle", "path", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "action", "srcset", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.words.append(data.strip())
            if self.rows and "table" in self.open:
                self.rows[-1].append(data.strip())


def test_the_page_is_well_formed_and_stands_alone(project: Path, domain: Domain) -> None:
    html = page.render(domain, project)
    read = Reader(html)
    assert read.open == []
    assert all(address.startswith(("#", "data:")) for address in read.addresses)
    outside = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in outside and "@import" not in outside and 'class="chart workflow"' in outside
    assert str(project) not in html


def test_the_page_holds_the_numbers_with_their_intervals(project: Path, domain: Domain) -> None:
    rows = Reader(page.render(domain, project)).rows
    delta = next(row for row in rows if "DeltaEdit-G" in row and "0.44" in row)
    assert delta[1:3] == ["0.44", "0.43 to 0.45"] and "0.12" in delta and "0.88" in delta
    assert ["cosine, validation", "0.654"] in rows
    assert ["hair color", "0.970", "0.960 to 0.980", "0.770", "0.760 to 0.780"] in rows


def test_a_number_that_was_not_measured_leaves_no_empty_row(project: Path, domain: Domain) -> None:
    words = Reader(page.render(domain, project)).words
    assert "MSE, validation" not in words and "Diffusion round trip" not in words
    assert not any("nan" in word.lower().split() for word in words)


def test_figures_are_shown_with_their_captions_where_they_were_drawn(project: Path, domain: Domain) -> None:
    html = page.render(domain, project)
    assert 'id="figures"' not in html and "Map of CLIP space" not in html
    layout = artefacts.DomainPaths(domain, project)
    grids = {name: torch.zeros(3, 8, 8) for name in ("between", "mixed")}
    figures.save(layout, grids, prompts=[prompt.text for prompt in PROMPTS[:2]], levels=["coarse", "fine"])
    points = {"space": [0, 0, 1, 1], "text": [0, 1, 0, 1], "x": [0.0, 1.0, 0.25, 0.5], "y": [0.0, 1.0, 0.5, 0.75]}
    figures.save_map(layout, {name: np.array(column) for name, column in points.items()})
    html = page.render(domain, project)
    assert "its edit “face with red hair”; from that edit to “face with &lt;b&gt;sunglasses&lt;/b&gt;”" in html
    assert (
        "level of the other's style: coarse, fine" in html
        and "At strengths" not in html
        and "Command: <code>deltaspace mix</code>" in html
    )
    assert html.count('alt="Map of CLIP space: ') == 2 and Reader(html).words
    (_, figure), _ = charts.clip_maps(layout.clip_map)
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[0, 0]], [[1, 1]]]


def test_prompts_of_several_attributes_are_marked_and_have_a_column(project: Path, domain: Domain) -> None:
    path = artefacts.DomainPaths(domain, project).metrics
    content = json.loads(path.read_text())
    for row in content["editors"].values():
        row["combined"] = {"reached": bootstrap.metric(0.321, 0.3, 0.34)}
    path.write_text(json.dumps(content))
    both = replace(PROMPTS[2], split="combined", also={"glasses": "none"})
    html = page.render(replace(domain, prompts=(*PROMPTS[:2], both, *PROMPTS[3:])), project)
    assert "reached, combined" in html and "0.32" in html
    assert 'face with grey hair <span class="tag">combined</span>' in html
    assert "ask for several attributes, and are reached where the oracle reads all of them" in html


def test_the_reference_rows_enclose_the_editors(project: Path, domain: Domain) -> None:
    rows = Reader(page.render(domain, project)).rows
    first = [row[0] for row in rows if row and row[0] in ("input, unedited", "DeltaEdit-G", "counterfactual")]
    assert first[:3] == ["input, unedited", "DeltaEdit-G", "counterfactual"]


def test_a_prompt_cannot_write_html(project: Path, domain: Domain) -> None:
    html = page.render(domain, project)
    assert "face with &lt;b&gt;sunglasses" in html and "<b>sunglasses" not in html


def test_every_image_belongs_to_its_row_and_prompt(project: Path, domain: Domain) -> None:
    """An edit's colour identifies its image and prompt; tiles are below their prompt and counterfactual."""
    html = page.render(domain, project)
    edits = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="DeltaEdit-G: ([^"]+)"', html)
    assert edits
    texts = {prompt.text.replace("<", "&lt;").replace(">", "&gt;"): i for i, prompt in enumerate(PROMPTS)}
    for content, text in edits:
        pixel = Image.open(io.BytesIO(base64.b64decode(content))).getpixel((0, 0))
        assert pixel[1] == 40 + 50 * texts[text]  # type: ignore[index]
    rows = [int(number) for number in re.findall(r"<th>image (\d+)</th>", html)]
    assert len(rows) == edit_grid.PAGE_ROWS
    counterfactuals = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="counterfactual: ([^"]+)"', html)
    tested = {text for _, text in counterfactuals}
    assert tested <= set(texts) and "face with ginger hair" not in tested


def test_the_speed_table_is_shown_when_it_was_measured(project: Path, domain: Domain) -> None:
    assert 'id="speed"' not in page.render(domain, project)
    numbers = ("published_s", "plain_s", "ours_s", "ratio", "ratio_low", "ratio_high", "ratio_plain", "memory_ratio")
    row = {name: 1.25 + i for i, name in enumerate(numbers)}
    rows = {"box_resample": {**row, "max_abs_diff": 3e-7}, "reverse": {**row, "max_abs_diff": None}}
    machine = {"device": "a machine", "cores": 2, "threads": 1, "load": 0.5, "torch": "2.0"}
    (project / "reports/bench.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    html = page.render(domain, project)
    section = html[html.index('id="speed"') :]
    for text in ("a machine", "load 0.5", "box resample", "1.250", "<b>4.25</b> (5.25 to 6.25)", "8.2", "3.0e-07"):
        assert text in section


def test_costs_and_curves_are_shown_when_they_are_there(project: Path, domain: Domain) -> None:
    words = " ".join(Reader(page.render(domain, project)).words)
    assert "2 min 5 s" in words and "1.50 GB" in words
    assert "mapper: cosine, at the end 0.41" in words
    layout = artefacts.DomainPaths("portraits", project)
    assert "of it to fit" not in words
    layout.timing("edit_baseline-stylemc").write_text('{"seconds": 9.0, "fit_seconds": 8.5, "peak_rss": 1500000000}')
    assert "9.0 s, 8.5 s of it to fit the prompts" in " ".join(Reader(page.render(domain, project)).words)
    layout.timing("edit_baseline-stylemc").unlink()
    layout.timing("cache").unlink()
    layout.curve("mapper").unlink()
    words = " ".join(Reader(page.render(domain, project)).words)
    assert "Costs" not in words and "Curves" not in words


def test_a_column_that_only_some_editors_have_is_shown_and_the_best_of_them_marked(
    project: Path, domain: Domain
) -> None:
    path = project / "reports/portraits/metrics.json"
    content = json.loads(path.read_text())
    names = [name for name in content["editors"] if name not in REFERENCES]
    content["editors"][names[0]]["mask_iou"] = {"value": 0.43, "low": 0.41, "high": 0.45}
    path.write_text(json.dumps(content))
    html = page.render(domain, project)
    assert "mask IoU" in html and re.search(
        r'<td class="best"><b>0\.43</b>' if len(names) > 1 else r"<b>0\.43</b>", html
    )


def test_trials_are_charts_with_a_line_per_kind_and_a_table(project: Path, domain: Domain) -> None:
    assert "Trials" not in page.render(domain, project)
    settings = [
        {"strength": 1.0, "threshold": 0.1, "same_sign": True, "steps": steps, "solver": solver}
        for solver in ("belm", "ddim")
        for steps in (10, 100)
    ]
    content = [
        tuning.Trial(
            "deltaedit_d",
            chosen,
            **{"reached": 0.5 + 0.1 * i, "kept": 0.9, "psnr": 20.0 + i, "distance": 0.1 * i, "agreement": 0.2},
            **{"evaluations": chosen["steps"] * 2, "seconds": 0.1, "round_trip": 10.0**-i},
        )
        for i, chosen in enumerate(settings)
    ]
    path = artefacts.DomainPaths(domain, project).trials / "solvers.csv"
    tuning.save(path, 24, "seen", [("painted", trial) for trial in content])
    (trial,) = [charts.trials(path) for path in artefacts.DomainPaths(domain, project).trials.glob("*.csv")]
    assert trial["varied"] == ["steps", "solver"] and trial["images"] == "24"
    passes, distance = trial["charts"]
    assert distance["title"] == "agreement with the text against distance to the input"
    assert [name for name, _, _ in passes["lines"]] == ["DeltaEdit-D solver belm", "DeltaEdit-D solver ddim"]
    assert passes["figure"].axes[0].lines[0].get_xydata().tolist() == [[20, 20], [200, 21]]
    reader = Reader(page.render(domain, project))
    assert "solvers (24 images)" in reader.words and "All 4" in reader.words


@pytest.mark.parametrize(("difference", "verdict"), [(0.0123, "confirms"), (0.0412, "does not confirm")])
def test_the_page_states_whether_the_second_oracle_confirms(
    difference: float, verdict: str, project: Path, domain: Domain
) -> None:
    assert "confirm" not in page.render(domain, project)
    path = project / "reports/portraits/metrics.json"
    content = json.loads(path.read_text())
    content["oracle2"] = {"mean": bootstrap.metric(0.98), "largest_difference": bootstrap.metric(difference)}
    path.write_text(json.dumps(content))
    words = " ".join(" ".join(Reader(page.render(domain, project)).words).split())
    assert f"{verdict} its shares: over all editors" in words and f"{100 * difference:.1f} points at most" in words


def test_claims_are_shown_with_their_verdicts(project: Path, domain: Domain) -> None:
    assert 'id="claims"' not in page.render(domain, project)
    path = project / "reports/portraits/metrics.json"
    content = json.loads(path.read_text())
    content["claims"] = {
        "relevance_mask": {"kept": bootstrap.metric(0.07, 0.06, 0.08), "identity": bootstrap.metric(-0.1, -0.2, -0.05)}
    }
    path.write_text(json.dumps(content))
    html = page.render(domain, project)
    assert '<td class="verdict holds">holds</td>' in html and '<td class="verdict does">does not hold</td>' in html
    assert "CLIP-target did not run" in " ".join(Reader(html).words)


def test_skipped_photographs_are_listed_and_cannot_write_html(project: Path, domain: Domain) -> None:
    assert "Photographs" not in page.render(domain, project)
    content = {
        "pictures": 1234,
        "not_needed": 5,
        "searched_for_faces": 1234,
        "without_a_face": 7,
        "with_several_faces": 3,
    }
    skipped = [{"name": f"<b>{i}.png", "reason": "it is empty"} for i in range(page.SHOWN_SKIPPED + 1)]
    path = artefacts.DomainPaths(domain, project).prepared
    path.write_text(json.dumps({**content, "skipped": skipped}))
    html = page.render(domain, project)
    assert "1,234 used, 201 skipped, 5 not needed" in html and "7 had none" in html
    assert "&lt;b&gt;199.png" in html and "200.png" not in html and "<b>0.png" not in html
    path.write_text(json.dumps({"pictures": 9}))  # as for drawn pictures
    assert "Photographs" not in page.render(domain, project)


def test_writing_gives_one_file_and_the_same_bytes_again(project: Path, domain: Domain) -> None:
    path = page.write(domain, project)
    assert path == project / "reports/portraits/index.html"
    assert path.read_text() == page.render(domain, project)


def test_missing_metrics_are_one_line(project: Path, domain: Domain) -> None:
    (project / "reports/portraits/metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics.json is missing: run `dvc repro`"):
        page.render(domain, project)
    (project / "reports/portraits/metrics.json").write_text('{"edit')
    with pytest.raises(InputError, match="cannot be read"):
        page.render(domain, project)


def test_photographs_without_counterfactuals_have_a_page(project: Path, domain: Domain) -> None:
    layout, test = artefacts.DomainPaths("portraits", project), test_people()
    columns = {"id": list(test.ids), "split": ["test"] * PEOPLE, "params": None}
    columns["image"] = [images.encode_png(image) for image in test.images]
    artefacts.write_shard(layout.images / artefacts.shard_name(0), "images", columns, {})
    content = numbers() | {"oracle": {}, "clip": {}}
    direction = {"clip_direction": bootstrap.metric(0.31), "images": bootstrap.metric(12)}
    content["editors"] = {"deltaedit_g": direction | {"prompts": {prompt.text: direction for prompt in PROMPTS}}}
    layout.metrics.write_text(json.dumps(content))
    table = {"editor": ["deltaedit_g"], "id": [FIRST], "prompt": [PROMPTS[0].text], "clip_direction": [0.31]}
    artefacts.write_table(layout.scores, pl.DataFrame(table))
    read = Reader(page.render(domain, project))
    assert read.open == [] and "0.31" in read.words and "counterfactual" not in " ".join(read.words)


def test_the_page_states_what_was_not_computed_and_why(project: Path, domain: Domain) -> None:
    layout, content = artefacts.DomainPaths("portraits", project), numbers()
    notes = {
        name: f"not computed: weights missing at data/pretrained/x/{name}.safetensors"
        for name in ("oracle", "identity")
    }
    content["oracle"] = {"mean": bootstrap.absent(notes["oracle"])}
    content["inversion"]["identity"] = bootstrap.absent(notes["identity"])
    for row in content["editors"].values():
        row |= {name: bootstrap.absent(notes["oracle"]) for name in ("reached", "kept", "fid_oracle")}
        row |= {"identity": bootstrap.absent(notes["identity"]), "clip_direction": bootstrap.metric(0.21)}
        row.pop("heldout")
        row["prompts"] = {
            text: {"clip_direction": bootstrap.metric(0.22), "images": bootstrap.metric(7)} for text in row["prompts"]
        }
    layout.metrics.write_text(json.dumps(content))
    scores = artefacts.table(layout.scores).drop("reached", "kept", "identity")
    artefacts.write_table(layout.scores, scores)
    read = Reader(page.render(domain, project))
    assert read.open == []
    assert f"reached, kept, FID-oracle: {notes['oracle']}." in read.words
    assert f"identity: {notes['identity']}." in read.words
    assert notes["oracle"] in read.words and notes["identity"] in read.words  # beside the networks' own numbers
    header = next(row for row in read.rows if "CLIP direction" in row)
    assert "kept" not in header and "identity" not in header
    assert "0.22" in read.words and "hair color" in read.words


def test_the_page_shows_full_scale_and_gpu_results_and_marks_projections(domain: Domain, project: Path) -> None:
    layout = artefacts.DomainPaths("portraits", project)
    leaf = bootstrap.metric(0.2, 0.1, 0.3)
    test_external_results.put(layout.metrics, {**numbers(), "claims": {"relevance_mask": {"kept": leaf}}})
    full_run = {
        "claims": {"relevance_mask": {"identity": leaf}},
        "oracle2": {"largest_difference": bootstrap.metric(0.0466)},
    }
    test_external_results.put(layout.full, numbers() | full_run)
    run = {"device": {"name": "Its GPU"}, "command": "dvc exp run", "notes": ["alone"]}
    test_external_results.put(layout.full.with_name("run.json"), run)
    items = {**test_external_results.GPU["items"], "mapper_float32": {"projected_201562_steps_min": 52.7}}
    test_external_results.put(project / "reports/gpu/ffhq_shapes.json", {**test_external_results.GPU, "items": items})
    test_external_results.put(project / "reports/gpu/kernels.json", test_external_results.KERNELS)
    html = page.render(domain, project)
    assert "Measured once, on an Its GPU" in html and "differ by 4.7 points at most" in html
    assert "52.7 min<small>projected</small>" in html and "18.2 ms</td>" in html and "bias act 64 px" in html
    assert "not tested" in html and "not computed" in html and ">None<" not in html
