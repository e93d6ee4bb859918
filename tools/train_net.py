#!/usr/bin/env python
"""Train, distil and evaluate detectors."""

from __future__ import annotations

import os
import sys
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# fvcore's, at every import; nothing that a user could act on.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

from mgd_det.run.main import argument_parser, main  # noqa: E402  (found through the path above)

EXAMPLES = """
examples:
  distil a RetinaNet R-18 on COCO on eight GPUs
    tools/train_net.py --config-file configs/retinanet_r18_mgd.yaml --num-gpus 8
  continue that run after an interruption
    tools/train_net.py --config-file configs/retinanet_r18_mgd.yaml --num-gpus 8 --resume
  evaluate its student
    tools/train_net.py --config-file configs/retinanet_r18_mgd.yaml --eval-only \\
        MODEL.WEIGHTS output/retinanet_r18_mgd/model_final.pth
  evaluate the teacher on the same data
    tools/train_net.py --config-file configs/retinanet_r18_mgd.yaml --eval-teacher
  which weights do the gradients of 100 iterations suggest? (writes nothing)
    tools/train_net.py --config-file configs/retinanet_r18_mgd.yaml --suggest-weights 100
  one process per rank on CPUs
    torchrun --nproc_per_node 2 tools/train_net.py --config-file CONFIG --num-gpus 0
"""

if __name__ == "__main__":
    main(argument_parser(EXAMPLES).parse_args())
