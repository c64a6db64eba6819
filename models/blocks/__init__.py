"""Layer types that a row `[from, number, module, args]` of a model file can name: the whole vocabulary but the heads.

A block is built by `from_spec(spec, c_in, width) -> (module, c_out)` (`base.Block`). It takes one map (B, C, H, W),
or a list of maps where its row names several, and returns one; `CBLinear` alone returns several, for `CBFuse`. Its
attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

from models.blocks.area_attention import A2C2f
from models.blocks.attention import C2PSA, C3TR, PSA, TransformerBlock
from models.blocks.c2f import C2, CIB, C2f, C2fCIB, C3k2, SCDown
from models.blocks.conv import Conv, CrossConv, DWConv, Focus
from models.blocks.csp import C3, Bottleneck, BottleneckCSP, C3k, C3x
from models.blocks.elan import ELAN1, AConv, ADown, RepNCSPELAN4
from models.blocks.ghost import C3Ghost, GhostBottleneck, GhostConv
from models.blocks.merge import CBFuse, CBLinear, Concat, ReOrg, Shortcut
from models.blocks.plain import BatchNorm2d, Conv2d, ConvTranspose2d, Identity, MaxPool2d, Upsample, ZeroPad2d
from models.blocks.pool import MP, SP, SPP, SPPCSPC, SPPELAN, SPPF, DownC
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
    "C3k": C3k,
    "C3k2": C3k2,
    "C3TR": C3TR,
    "C3Ghost": C3Ghost,
    "C2": C2,
    "C2f": C2f,
    "C2fCIB": C2fCIB,
    "CIB": CIB,
    "SCDown": SCDown,
    "PSA": PSA,
    "C2PSA": C2PSA,
    "A2C2f": A2C2f,
    "ELAN1": ELAN1,
    "RepNCSPELAN4": RepNCSPELAN4,
    "AConv": AConv,
    "ADown": ADown,
    "TransformerBlock": TransformerBlock,
    "SPP": SPP,
    "SPPF": SPPF,
    "SPPELAN": SPPELAN,
    "SPPCSPC": SPPCSPC,
    "MP": MP,
    "SP": SP,
    "DownC": DownC,
    "ReOrg": ReOrg,
    "RepConv": RepConv,
    "CBLinear": CBLinear,
    "CBFuse": CBFuse,
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
