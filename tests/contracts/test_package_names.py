"""Our top-level packages have plain names, which others could use too: nothing else installed may."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("package", ["schemas", "state", "streams", "agents", "console"])
def test_the_package_belongs_to_waypost_alone(package):
    owners = set(packages_distributions().get(package, []))
    assert owners == {"waypost"}, f"package {package} is installed by {sorted(owners)}; uninstall the others from this environment"
