"""Package metadata lives in settings.ini; this file only hands it to setuptools."""

from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    license="Apache-2.0",
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=["fraud_poc*"]),
    include_package_data=True,
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in ("dev", "postgresql")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
