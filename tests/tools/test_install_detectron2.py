"""tools/install_detectron2.py on small made-up trees: no network, no Detectron2 source."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import install_detectron2 as tool
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


def run_tool(*args, env=None):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


def write_tree(package, patches=tool.PATCHES):
    """Files that hold what the patches look for, as often as they expect it, and nothing else."""
    texts = {}
    for patch in patches:
        for edit in patch.edits:
            end = "" if edit.old.endswith("\n") else " # end\n"
            texts[edit.path] = texts.get(edit.path, "") + (edit.old + end) * edit.times
    for path, text in texts.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    return package


def one_line_failure(result):
    assert result.returncode != 0
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    return line


each_patch = pytest.mark.parametrize("patch", tool.PATCHES, ids=lambda patch: patch.name)


@each_patch
def test_patch_replaces_exactly_what_it_names(patch, tmp_path):
    write_tree(tmp_path, [patch])
    before = {edit.path: (tmp_path / edit.path).read_text() for edit in patch.edits}
    tool.apply(patch, tmp_path)
    for edit in patch.edits:
        after = before[edit.path]
        for other in patch.edits:
            if other.path == edit.path:
                after = after.replace(other.old, other.new)
        assert (tmp_path / edit.path).read_text() == after != before[edit.path]
    for path, text in patch.new_files.items():
        assert (tmp_path / path).read_text() == text


@each_patch
@pytest.mark.parametrize("spoil", ["absent", "once too often", "no file"])
def test_patch_that_does_not_fit_fails_with_its_name(patch, spoil, tmp_path):
    write_tree(tmp_path, [patch])
    edit = patch.edits[-1]
    file = tmp_path / edit.path
    if spoil == "absent":
        file.write_text(file.read_text().replace(edit.old, "something else\n"))
    elif spoil == "once too often":
        file.write_text(file.read_text() + edit.old)
    else:
        file.unlink()
    with pytest.raises(tool.SetupError, match=f"patch {patch.name} .*{edit.path}"):
        tool.apply(patch, tmp_path)


def test_patch_leaves_longer_names_alone(tmp_path):
    text = "a = np.int64(1); b = x.astype(np.int)\n"
    (tmp_path / "a.py").write_text(text)
    tool.apply(tool.Patch("p", "r", (tool.Edit("a.py", "np.int", "int"),)), tmp_path)
    assert (tmp_path / "a.py").read_text() == "a = np.int64(1); b = x.astype(int)\n"


def test_every_patch_has_its_own_name_and_a_reason():
    assert len({patch.name for patch in tool.PATCHES}) == len(tool.PATCHES)
    assert all(patch.reason for patch in tool.PATCHES)


@pytest.mark.parametrize("guard", [tool.IMPORT_C_GUARDED, tool.IMPORT_FAST_GUARDED])
def test_guarded_imports_are_python(guard):
    compile(guard, "guard", "exec")


def test_stand_in_for_the_compiled_parts_says_why_it_fails():
    module = type(sys)("stand_in")
    exec(tool.NOT_COMPILED, module.__dict__)
    with pytest.raises(AttributeError, match=r"box_iou_rotated .*pure-Python"):
        module.box_iou_rotated  # noqa: B018


def test_wheel_is_complete_and_installable(tmp_path):
    tree = tmp_path / "tree"
    write_tree(tree / "detectron2")
    (tree / "LICENSE").write_text("licence")
    for path in tool.PACKAGES.values():
        (tree / path).mkdir(parents=True, exist_ok=True)
        (tree / path / "__init__.py").write_text("")
    configs = tree / "detectron2" / "model_zoo" / "configs" / "Base"
    configs.mkdir(parents=True)
    (configs / "model.yaml").write_text("A: 1\n")

    wheel = tool.build_wheel(tree, tmp_path)
    target = tmp_path / "target"
    command = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([sys.executable, *command, str(target), str(wheel)], check=True)
    assert (target / "detectron2" / "model_zoo" / "configs" / "Base" / "model.yaml").is_file()
    assert all((target / package / "__init__.py").is_file() for package in tool.PACKAGES)
    metadata = (target / "detectron2-0.6.dist-info" / "METADATA").read_text()
    assert metadata.startswith("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    assert all(f"- {patch.name}: {patch.reason}\n" in metadata for patch in tool.PATCHES)

    with zipfile.ZipFile(wheel) as archive:
        *recorded, own = archive.read("detectron2-0.6.dist-info/RECORD").decode().splitlines()
        assert [line.split(",")[0] for line in [*recorded, own]] == archive.namelist()
        for line in recorded:
            name, digest, size = line.split(",")
            data = archive.read(name)
            assert int(size) == len(data)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert digest == "sha256=" + expected.rstrip("=")


def test_wrong_checksum_is_one_line(tmp_path):
    archive = tmp_path / "broken.tar.gz"
    archive.write_bytes(b"\x1f\x8b not what was published")
    line = one_line_failure(run_tool("--sdist", archive, "--wheel-dir", tmp_path / "wheels"))
    assert "wrong checksum" in line
    assert tool.SHA256 in line
    assert not (tmp_path / "wheels").exists()


def test_missing_archive_is_one_line(tmp_path):
    line = one_line_failure(run_tool("--sdist", tmp_path / "none", "--wheel-dir", tmp_path))
    assert str(tmp_path / "none") in line


def environment_with(folder, **modules):
    """PYTHONPATH that puts modules of the given text before the installed ones."""
    for name, text in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_nothing_is_done_where_detectron2_works():
    # Were it to try an installation all the same, the lack of an index would fail it.
    result = run_tool(env={**os.environ, "PIP_NO_INDEX": "1"})
    assert result.returncode == 0, result.stderr
    assert "nothing to do, found Detectron2" in result.stdout


def test_torch_that_does_not_work_is_one_line(tmp_path):
    env = environment_with(tmp_path, torch="raise ImportError('libtorch.so is missing')")
    line = one_line_failure(run_tool(env=env))
    assert "torch and torchvision do not work" in line
    assert "libtorch.so is missing" in line


def test_old_torch_is_one_line(tmp_path):
    env = environment_with(tmp_path, torch="__version__ = '1.7.1+cu101'", torchvision="")
    assert "torch 1.7.1+cu101 is too old" in one_line_failure(run_tool(env=env))


def test_broken_detectron2_is_left_alone(tmp_path):
    env = environment_with(tmp_path, detectron2="raise ImportError('undefined symbol')")
    line = one_line_failure(run_tool(env=env))
    assert "undefined symbol" in line
    assert "--force" in line


def test_check_fails_and_says_how_to_install(tmp_path):
    env = environment_with(tmp_path, detectron2="raise ImportError('undefined symbol')")
    line = one_line_failure(run_tool("--check", env=env))
    assert "undefined symbol" in line
    assert line.endswith(f"{sys.executable} tools/install_detectron2.py")


def test_failed_download_is_one_line(tmp_path):
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    line = one_line_failure(run_tool("--wheel-dir", tmp_path / "wheels", env=env))
    assert "pip download failed" in line
    assert "--sdist" in line
