"""placeholder, see toy world"""
def ensure_torchvision() -> None:
    import torch
    if not hasattr(ensure_torchvision, "lib"):
        lib = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            lib.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        ensure_torchvision.lib = lib
