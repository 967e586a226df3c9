"""Packaging of etta_mm; `tools/setup_env.sh` sets up the whole tested environment."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version in etta_mm/version.py, without importing the package (it needs torch)."""
    text = (ROOT / 'etta_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE).group(1)


def read_requirements() -> list:
    """The lines of requirements.txt that are not comments."""
    lines = (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


GLYPHS = ['matplotlib', 'pillow', 'scikit-learn']

setup(
    name='etta_mm',
    version=read_version(),
    description='Fine-tuning of large pre-trained transformers by training a few percent of '
    'extra parameters, for MMDetection and MMPretrain',
    author='The etta_mm developers',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['etta_mm', 'etta_mm.*']),
    include_package_data=True,
    python_requires='>=3.10',
    install_requires=read_requirements(),
    extras_require={
        # The tested distribution of the OpenMMLab stack, for an environment that has none yet.
        # mmcv must be built with ops against the installed torch: see tools/setup_env.sh.
        'onedl': [
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmengine>=0.10.12',
            'onedl-mmpretrain>=1.3.6',
        ],
        'glyphs': GLYPHS,
        # transformers 5 breaks `import mmdet.models` (mmpretrain 1.3.6).
        'tests': GLYPHS + ['peft', 'pytest', 'transformers>=4.53,<5'],
    },
    zip_safe=False,
)
