"""The packages of the distribution, found: `idfx`, and the folder `cli` under the name `idfx_cli`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["idfx", "idfx.*"]),
        "idfx_cli",
        *(f"idfx_cli.{name}" for name in find_packages("cli")),
    ]
)
