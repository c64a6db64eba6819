"""Every family goes the whole way: a model of it is built, learns, is saved, read again and folded."""

from __future__ import annotations

import pytest
import torch

from engine.start import family_of
from engine.task import DetectionTask
from losses.build import build_criterion
from models.families import family_scales, read_spec
from models.weights import load_model
from models.yolo import Model
from utils.hyp import read_hyp
from utils.types import Batch

NAMES = ("cat", "dog", "bird")
SIZE = 128
# each YOLOv3 and v7, which are all different; of the others the first of each file, the smallest
FIRST = {file: name for name, (file, _) in reversed(family_scales().items())}
ALL_DIFFERENT = {name for name in family_scales() if name.startswith(("yolov3", "yolov7"))} - {"yolov3u", "yolov3-sppu"}
MODELS = sorted({*FIRST.values(), *ALL_DIFFERENT, "yolov5nu"})


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_a_step_is_saved_read_and_folded(name, tmp_path):
    model = Model(read_spec(name), 3, NAMES).train()
    recipe = "v7-p6" if model.auxiliary_layers else "v7-p5"
    hyp = read_hyp(recipe if "yolov7" in name else family_of(model.spec).recipe)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.4], [0, 2, 0.2, 0.3, 0.1, 0.1], [1, 1, 0.7, 0.6, 0.5, 0.2]])
    batch = Batch(torch.rand(2, 3, SIZE, SIZE), targets, torch.ones(2, dtype=torch.bool))
    task = DetectionTask(model, build_criterion(model.head, hyp, (SIZE, SIZE))).train()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = task(batch)
    sum(terms.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learning)

    described = {"description": model.spec.to_dict(), "names": list(NAMES), "named": True}
    torch.save({"format": "yolo-distill", "version": 1, **described, "model": model.state_dict()}, tmp_path / "a.pt")
    again, report = load_model(str(tmp_path / "a.pt"))
    assert report.taken == report.total
    with torch.no_grad():
        expected = model.eval()(batch.images).levels
        for whole, read, folded in zip(
            expected, again.eval()(batch.images).levels, again.fuse()(batch.images).levels, strict=True
        ):
            assert torch.equal(whole, read)
            assert (folded - whole).abs().max() < 1e-4 * whole.abs().max()
