"""Puts the rooms and scripts of the checkout into the package `ekg_tf`; see pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = "op_utils search finetune test train_cifar train_imagenet".split()


class BuildWithScripts(build_py):
    """setuptools knows no modules of the root inside a package: they are added here."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package == "ekg_tf":
            modules += [(package, name, str(Path(f"{name}.py"))) for name in SCRIPTS]
        return modules


ROOMS = "cli dataloader deployment nets options phases pruning reports training utils".split()
folders = {f"ekg_tf.{room}": room for room in ROOMS}
for room in ROOMS:
    for init in Path(room).rglob("*/__init__.py"):
        folders["ekg_tf." + ".".join(init.parent.parts)] = str(init.parent)
faces = {"ekg_tf": "ekg_tf", "ekg_tf.api": "ekg_tf/api", "ekg_tf.commands": "ekg_tf/commands"}
setup(
    packages=[*faces, *folders],
    package_dir=faces | folders,
    package_data={"ekg_tf": ["py.typed"]},
    cmdclass={"build_py": BuildWithScripts},
)
