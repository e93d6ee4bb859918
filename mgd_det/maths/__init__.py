"""Functions on tensors: matching, pooling, losses, norms. Nothing here imports Detectron2."""
