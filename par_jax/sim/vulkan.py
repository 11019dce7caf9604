"""ManiSkill's renderer needs Vulkan."""


def check() -> None:
    """Stub until written."""
