"""Suppression, against torchvision as it is imported ordinarily."""

from __future__ import annotations

import subprocess
import sys

import torch
import torchvision.ops

from utils.files import ROOT
from utils.vision import nms


def some_boxes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.rand(count, 2) * 100
    return torch.cat((first, first + torch.rand(count, 2) * 50), dim=1), torch.rand(count)


def test_survivors_equal_torchvision():
    boxes, scores = some_boxes(300)
    kept = nms(boxes, scores, 0.4)
    assert 0 < len(kept) < 300
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.4))


def test_suppression_imports_no_torchvision():
    code = "import sys, torch; from utils.vision import nms; nms(torch.rand(3, 4), torch.rand(3), 0.5)"
    check = "; print('torchvision' in sys.modules, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
