"""The table of the input pipeline: its arithmetic, and that "disk" decodes and "ram" does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import pipeline
from benchmarks.pipeline import LIMIT, OURS, Pass
from data import store
from data.spec import read_data
from tests.benchmarks.tables import cells, draw
from utils.errors import UserError
from utils.hyp import Hyp


def test_speeds_are_medians_of_images_a_second_of_processor_time_and_ratios_those_of_speeds() -> None:
    passes = {
        (OURS, "disk"): [Pass(60, 9.0, 1.0), Pass(60, 9.0, 0.5), Pass(60, 9.0, 0.75)],
        (OURS, "ram"): [Pass(60, 0.5, 0.25)],
        (LIMIT, "disk"): [Pass(60, 0.5, 0.5)],
        ("yolov5", "disk"): [Pass(60, 2.0, 2.0)],
        ("yolov5", "ram"): [Pass(60, 1.0, 1.0)],
    }
    head, _, disk, ram = map(cells, pipeline.table(passes).splitlines())
    assert head == ["images from", OURS, LIMIT, "yolov5", "here / yolov5", "cores"]
    assert disk[:5] == ["disk", "80", "120", "30", "2.67"]
    assert ram == ["ram", "240", "-", "60", "4.00", "0.50 1.00"]


def test_images_from_disk_are_decoded_in_every_pass_and_those_in_memory_in_none(
    tmp_path: Path, monkeypatch: Any
) -> None:
    data, read = read_data(draw(tmp_path)), []
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(store, "read_image", lambda path, *_: read.append(path) or image)
    small = store.SMALL
    # each of four mosaics needs its own image, and of its others, which may be one and the same, those that are seen
    for cache, expected in (("disk", range(5, 17)), ("ram", range(1))):
        loader = pipeline.own_loader(data, Hyp(), cache, (64, 64), 2, mosaic_pool=0)
        run, counts = pipeline.Ours(loader, 9), set()
        for _ in range(2):
            read.clear()
            assert run().images == 4
            counts.add(len(read))
        assert counts <= set(expected)
    assert small == store.SMALL


def test_the_bound_counts_the_files_of_whole_mosaics(tmp_path: Path) -> None:
    data = read_data(draw(tmp_path))
    assert pipeline.decoded(data.images("train"), 3).images == 3


def test_peers_are_given_what_they_know_of_a_recipe() -> None:
    hyp = Hyp()
    given = pipeline.augmentation(hyp)
    assert (given["mosaic"], given["translate"], given["scale"]) == (hyp.mosaic, hyp.translate, hyp.scale)
    assert "paste_in" not in given
    assert set(pipeline.SNIPPETS) == {"yolov5", "ultralytics"}
    for name, snippet in pipeline.SNIPPETS.items():
        compile(snippet, name, "exec")


def test_several_sources_are_refused_where_peers_read_them(tmp_path: Path) -> None:
    file = draw(tmp_path)
    file.write_text(file.read_text().replace("train: images", "train: [images, images]"))
    with pytest.raises(UserError, match="train has 2 sources; peers are measured on one"):
        pipeline._only_source(read_data(file))


def test_a_run_prints_its_table_without_peers(tmp_path: Path, capsys: Any) -> None:
    words = ["--imgsz", "64", "--batch-size", "2", "--batches", "1", "--rounds", "1"]
    pipeline.main(["--data", str(draw(tmp_path)), *words])
    out = capsys.readouterr().out
    assert cells(next(line for line in out.splitlines() if line.startswith("| disk")))[0] == "disk"
    assert "Not measured: yolov5, ultralytics." in out
    assert "mosaic 1, hsv_h 0.015" in out
    assert str(tmp_path) not in out
