import os
import subprocess
import sys

import pytest

from par_jax.errors import UserError
from par_jax.sim import vulkan
from par_jax.sim.vulkan import Device

LAVAPIPE = Device("llvmpipe", 0x10005, vulkan.CPU_TYPE, ())
OLD = Device("llvmpipe of Mesa 22", 0x10005, vulkan.CPU_TYPE, ("descriptorBindingPartiallyBound",))
GPU = Device("NVIDIA H200", vulkan.NVIDIA, 2, ())
OTHER_GPU = Device("Intel", 0x8086, 1, ())


def test_no_driver_names_the_packages():
    with pytest.raises(UserError, match="no Vulkan software driver.*mesa-vulkan-drivers.*libvulkan1"):
        vulkan.judge([], "cpu")


def test_another_gpu_is_no_software_driver():
    with pytest.raises(UserError, match="no Vulkan software driver"):
        vulkan.judge([GPU, OTHER_GPU], "cpu")


def test_old_driver_is_named_with_what_it_lacks():
    with pytest.raises(UserError, match="Mesa 22.*too old.*descriptorBindingPartiallyBound.*bookworm-backports"):
        vulkan.judge([OLD], "cpu")


def test_a_good_driver_among_others_is_enough():
    assert vulkan.judge([GPU, OLD, LAVAPIPE], "cpu") is LAVAPIPE


def test_gpu_needs_an_nvidia_device():
    assert vulkan.judge([LAVAPIPE, GPU], "cuda") is GPU
    with pytest.raises(UserError, match="libnvidia-gl"):
        vulkan.judge([LAVAPIPE, OTHER_GPU], "cuda")


def test_software_driver_is_chosen_unless_the_user_named_one(tmp_path, monkeypatch):
    if vulkan.Path("/proc/driver/nvidia").exists():
        pytest.skip("a machine with a GPU keeps the loader's choice")
    (tmp_path / "lvp_icd.x86_64.json").write_text("{}")
    monkeypatch.setattr(vulkan, "ICD_FOLDERS", (str(tmp_path),))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.setenv("VK_ICD_FILENAMES", "/mine.json")
    vulkan.choose_software_driver()
    assert os.environ["VK_ICD_FILENAMES"] == "/mine.json"
    monkeypatch.delenv("VK_ICD_FILENAMES")
    vulkan.choose_software_driver()
    assert os.environ["VK_ICD_FILENAMES"] == str(tmp_path / "lvp_icd.x86_64.json")


def test_a_machine_without_drivers_is_recognised():
    """The real loader, told that there is no driver: one sentence, and no crash."""
    command = [sys.executable, "-m", "par_jax.sim.vulkan"]
    run = subprocess.run(
        command, env={**os.environ, "VK_ICD_FILENAMES": "/nonexistent"}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "mesa-vulkan-drivers" in run.stderr
    assert "Traceback" not in run.stderr


def script(tmp_path, user, **environment):
    """tools/vulkan.sh, run as `user`, with an apt-get that only writes down what it was asked."""
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    for stub in tmp_path.iterdir():
        stub.chmod(0o755)
    run = subprocess.run(
        ["sh", "tools/vulkan.sh", sys.executable],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    asked = tmp_path / "asked"
    return run.stdout + run.stderr, asked.read_text() if asked.exists() else ""


def test_script_leaves_a_working_driver_alone(tmp_path):
    said, asked = script(tmp_path, 0)
    assert "nothing to install" in said
    assert not asked


def test_script_without_root_says_what_to_install(tmp_path):
    said, asked = script(tmp_path, 1000, VK_ICD_FILENAMES="/nonexistent")
    assert "nothing was installed" in said
    assert "mesa-vulkan-drivers" in said
    assert not asked
