"""Functions on tensors for matching, pooling, losses and norms. Nothing here imports Detectron2."""
