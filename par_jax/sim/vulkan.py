"""Vulkan before the simulator: is there a driver that ManiSkill's renderer (SAPIEN) accepts?

SAPIEN's own answers are an abort, or `Failed to find a supported physical device "cpu"`; asked first and in the same
terms, the question has an answer that names packages. Needs neither sapien nor torch:
`python -m par_jax.sim.vulkan` says what is there.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from par_jax.errors import UserError

ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
"""Where drivers announce themselves."""

INSTALL = (
    "run `sh tools/vulkan.sh` as root, or install the packages mesa-vulkan-drivers (Mesa 25.0 is known to work, 22.3 "
    "is too old) and libvulkan1; on Debian 12: apt-get install -t bookworm-backports mesa-vulkan-drivers libvulkan1"
)

NVIDIA, CPU_TYPE = 0x10DE, 4
"""PCI vendor, and VkPhysicalDeviceType of a software renderer."""

_FEATURES2, _INDEXING, _TIMELINE = 1000059000, 1000161001, 1000207000
"""sType of the three feature structures."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A Vulkan device, and which of the features that SAPIEN demands it lacks."""

    name: str
    vendor: int
    type: int
    lacks: tuple[str, ...]


class _Features(ctypes.Structure):
    """A feature structure: any number of 32-bit booleans behind type and chain."""

    _fields_ = [("sType", ctypes.c_uint32), ("pNext", ctypes.c_void_p), ("flags", ctypes.c_uint32 * 64)]


class _InstanceInfo(ctypes.Structure):
    _fields_ = [
        ("sType", ctypes.c_uint32),
        ("pNext", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("pApplicationInfo", ctypes.c_void_p),
        ("layers", ctypes.c_uint32),
        ("ppLayers", ctypes.c_void_p),
        ("extensions", ctypes.c_uint32),
        ("ppExtensions", ctypes.c_void_p),
    ]


class _ApplicationInfo(ctypes.Structure):
    _fields_ = [
        ("sType", ctypes.c_uint32),
        ("pNext", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("engineVersion", ctypes.c_uint32),
        ("apiVersion", ctypes.c_uint32),
    ]


def choose_software_driver() -> None:
    """Names Mesa's lavapipe in VK_ICD_FILENAMES where there is no NVIDIA GPU and the user named no driver."""
    named = os.environ.get("VK_ICD_FILENAMES") or os.environ.get("VK_DRIVER_FILES")
    if named or Path("/proc/driver/nvidia").exists():
        return
    found = [path for folder in ICD_FOLDERS for path in sorted(Path(folder).glob("lvp_icd*.json"))]
    if found:
        os.environ["VK_ICD_FILENAMES"] = str(found[0])


def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("sapien")
    bundled = (
        sorted((Path(spec.origin).parent / "vulkan_library").glob("libvulkan.so*")) if spec and spec.origin else []
    )
    for name in ["libvulkan.so.1", *map(str, bundled)]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def devices() -> list[Device]:
    """The Vulkan devices of this machine; none if there is no loader or no driver."""
    vulkan = _library()
    if vulkan is None:
        return []
    application = _ApplicationInfo(0, None, b"par_jax", 1, b"par_jax", 1, (1 << 22) | (2 << 12))
    info = _InstanceInfo(1, None, 0, ctypes.addressof(application), 0, None, 0, None)
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    try:
        number = ctypes.c_uint32()
        if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(number), None) != 0:
            return []
        handles = (ctypes.c_void_p * number.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(number), handles)
        return [_inspect(vulkan, ctypes.c_void_p(handle)) for handle in handles]
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _inspect(vulkan: ctypes.CDLL, handle: ctypes.c_void_p) -> Device:
    properties = ctypes.create_string_buffer(4096)
    vulkan.vkGetPhysicalDeviceProperties(handle, properties)
    vendor, _, kind = (ctypes.c_uint32 * 3).from_buffer(properties, 8)
    name = properties.raw[20 : 20 + 256].split(b"\0")[0].decode()
    timeline = _Features(_TIMELINE)
    indexing = _Features(_INDEXING, ctypes.addressof(timeline))
    features = _Features(_FEATURES2, ctypes.addressof(indexing))
    vulkan.vkGetPhysicalDeviceFeatures2(handle, ctypes.byref(features))
    # svulkan2/core/physical_device.cpp demands these five; the numbers are their places in the structures.
    demanded = {
        "independentBlend": features.flags[3],
        "geometryShader": features.flags[4],
        "wideLines": features.flags[15],
        "descriptorBindingPartiallyBound": indexing.flags[17],
        "timelineSemaphore": timeline.flags[0],
    }
    return Device(name, vendor, kind, tuple(key for key, there in demanded.items() if not there))


def judge(found: Sequence[Device], device: str) -> Device:
    """The device that SAPIEN will draw on.

    Args:
      found: what `devices` found.
      device: `cpu` for a software renderer, `cuda` for an NVIDIA GPU.

    Raises:
      UserError: there is none, or it is too old; the sentence names the packages to install.
    """
    if device == "cuda":
        fit = [one for one in found if one.vendor == NVIDIA]
        if not fit:
            raise UserError(
                "Vulkan sees no NVIDIA GPU, and ManiSkill cannot draw on it without: install libvulkan1 and the "
                "driver's graphics part (libnvidia-gl-<version>; in a container, NVIDIA_DRIVER_CAPABILITIES=all)"
            )
    else:
        fit = [one for one in found if one.type == CPU_TYPE]
        if not fit:
            raise UserError(f"no Vulkan software driver is here, and ManiSkill cannot draw without one: {INSTALL}")
    for one in fit:
        if not one.lacks:
            return one
    raise UserError(
        f"the Vulkan driver {fit[0].name!r} is too old for ManiSkill (it lacks {', '.join(fit[0].lacks)}): {INSTALL}"
    )


@functools.cache
def check(device: str = "cpu") -> Device:
    """Makes sure, before mani_skill is imported, that its renderer will start.

    Args:
      device: `cpu` or `cuda`, as `par_jax.sim.simulator.resolve_device` returns it.

    Raises:
      UserError: as `judge`.
    """
    choose_software_driver()
    return judge(devices(), device)


if __name__ == "__main__":
    try:
        print(check(*sys.argv[1:2]).name)
    except UserError as problem:
        sys.exit(str(problem))
