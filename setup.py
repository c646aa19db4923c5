"""Layout of the wheel: `deltaspace` is its only top-level package, all other rooms lie in deltaspace/_rooms.

Packages called `kernels` or `pipeline` at the top of site-packages would clash with those of other projects. In a clone
the rooms stay top-level folders, for `python -m stages.NAME`; an editable install maps them there.
"""

import sys

from setuptools import find_packages, setup

rooms = find_packages(include=["kernels*", "pipeline*", "pretrain*", "stages*"])
own = find_packages(include=["deltaspace*"])
below = "" if "editable_wheel" in sys.argv else "deltaspace._rooms."
setup(
    packages=[*own, *([below.rstrip(".")] if below else []), *(below + name for name in rooms)],
    package_dir={"deltaspace._rooms": "."} if below else {},
    package_data={
        "deltaspace._rooms": ["params.yaml", "domains/*", "data/pretrained/portraits/*.safetensors"],
        f"{below}kernels": ["csrc/*"],
        f"{below}pipeline": ["report/templates/*.j2"],
    },
    include_package_data=False,  # or "." would take every file of the clone along
)
