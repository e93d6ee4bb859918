#!/usr/bin/env python
"""Print what backbones are made from networks of torchvision or timm: a table in Markdown.

Names are values of MODEL.TORCHVISION.NAME. A network that no backbone can be made from ends the table with an
error and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import _checkout
from commandline import argument_parser, bad_input_in_one_line, say
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from mgd_det.config import add_mgd_config
from mgd_det.modeling.torchvision_backbone import build_torchvision_backbone

EXAMPLES = """
examples:
  tools/backbones.py mobilenet_v2 efficientnet_b0
  tools/backbones.py timm/mobilenetv4_conv_small      (with timm installed)
"""

HEAD = """| network | parameters | res2 | res3 | res4 | res5 |
|---|---|---|---|---|---|"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a network")
    args = parser.parse_args(arguments)
    say(HEAD)
    with bad_input_in_one_line():
        for name in args.names:
            say(row(name))


def row(name: str) -> str:
    """Returns a network's row: the parameters as far as res5, in millions, and the channels of each stage.

    Raises:
        ConfigError: no backbone can be made from it.
    """
    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.MODEL.TORCHVISION.NAME = name
    backbone = build_torchvision_backbone(cfg, ShapeSpec(channels=3))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    channels = [str(shape.channels) for shape in backbone.output_shape().values()]
    return f"| {' | '.join([f'`{name}`', f'{parameters / 1e6:.1f} M', *channels])} |"


if __name__ == "__main__":
    main(sys.argv[1:])
