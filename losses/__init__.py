"""Detection losses: raw levels and targets become named terms.

The contract of a criterion, an `nn.Module`:

    Criterion(head, hyp, image_size)    head: the detection head whose predictions it judges (strides, anchors, number
                                        of classes are read from it; it is not owned: neither trained nor saved here);
                                        hyp: the recipe; image_size: height and width of training, pixels
    criterion(prediction, batch)        -> dict of weighted scalar terms, means per image; the keys are constant
    criterion.at(progress)              optional; called before each step, pure in `progress`
    criterion.gains                     weights of the terms, by which imitation of outputs is weighed, too

Whatever the levels' type, a criterion computes in float32. Images whose `batch.labelled` is False have no part in any
term. Every term stays attached to the graph and finite when there are no targets, and no labelled images. The trainer
scales the sum by the global batch.
"""

from losses.anchor import AnchorLoss
from losses.ota import OtaLoss
from losses.tal import TaskAlignedLoss

# "anchor" and "ota", of which the recipe chooses, are for heads with anchors (v3, v5, v7), auxiliary levels included;
# "tal" is for heads without (v8 and later, v3u, v5u), of one branch or two. `losses.build` chooses.
LOSSES: dict[str, type[AnchorLoss] | type[TaskAlignedLoss]] = {
    "anchor": AnchorLoss,
    "ota": OtaLoss,
    "tal": TaskAlignedLoss,
}
