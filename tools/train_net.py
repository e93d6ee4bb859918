#!/usr/bin/env python
"""Train, distil and evaluate detectors."""

from __future__ import annotations

import _checkout

from mgd_det.run.main import argument_parser, main

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
