"""`tools/visualize.py`: its arithmetic by hand, and the report of real runs, opened in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import visualize
from helpers.commands import ROOT
from helpers.detectors import small_config
from visualizing import detections, matching, runs
from visualizing.features import TapMaps, best_learnt_channel, collect
from visualizing.matching import close_up, draw_updates, in_words
from visualizing.page import Missing, Section, write_page
from visualizing.runs import Box

from mgd_det.data.datasets import register_datasets
from mgd_det.engine.trainer import Trainer
from mgd_det.maths.matching import matched_pairs
from mgd_det.rng import isolated_rng

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390  # pixels, the width of common ones

# Two student channels, five teacher channels; the second student's group is the cheaper one.
COST = torch.tensor([[0.9, 2.0, 0.7, 1.5, 1.0], [1.8, 0.1, 1.9, 0.3, 1.1]])
GROUPS = torch.tensor([[0, 2], [1, 3]])

pytestmark = pytest.mark.usefixtures("without_old_handlers")


def test_groups_in_order_lie_along_the_diagonal():
    assert matching.group_cost(COST, GROUPS).tolist() == pytest.approx([0.8, 0.2])
    students, teachers = matching.order_by_groups(COST, GROUPS)
    assert (students, teachers) == ([1, 0], [1, 3, 0, 2, 4])  # 4 is used by nobody
    ordered = COST[students][:, teachers]
    assert torch.equal(ordered, torch.tensor([[0.1, 0.3, 1.8, 1.9, 1.1], [2.0, 1.5, 0.9, 0.7, 1.0]]))


def test_short_groups_and_shared_teachers_are_ordered():
    short = torch.tensor([[0, 2], [1, -1]])
    assert matching.group_cost(COST, short).tolist() == pytest.approx([0.8, 0.1])
    assert matching.order_by_groups(COST, short) == ([1, 0], [1, 0, 2, 3, 4])
    cost, shared = torch.tensor([[0.2, 1.0], [0.4, 1.0], [1.0, 0.3]]), torch.tensor([[0], [0], [1]])
    assert matching.order_by_groups(cost, shared) == ([0, 2, 1], [0, 1])


@pytest.mark.parametrize(
    ("groups", "sizes", "uses"),
    [
        (GROUPS, [0, 0, 2], [1, 4]),
        (torch.tensor([[0, 2], [1, -1]]), [0, 1, 1], [2, 3]),
        (torch.tensor([[0], [0], [1]]), [0, 3], [3, 1, 1]),
    ],
)
def test_sizes_of_groups_and_uses_of_teachers(groups, sizes, uses):
    assert matching.group_sizes(groups) == sizes
    assert matching.teacher_uses(groups, 5) == uses
    assert matched_pairs(groups, 5).sum().item() == (groups >= 0).sum().item()


def test_matched_pairs():
    pairs = matched_pairs(torch.tensor([[0, 2], [1, -1]]), 3)
    assert pairs.tolist() == [[True, False, True], [False, True, False]]


def test_counts_in_words():
    expected = "1 teacher channel with 0 students, 4 teacher channels with 1 student"
    assert in_words([1, 4], "teacher", "student") == expected


def test_close_up_holds_whole_groups_of_the_middle():
    groups = torch.arange(200).reshape(50, 4)
    rows, columns = close_up(list(range(50)), list(range(200)), groups)
    assert (rows, columns) == (range(22, 28), range(88, 112))
    assert close_up([1, 0], [1, 3, 0, 2, 4], GROUPS) == (range(2), range(4))


def test_typical_channels_are_places_in_the_order_of_costs():
    cost, groups = torch.tensor([[0.5], [0.1], [0.9], [0.3], [0.7]]), torch.zeros(5, 1, dtype=torch.long)
    assert matching.typical_channels(cost, groups, (0.0, 0.5, 1.0)) == [1, 0, 2]


def test_the_channel_that_goes_together_with_its_target():
    target = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]], [[5.0, 5.0, 5.0]]])
    student = torch.tensor([[[2.0, 1.0, 0.0]], [[7.0, 8.0, 9.5]], [[5.0, 5.0, 5.0]]])
    assert best_learnt_channel(TapMaps(target, target, student, 8, (1, 3))) == 1


LINES = """\
{"iteration": 19, "loss_cls": 2.0, "loss_mgd_res3": 3.0, "mgd_res3/weight": 0.5, "total_loss": 5.0}
{"iteration": 0, "mgd_res3/match_cost": 1.5, "match_seconds": 0.1}
{"iteration": 39, "loss_cls": 1.0, "loss_mgd_res3": 2.{"iteration": 39, "loss_cls": 9.0}
[1, 2]
{"iteration": 19, "loss_cls": 1.5, "bbox/AP": NaN, "note": "text"}
{"iteration": 59, "loss_cls": 0.5}
{"iteration": 79, "loss_c"""


def test_metrics_of_a_run_that_was_killed_resumed_and_still_goes(tmp_path):
    (tmp_path / "metrics.json").write_text(LINES)
    series = runs.read_series(tmp_path / "metrics.json")
    assert series == {
        "loss_cls": {19: 1.5, 59: 0.5},  # the later value of iteration 19, no torn line
        "loss_mgd_res3": {19: 3.0},
        "mgd_res3/weight": {19: 0.5},
        "total_loss": {19: 5.0},
        "mgd_res3/match_cost": {0: 1.5},
        "match_seconds": {0: 0.1},
    }
    assert runs.last_iteration(series) == 59
    assert runs.distillation_losses(series) == ["mgd_res3"]
    assert runs.task_losses(series) == ["loss_cls"]
    assert runs.read_series(tmp_path / "gone.json") == {}


def test_names_of_runs_are_as_long_as_they_have_to_be():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/b/y/run"), Path("/a/other")]
    assert runs.distinct_names(paths) == ["x/run", "a/y/run", "b/y/run", "other"]


def test_boxes_are_judged_as_for_ap50():
    truth = [Box((0, 0, 10, 10), 1), Box((20, 0, 30, 10), 1)]
    found = [
        Box((0, 0, 10, 8), 1, 0.5),  # overlaps the first by 0.8, but that one is taken
        Box((0, 0, 10, 9), 1, 0.9),
        Box((20, 0, 30, 10), 2, 0.9),  # another class
        Box((20, 0, 30, 5), 1, 0.4),  # just half
        Box((20, 0, 30, 4), 1, 0.8),  # less than half
    ]
    assert detections.overlap(found[0], truth[0]) == 0.8
    assert detections.overlap(truth[0], truth[1]) == 0
    assert detections.overlap(Box((5, 5, 5, 5), 0), Box((5, 5, 5, 5), 0)) == 0
    assert detections.judge(found, truth) == [False, True, False, True, False]
    crowd = Box((0, 0, 10, 4.5), 1)  # half of the second one, which is right all the same
    assert detections.judge(found, truth, [crowd]) == [None, True, False, True, False]
    assert detections.judge(found, truth, [Box((0, 0, 10, 3.9), 1)]) == [False, True, False, True, False]


def test_labels_can_be_read_on_their_colour():
    assert [detections.readable_on(shade) for shade in ("#000000", "#0072B2", "#E69F00")] == [
        *("white", "white", "black")
    ]


def test_texts_are_escaped():
    section = Section("a", "<b>", ["x < y & z"], [], ["<script>"], ["One. two"])
    texts = {"title": "<t>", "summary": "<s>", "footer": "<f>"}
    page = write_page(facts=[("<k>", "<v>")], results=[], sections=[section], words=[("<w>", "<m>")], **texts)
    for text in ("<t>", "<s>", "<f>", "<k>", "<v>", "<w>", "<m>", "<b>", "<script>"):
        assert text not in page
        assert escape(text) in page
    assert "x &lt; y &amp; z" in page


def train(cfg, folder: Path) -> Path:
    """A real run of a few iterations, with the files that it leaves."""
    cfg.OUTPUT_DIR = str(folder)
    register_datasets(cfg)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    with isolated_rng():
        torch.manual_seed(5)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    return folder


@pytest.fixture(scope="module")
def trained(demo_data, teacher_run, tmp_path_factory) -> dict[str, Path]:
    """A distilled run, and its baseline."""
    out = tmp_path_factory.mktemp("runs")
    opts = (
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "DISTILL.GRADIENT_PERIOD", 2),
        *("DISTILL.MGD.TAPS", ["res3", "res4"]),
    )
    baseline = train(small_config(demo_data, out, *opts), out / "baseline")
    cfg = small_config(demo_data, out, *opts, "DISTILL.ENABLED", True)
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    return {"baseline": baseline, "mgd": train(cfg, out / "mgd")}


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory) -> Path:
    """The whole command on them."""
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    arguments = ["--run", trained["mgd"], "--baseline", trained["baseline"], "--images", 2, "--out", out]
    visualize.main([str(argument) for argument in arguments])
    return out


