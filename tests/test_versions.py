import platform

import jax

from par_jax.versions import versions


def test_versions_are_those_installed_and_a_missing_package_is_named_so():
    found = versions(["jax", "no-such-package"])
    assert found == {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "no-such-package": "not installed",
    }
