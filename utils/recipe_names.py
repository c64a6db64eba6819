"""What recipes, and keys in them, are called in other repositories: files and notes from there work here."""

from __future__ import annotations

# Why a published key is not read -> such keys. But for the first, they are the rest of the default.yaml that everybody
# copies a recipe of YOLOv8 and later from, and of what yolo26n.pt says of its training.
_UNUSED = {
    "matching is by anchor_t": "iou_t",
    "the command line's, or not here": """
        task mode model data epochs time patience batch imgsz save save_period cache device workers project name
        exist_ok pretrained verbose seed deterministic single_cls rect cos_lr resume amp fraction profile freeze
        multi_scale compile val split save_json conf iou max_det half dnn plots end2end cfg
    """,
    "of prediction and export": """
        source vid_stride stream_buffer visualize augment agnostic_nms classes embed show save_frames save_txt save_conf
        save_crop show_labels show_conf show_boxes line_width format keras optimize int8 dynamic simplify opset
        workspace nms tracker
    """,
    "of other tasks than detection": """
        overlap_mask mask_ratio retina_masks dropout pose kobj rle angle auto_augment erasing
    """,
    "there is no such augmentation": "bgr cutmix copy_paste_mode",
    "never described": "o2m muon_w sgd_w cls_w stride_ratio detach_epoch topk",
}
UNUSED = {key: reason for reason, keys in _UNUSED.items() for key in keys.split()}

# keys -> ours
KEYS = {"nbs": "nominal_batch"}

# our recipes -> their other names
_RECIPES = {
    "scratch-low": "scratch low default",
    "scratch-med": "med",
    "scratch-high": "high",
    "objects365": "finetune_objects365",
    "v7-p5": "scratch.p5",
    "v7-p6": "scratch.p6",
    "v7-tiny": "scratch.tiny",
    "v7-custom": "scratch.custom",
    "v8": "yolov8 yolov9 yolov10 yolo11 yolo12 v9 v10 v11 11 v12 12 yolov5u yolov3u v5u v3u",
    "v26": "yolo26 26",
}
RECIPES = {name: ours for ours, names in _RECIPES.items() for name in names.split()}