class Outline(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.anchors: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        if tag == "section":
            self.anchors.append(attributes["id"])

    def handle_data(self, data):
        self.text += data


def outline(folder: Path) -> Outline:
    return Outline((folder / "report.html").read_text(encoding="utf-8"))


def test_report_of_a_real_run(report):
    page = outline(report)
    assert page.anchors == ["idea", "matching", "features", "detections", "curves", "words"]
    taps = ("res3", "res4")
    names = {
        *("idea", "updates", "detections_1", "detections_2"),
        *(f"{kind}_{tap}" for kind in ("matching", "spread", "features") for tap in taps),
        *(f"curves_{kind}" for kind in ("ap", "task", "distillation", "gradients", "weights")),
    }
    assert {path.stem for path in report.glob("*.png")} == names
    assert len(page.images) == len(names)
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert "Matching Guided Distillation (MGD;" in page.text
    assert "Not here" not in page.text
    assert "after 4 iterations of 4" in page.text


def test_page_is_light_and_needs_nothing_beside_it(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert len(page) < 3e6
    assert "<script" not in page
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]{1,12})""", page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_pictures_say_what_the_checkpoint_holds(trained, report):
    saved = torch.load(trained["mgd"] / "model_final.pth", weights_only=True)
    state = saved["trainer"]["hooks"]["RematchHook"]["mgd"]["_extra_state"]
    groups, sums = state["matchings"]["res4"]["groups"], state["statistics"]["res4"]
    cost = 2 - 2 * sums["similarity"] / sums["images"]
    alts = " ".join(image["alt"] for image in outline(report).images)
    expected = f"mean cost is {cost.gather(1, groups).mean():.2f}; the mean of all pairs is {cost.mean():.2f}"
    assert expected in alts
    logged = [json.loads(line) for line in (trained["mgd"] / "metrics.json").read_text().splitlines()]
    [last] = [line["mgd_res4/match_cost"] for line in logged if "mgd_res4/match_cost" in line]
    assert f"res4 {last:.2f}" in alts


def test_features_of_smaller_images_are_shown_over_the_whole_image(trained):
    (run,) = runs.open_runs([("--run", trained["mgd"])], None)
    state = matching.read_matching(run, matching.read_checkpoint(run))
    samples = runs.find_images(run, 1).samples
    student, teacher = runs.load_run_student(run, run.cfg), runs.load_run_teacher(run)
    (whole,) = collect(student, teacher, run.cfg, state, samples)
    teacher.scale = 0.5
    (half,) = collect(student, teacher, run.cfg, state, samples)
    for tap in whole:
        assert half[tap].teacher.shape == whole[tap].teacher.shape
        assert torch.equal(half[tap].student, whole[tap].student)


def test_updates_go_from_the_first_to_the_last():
    series = {
        "mgd_res4/match_cost": {0: 1.5, 100: 0.75, 200: 0.5},
        "mgd_res4/match_changed": {0: 1.0, 100: 0.2, 200: 0.0},
    }
    picture = draw_updates(series, ["res3", "res4"])
    assert "over 3 updates" in picture.alt
    assert "res4 from 1.50 to 0.50." in picture.alt
    assert "res3" not in picture.alt
    with pytest.raises(Missing, match="no update of the matching"):
        draw_updates({}, ["res3"])


def run_main(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code and output of the tool."""
    try:
        visualize.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return (int(ended.code or 0), *capsys.readouterr())
    return (0, *capsys.readouterr())


