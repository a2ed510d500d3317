"""Builds the package. Everything that can be said in data stands in pyproject.toml."""

from setuptools import setup

setup()
