"""Layer types that a row `[from, number, module, args]` of a model file can name: the whole vocabulary but the heads.

A block is built by `from_spec(spec, c_in, width) -> (module, c_out)` (`base.Block`). It takes one map (B, C, H, W),
or a list of maps where its row names several, and returns one. Its attribute names are those of the published
checkpoints.
"""

from __future__ import annotations

from typing import Any

from models.blocks.attention import C3TR, TransformerBlock
from models.blocks.conv import Conv, CrossConv, DWConv, Focus
from models.blocks.csp import C3, Bottleneck, BottleneckCSP, C3x
from models.blocks.ghost import C3Ghost, GhostBottleneck, GhostConv
from models.blocks.merge import Concat, ReOrg, Shortcut
from models.blocks.plain import BatchNorm2d, Conv2d, ConvTranspose2d, Identity, MaxPool2d, Upsample, ZeroPad2d
from models.blocks.pool import MP, SP, SPP, SPPCSPC, SPPF, DownC
from models.blocks.rep import RepConv

BLOCKS: dict[str, Any] = {
    "Conv": Conv,
    "DWConv": DWConv,
    "CrossConv": CrossConv,
    "GhostConv": GhostConv,
    "Focus": Focus,
    "Bottleneck": Bottleneck,
    "BottleneckCSP": BottleneckCSP,
    "GhostBottleneck": GhostBottleneck,
    "C3": C3,
    "C3x": C3x,
    "C3TR": C3TR,
    "C3Ghost": C3Ghost,
    "TransformerBlock": TransformerBlock,
    "SPP": SPP,
    "SPPF": SPPF,
    "SPPCSPC": SPPCSPC,
    "MP": MP,
    "SP": SP,
    "DownC": DownC,
    "ReOrg": ReOrg,
    "RepConv": RepConv,
    "Concat": Concat,
    "Shortcut": Shortcut,
    "nn.BatchNorm2d": BatchNorm2d,
    "nn.Conv2d": Conv2d,
    "nn.ConvTranspose2d": ConvTranspose2d,
    "nn.Identity": Identity,
    "nn.MaxPool2d": MaxPool2d,
    "nn.Upsample": Upsample,
    "nn.ZeroPad2d": ZeroPad2d,
}