def copied(run: Path, to: Path, *without: str) -> Path:
    """A run's small files, and links to its large ones, without some of them."""
    to.mkdir()
    for path in run.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in without):
            (to / path.name).symlink_to(path)
    return to


def test_run_that_matches_nothing(trained, tmp_path, capsys):
    out = tmp_path / "out"
    result = run_main(capsys, "--run", trained["baseline"], "--images", 1, "--out", out)
    assert result == (0, f"report: {out / 'report.html'}\n", "")
    page = outline(out)
    assert page.anchors == ["matching", "features", "detections", "curves", "words"]
    assert {path.stem for path in out.glob("*.png")} == {*("detections_1", "curves_ap", "curves_task")}
    assert "No method of distillation was at work in this run (DISTILL.ENABLED is False" in page.text


def test_run_with_no_checkpoint_yet(trained, tmp_path, capsys):
    run = copied(trained["mgd"], tmp_path / "run", "*.pth", "last_checkpoint")
    code, _, _ = run_main(capsys, "--run", run, "--images", 1)
    assert code == 0
    page = outline(run / "report")
    assert "has written no checkpoint yet, and the matching is in there" in page.text
    assert "res3" in page.images[-1]["alt"]


def test_run_whose_teacher_has_gone(trained, tmp_path, capsys):
    run = copied(trained["mgd"], tmp_path / "run", "config.yaml")
    config = (trained["mgd"] / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"WEIGHTS: \S+/model_final.pth", "WEIGHTS: gone.pth", config))
    code, _, _ = run_main(capsys, "--run", run, "--images", 1)
    assert code == 0
    page = outline(run / "report")
    assert "DISTILL.TEACHER.WEIGHTS = 'gone.pth': no such weight file" in page.text
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert {"matching_res3", "detections_1", "curves_task"} <= pictures
    assert not any(name.startswith("features") for name in pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "gone"], "--run = 'gone': there is no such folder"),
        (["--run", ROOT / "tests"], "holds no config.yaml"),
        (["--run", "{mgd}", "--baseline", "gone"], "--baseline = 'gone': there is no such folder"),
        (["--run", "{mgd}", "--compare", "{baseline}", "gone"], "--compare = 'gone': there is no such"),
        (["--run", "{mgd}", "--compare", "{mgd}"], "this run is given twice"),
        (["--run", "{mgd}", "--images", 0], "--images = 0: too few or too many to show"),
        (["--run", "{mgd}", "--images", 1000], "Give a number from 1 to 12"),
        (["--run", "{mgd}", "--out", ROOT / "README.md"], "README.md': is, or lies in, a file"),
        (["--run", "{mgd}", "--out", ROOT / "README.md/out"], "is, or lies in, a file"),
        (["--run", "{mgd}", "--checkpoint", "model_9.pth"], "--checkpoint = 'model_9.pth': there is no such"),
        (["--run", "{mgd}", "--checkpoint", "metrics.json"], "metrics.json': cannot be read"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, trained, capsys):
    arguments = [str(argument).format(**trained) for argument in arguments]
    code, out, error = run_main(capsys, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: ")
    assert message in error
    assert not (trained["mgd"] / "report").exists()


def test_a_truncated_checkpoint_ends_in_one_line(trained, tmp_path, capsys):
    run = copied(trained["mgd"], tmp_path / "run", "model_final.pth")
    whole = (trained["mgd"] / "model_final.pth").read_bytes()
    (run / "model_final.pth").write_bytes(whole[: len(whole) // 2])
    code, _, error = run_main(capsys, "--run", run)
    assert (code, error.count("\n")) == (2, 1)
    assert "model_final.pth': cannot be read" in error


def test_help_has_examples(capsys):
    code, out, _ = run_main(capsys, "--help")
    assert code == 0
    assert "tools/visualize.py --run output/demo/student_mgd --baseline" in out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed to open the page with")
def test_page_on_a_phone(report, tmp_path):
    """In a frame, since the window of a headless browser is no narrower than 500 pixels."""
    measure = """
        const page = document.getElementById("phone").contentDocument;
        const wide = [...page.querySelectorAll("body *")].filter(
            e => e.getBoundingClientRect().right > page.documentElement.clientWidth + 0.5);
        document.title = JSON.stringify({
            width: page.documentElement.clientWidth,
            scrolls: page.documentElement.scrollWidth,
            wide: wide.map(e => e.outerHTML.slice(0, 80)),
            images: [...page.images].map(i => i.complete && i.naturalWidth),
        });
    """
    page = escape((report / "report.html").read_text(encoding="utf-8"))
    frame = f'<iframe id="phone" width="{PHONE}" height="800" style="border: 0" srcdoc="{page}"></iframe>'
    holder = tmp_path / "phone.html"
    holder.write_text(
        f"<!DOCTYPE html><title></title>{frame}<script>onload = () => {{{measure}}}</script>",
        encoding="utf-8",
    )
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", holder.as_uri()),
    ]
    result = subprocess.run([str(CHROMIUM), *flags], capture_output=True, text=True, check=True, timeout=300)
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title, result.stderr
    found = json.loads(unescape(title[1]))
    scrollbar = PHONE - found["width"]
    assert 0 <= scrollbar < 20
    assert found["scrolls"] == found["width"]
    assert found["wide"] == []
    assert len(found["images"]) == len(list(report.glob("*.png")))
    assert all(found["images"])
